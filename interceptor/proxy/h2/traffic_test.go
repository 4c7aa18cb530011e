package h2_test

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/http"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/interop"
	testgrpc "google.golang.org/grpc/interop/grpc_testing"
	"google.golang.org/grpc/metadata"
	"google.golang.org/grpc/status"

	"txmesh/interceptor"
	"txmesh/interceptor/proxy"
	"txmesh/interceptor/traffic"
	"txmesh/policies"
)

type inForce struct{ set *policies.Set }

func (f inForce) Current() *policies.Set { return f.set }

// governed are the clusters of a sidecar under a TrafficPolicy for bank/accounts.
func governed(t *testing.T, spec string) *traffic.Clusters {
	text := "apiVersion: txmesh.io/v1beta1\nkind: TrafficPolicy\nmetadata: {name: p, namespace: bank}\nspec: {to: accounts, " + spec + "}\n"
	set, err := policies.Compile(policies.Source{Name: "p.yaml", Data: []byte(text)})
	if err != nil {
		t.Fatal(err)
	}
	return traffic.New(traffic.Options{Policies: inForce{set}})
}

// calls starts a listener for calls to bank/accounts and returns its address.
func calls(t *testing.T, o proxy.Options, endpoints ...string) string {
	p, err := proxy.NewUpstream(o, "bank/accounts", endpoints)
	if err != nil {
		t.Fatal(err)
	}
	l := listen(t)
	go func() { _ = p.Serve(l) }() // Shutdown ends it
	t.Cleanup(func() {
		ctx, cancel := context.WithTimeout(context.Background(), time.Second)
		defer cancel()
		_ = p.Shutdown(ctx) // clients keep their connections
	})
	return l.Addr().String()
}

// serveGRPC is a server of grpc-go whose unary calls are answered by f.
func serveGRPC(t *testing.T, f func(ctx context.Context) error) string {
	srv := grpc.NewServer(grpc.UnaryInterceptor(func(ctx context.Context, req any, _ *grpc.UnaryServerInfo, h grpc.UnaryHandler) (any, error) {
		if err := f(ctx); err != nil {
			return nil, err
		}
		return h(ctx, req)
	}))
	testgrpc.RegisterTestServiceServer(srv, interop.NewTestServer())
	l := listen(t)
	go func() { _ = srv.Serve(l) }() // Stop ends it
	t.Cleanup(srv.Stop)
	return l.Addr().String()
}

// unretried is a client of grpc-go that repeats nothing.
func unretried(t *testing.T, address string) testgrpc.TestServiceClient {
	conn, err := grpc.NewClient("passthrough:///"+address, grpc.WithTransportCredentials(insecure.NewCredentials()), grpc.WithDisableRetry())
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = conn.Close() })
	return testgrpc.NewTestServiceClient(conn)
}

// connKey is where a context keeps its connection.
type connKey struct{}

func well(context.Context) error { return nil }

func unavailable(context.Context) error { return status.Error(codes.Unavailable, "no") }

// TestOneOfThreeEndpointsFailsGRPC counts the errors that clients see, without and with a circuit breaker.
func TestOneOfThreeEndpointsFailsGRPC(t *testing.T) {
	const breaker = "circuitBreaker: {consecutiveErrors: 3, ejectFor: 1h}"
	dies := func(t *testing.T) string {
		l := listen(t)
		var protocols http.Protocols
		protocols.SetUnencryptedHTTP2(true)
		srv := &http.Server{Protocols: &protocols, ReadHeaderTimeout: patience, ConnContext: func(ctx context.Context, c net.Conn) context.Context {
			return context.WithValue(ctx, connKey{}, c)
		}}
		srv.Handler = http.HandlerFunc(func(_ http.ResponseWriter, r *http.Request) {
			r.Context().Value(connKey{}).(net.Conn).Close()
		})
		go func() { _ = srv.Serve(l) }() // it ends with the test
		t.Cleanup(func() { _ = srv.Close() })
		return l.Addr().String()
	}
	for _, tt := range []struct {
		name string
		bad  func(t *testing.T) string
		spec string
		want int
	}{
		{"answers UNAVAILABLE, no breaker", func(t *testing.T) string { return serveGRPC(t, unavailable) }, "timeouts: {}", 40},
		{"answers UNAVAILABLE, breaker", func(t *testing.T) string { return serveGRPC(t, unavailable) }, breaker, 3},
		{"breaks off, no breaker", dies, "timeouts: {}", 40},
		{"breaks off, breaker", dies, breaker, 3},
		{"is not there, no breaker", func(*testing.T) string { return "127.0.0.1:1" }, "timeouts: {}, retries: {attempts: 0}", 40},
		{"is not there, breaker", func(*testing.T) string { return "127.0.0.1:1" }, breaker + ", retries: {attempts: 0}", 3},
		{"is not there, repeats", func(*testing.T) string { return "127.0.0.1:1" }, "retries: {attempts: 1, budget: {percent: 100, minPerSecond: 1000}}", 0},
	} {
		t.Run(tt.name, func(t *testing.T) {
			address := calls(t, proxy.Options{Traffic: governed(t, tt.spec+", loadBalancing: RoundRobin")},
				serveGRPC(t, well), tt.bad(t), serveGRPC(t, well))
			c := unretried(t, address)
			errs := 0
			for range 120 {
				if _, err := c.UnaryCall(t.Context(), &testgrpc.SimpleRequest{}); err != nil {
					errs++
				}
			}
			if errs != tt.want {
				t.Errorf("%d of 120 calls failed, want %d", errs, tt.want)
			}
		})
	}
}

// TestLimitOfRequests: what runs, what waits for it, and what is refused at once.
func TestLimitOfRequests(t *testing.T) {
	entered, leave := make(chan struct{}), make(chan struct{})
	server := serveGRPC(t, func(ctx context.Context) error {
		select {
		case entered <- struct{}{}:
		case <-ctx.Done(): // the test has failed
			return ctx.Err()
		}
		select {
		case <-leave:
		case <-ctx.Done():
		}
		return ctx.Err()
	})
	clusters := governed(t, "connections: {maxRequests: 1, maxPending: 1}")
	address := calls(t, proxy.Options{Traffic: clusters}, server)
	c := unretried(t, address)
	var all sync.WaitGroup
	call := func() {
		if _, err := c.UnaryCall(t.Context(), &testgrpc.SimpleRequest{}); err != nil {
			t.Error(err)
		}
	}
	all.Go(call)
	<-entered
	all.Go(call)
	cluster := clusters.Service("bank/accounts", []string{server})
	for end := time.Now().Add(patience); ; time.Sleep(time.Millisecond) {
		if _, err := cluster.TryPick(traffic.Ask{Method: "POST", Path: "/"}); errors.Is(err, traffic.ErrFull) {
			break
		}
		if time.Now().After(end) {
			t.Fatal("the second call does not wait")
		}
	}
	var header metadata.MD
	_, err := c.UnaryCall(t.Context(), &testgrpc.SimpleRequest{}, grpc.Trailer(&header))
	if status.Code(err) != codes.Unavailable || fmt.Sprint(header.Get("tx-error")) != "[TXM0236]" || fmt.Sprint(header.Get("retry-after")) != "[1]" {
		t.Errorf("got %v with %v, want UNAVAILABLE, TXM0236 and retry-after", err, header)
	}
	leave <- struct{}{}
	<-entered // the one that waited
	leave <- struct{}{}
	all.Wait()
	returned(t, clusters, 1, server)
}

// returned checks that all leases of a cluster with that limit came back, no more and no fewer.
func returned(t *testing.T, clusters *traffic.Clusters, limit int, endpoints ...string) {
	t.Helper()
	cluster := clusters.Service("bank/accounts", endpoints)
	for end := time.Now().Add(patience); ; time.Sleep(time.Millisecond) {
		var held []traffic.Lease
		for range limit + 1 {
			if l, err := cluster.TryPick(traffic.Ask{Method: "POST", Path: "/"}); err == nil {
				held = append(held, l)
			}
		}
		for i := range held {
			held[i].Done()
		}
		if len(held) == limit {
			return
		}
		if time.Now().After(end) {
			t.Fatalf("%d of %d places are free", len(held), limit)
		}
	}
}

// TestLeasesComeBack: clients that cancel, whose connections break, and endpoints that break, at a limit where many wait.
func TestLeasesComeBack(t *testing.T) {
	var n atomic.Int64
	fault := func(ctx context.Context) error {
		switch n.Add(1) % 4 {
		case 0:
			return unavailable(ctx)
		case 1:
			<-ctx.Done()
		}
		return nil
	}
	first, second := serveGRPC(t, fault), serveGRPC(t, fault)
	endpoints := []string{first, second, "127.0.0.1:1"}
	clusters := governed(t, "connections: {maxRequests: 5, maxPending: 20}, circuitBreaker: {consecutiveErrors: 3, ejectFor: 10ms}")
	g := newGate()
	g.before = func(r interceptor.Request) interceptor.Verdict {
		if n.Add(1)%2 == 0 {
			return interceptor.Verdict{Ticket: &interceptor.Ticket{Outlive: n.Load()%4 == 0, Hold: n.Load()%3 == 0, Timeout: 300 * time.Millisecond}}
		}
		return interceptor.Verdict{}
	}
	address := calls(t, proxy.Options{Traffic: clusters, Gate: g}, endpoints...)
	var all sync.WaitGroup
	for range 8 {
		all.Go(func() {
			for i := range 20 {
				conn, err := grpc.NewClient("passthrough:///"+address, grpc.WithTransportCredentials(insecure.NewCredentials()))
				if err != nil {
					t.Error(err)
					return
				}
				c := testgrpc.NewTestServiceClient(conn)
				var both sync.WaitGroup
				for k := range 4 {
					both.Go(func() {
						ctx, cancel := context.WithTimeout(t.Context(), time.Duration(5+7*k+i)*time.Millisecond)
						defer cancel()
						_, _ = c.UnaryCall(ctx, &testgrpc.SimpleRequest{}) // only what is left of it counts
					})
				}
				if i%3 == 0 {
					time.Sleep(5 * time.Millisecond)
					_ = conn.Close()
				}
				both.Wait()
				_ = conn.Close()
			}
		})
	}
	all.Wait()
	returned(t, clusters, 5, endpoints...)
}

// TestTaggedCallNeverMoves: not even where nothing was sent.
func TestTaggedCallNeverMoves(t *testing.T) {
	var served atomic.Int64
	good := serveGRPC(t, func(context.Context) error { served.Add(1); return nil })
	for _, tagged := range []bool{false, true} {
		o := proxy.Options{Traffic: governed(t, "loadBalancing: RoundRobin")}
		want := int64(10)
		if tagged {
			o.Gate = tagAll(interceptor.Ticket{})
			want = 5
		}
		c := unretried(t, calls(t, o, "127.0.0.1:1", good))
		served.Store(0)
		for range 10 {
			_, _ = c.UnaryCall(t.Context(), &testgrpc.SimpleRequest{}) // the server counts
		}
		if served.Load() != want {
			t.Errorf("tagged %v: %d calls arrived, want %d", tagged, served.Load(), want)
		}
	}
}

// TestTimeOfPolicy: timeouts.request bounds a call that has no deadline of its own.
func TestTimeOfPolicy(t *testing.T) {
	server := serveGRPC(t, func(ctx context.Context) error { <-ctx.Done(); return nil })
	c := unretried(t, calls(t, proxy.Options{Traffic: governed(t, "timeouts: {request: 50ms}")}, server))
	ctx, cancel := context.WithCancel(t.Context())
	timer := time.AfterFunc(patience, cancel)
	defer timer.Stop()
	if _, err := c.UnaryCall(ctx, &testgrpc.SimpleRequest{}); status.Code(err) != codes.DeadlineExceeded {
		t.Errorf("got %v, want DEADLINE_EXCEEDED", err)
	}
}
