package h2_test

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"golang.org/x/net/http2"
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
	return serving(t, p)
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

// served counts what endpoints were asked, by the path of the request.
type served struct {
	mu   sync.Mutex // guards done
	done map[string]int
}

// endpoint is a server that counts each request that it has read whole, and then does what answer does. It takes one at a
// time.
func (s *served) endpoint(t *testing.T, body string, answer http.HandlerFunc) string {
	return limited(t, 1, func(w http.ResponseWriter, r *http.Request) {
		got, err := io.ReadAll(r.Body)
		if err != nil || string(got) != body {
			t.Errorf("an endpoint got a body of %d bytes, %v; want %d", len(got), err, len(body))
		}
		s.mu.Lock()
		s.done[r.URL.Path]++
		s.mu.Unlock()
		answer(w, r)
	})
}

func answers(status int, fields ...string) http.HandlerFunc {
	return func(w http.ResponseWriter, _ *http.Request) {
		for i := 0; i < len(fields); i += 2 {
			w.Header().Set(fields[i], fields[i+1])
		}
		w.WriteHeader(status)
	}
}

// TestAnswersAreRepeated: one of three endpoints answers, but badly. What may be repeated is, within the budget, and no
// client sees an error; what may not be is done once.
func TestAnswersAreRepeated(t *testing.T) {
	const each, rounds, places = 3, 12, 2
	const none = "loadBalancing: RoundRobin, connections: {max: 1, maxRequests: 2}"
	on := func(reasons, budget string) string {
		return none + ", retries: {on: [" + reasons + "], perTryTimeout: 10s, budget: {" + budget + "}}"
	}
	all, ample := "not-sent, reset, gateway-error, timeout", "percent: 100, minPerSecond: 1000"
	hangs := func(_ http.ResponseWriter, r *http.Request) { <-r.Context().Done() }
	// far from what a good endpoint takes on a busy machine
	const impatient = ", routes: [{name: r, match: {path: \"/{n}\"}, retries: {perTryTimeout: 300ms}}]"
	unfinished := func(w http.ResponseWriter, r *http.Request) {
		answers(503)(w, r)
		_ = http.NewResponseController(w).Flush() // the client of this test would see it
		<-r.Context().Done()
	}
	interim := func(w http.ResponseWriter, r *http.Request) {
		w.WriteHeader(http.StatusEarlyHints)
		answers(503)(w, r)
	}
	breaks := func(http.ResponseWriter, *http.Request) { panic(http.ErrAbortHandler) }
	for _, tt := range []struct {
		name   string
		bad    http.HandlerFunc
		spec   string
		method string
		body   string
		tagged bool
		want   int // errors that the client sees
	}{
		{"503", answers(503), on(all, ample), "GET", "", false, 0},
		{"504 with a body", answers(504), on(all, ample), "PUT", "body", false, 0},
		{"503 that does not end", unfinished, on(all, ample), "DELETE", "", false, 0},
		{"503 of a sidecar", answers(503, "tx-error", "TXM0236"), on("not-sent", ample), "GET", "", false, 0},
		{"gRPC's UNAVAILABLE", answers(200, "content-type", "application/grpc", "grpc-status", "14"), on(all, ample), "PUT", "body", false, 0},
		{"reset", breaks, on(all, ample), "PUT", "body", false, 0},
		{"no answer", hangs, on(all, ample) + impatient, "PUT", "body", false, 0},
		{"no answer, POST", hangs, on(all, ample) + impatient, "POST", "body", false, rounds},
		{"no answer, no such reason", hangs, on("reset", ample) + impatient, "GET", "", false, rounds},
		{"503, budget", answers(503), on(all, "percent: 0, minPerSecond: 0"), "GET", "", false, rounds - 10},
		{"503, no such reason", answers(503), on("reset", ample), "GET", "", false, rounds},
		{"503, no policy of repeats", answers(503), none, "GET", "", false, rounds},
		{"503, POST", answers(503), on(all, ample), "POST", "body", false, rounds},
		{"gRPC's UNAVAILABLE, POST", answers(200, "content-type", "application/grpc", "grpc-status", "14"), on(all, ample), "POST", "body", false, rounds},
		{"reset, POST", breaks, on(all, ample), "POST", "body", false, rounds},
		{"503, tagged", answers(503), on(all, ample), "GET", "", true, rounds},
		{"reset, tagged", breaks, on(all, ample), "GET", "", true, rounds},
		{"503, long body", answers(503), on(all, ample), "PUT", strings.Repeat("b", 17<<10), false, rounds},
		{"503 behind an interim answer", interim, on(all, ample), "GET", "", false, rounds},
		{"500", answers(500), on(all, ample), "GET", "", false, rounds},
	} {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			s := &served{done: map[string]int{}}
			endpoints := []string{s.endpoint(t, tt.body, answers(200)), s.endpoint(t, tt.body, tt.bad), s.endpoint(t, tt.body, answers(200))}
			clusters := governed(t, tt.spec)
			o := proxy.Options{Traffic: clusters}
			if tt.tagged {
				o.Gate = tagAll(interceptor.Ticket{})
			}
			address, c, errs := calls(t, o, endpoints...), client(t), 0
			for i := range each * rounds {
				req, err := http.NewRequestWithContext(t.Context(), tt.method, fmt.Sprint("http://", address, "/", i), strings.NewReader(tt.body))
				if err != nil {
					t.Fatal(err)
				}
				req.GetBody = nil // the client repeats nothing
				res, err := c.Do(req)
				if err != nil || res.StatusCode != 200 || res.Header.Get("grpc-status") != "" {
					errs++
				}
				if err == nil {
					res.Body.Close()
				}
			}
			if errs != tt.want {
				t.Errorf("%d errors, want %d", errs, tt.want)
			}
			returned(t, clusters, places, endpoints...)
			twice := 0
			s.mu.Lock()
			defer s.mu.Unlock()
			for path, n := range s.done {
				if n > 2 {
					t.Errorf("%s was done %d times", path, n)
				}
				twice += n - 1
			}
			if twice != rounds-tt.want {
				t.Errorf("L16: %d requests were done twice, want %d", twice, rounds-tt.want)
			}
		})
	}
}

// TestUnfinishedRequestsAreNotRepeated: what the client has yet to send is not at hand.
func TestUnfinishedRequestsAreNotRepeated(t *testing.T) {
	var others atomic.Int64
	early := func(w http.ResponseWriter, r *http.Request) {
		_, _ = r.Body.Read(make([]byte, 1)) // it is there
		answers(503)(w, r)
		_ = http.NewResponseController(w).Flush() // the client sees it
		<-r.Context().Done()
	}
	address := calls(t, proxy.Options{Traffic: governed(t, "loadBalancing: RoundRobin, retries: {on: [gateway-error]}")},
		upstream(t, early), upstream(t, func(http.ResponseWriter, *http.Request) { others.Add(1) }))
	c := dial(t, address)
	c.must(0, c.headers(1, false, ":method", "PUT", ":scheme", "http", ":authority", "x", ":path", "/"))
	c.must(0, c.WriteData(1, false, []byte("a")))
	if status := metaHeaders(c)[":status"]; status != "503" || others.Load() != 0 {
		t.Errorf("status %s and %d repeats, want 503 and none", status, others.Load())
	}
}

// TestRepeatLeavesItsPlace: a request that waits for room to one endpoint, and then goes to another, waits for room there.
func TestRepeatLeavesItsPlace(t *testing.T) {
	const window = 65535 // of a connection, by default
	var addresses []string
	var listeners []net.Listener
	for range 2 {
		l := listen(t)
		t.Cleanup(func() { l.Close() })
		listeners, addresses = append(listeners, l), append(addresses, l.Addr().String())
	}
	c := dial(t, calls(t, proxy.Options{Traffic: governed(t, "loadBalancing: RoundRobin, retries: {on: [gateway-error]}")}, addresses...))
	send := func(id uint32, method string, n int, end bool) {
		c.must(0, c.headers(id, false, ":method", method, ":scheme", "http", ":authority", "x", ":path", "/"))
		for ; n > 0; n -= min(n, 16<<10) {
			c.must(0, c.WriteData(id, end && n <= 16<<10, make([]byte, min(n, 16<<10))))
		}
	}
	var ends []*peer
	for i, l := range listeners { // the first request to each leaves no room
		send(uint32(1+2*i), "POST", window, false)
		conn, err := l.Accept()
		if err != nil {
			t.Fatal(err)
		}
		p := newPeer(t, conn)
		p.must(io.ReadFull(conn, make([]byte, len(http2.ClientPreface))))
		p.must(0, p.WriteSettings(http2.Setting{ID: http2.SettingInitialWindowSize, Val: 1 << 20}))
		p.whole(window, false)
		ends = append(ends, p)
	}
	head := func(f http2.Frame) bool { h, ok := f.(*http2.MetaHeadersFrame); return ok && h.StreamID == 3 }
	send(5, "PUT", 5000, true)
	c.must(0, c.WritePing(false, [8]byte{}))
	c.until(func(f http2.Frame) bool { p, ok := f.(*http2.PingFrame); return ok && p.IsAck() }) // the proxy has all of it
	ends[0].until(head)
	ends[0].must(0, ends[0].headers(3, true, ":status", "503"))
	ends[0].until(func(f http2.Frame) bool { r, ok := f.(*http2.RSTStreamFrame); return ok && r.StreamID == 3 })
	ends[1].until(head)
	ends[1].must(0, ends[1].WriteWindowUpdate(0, window))
	ends[1].whole(5000, true)
	ends[1].must(0, ends[1].headers(3, true, ":status", "200"))
	if status := metaHeaders(c)[":status"]; status != "200" {
		t.Errorf("status %s, want 200", status)
	}
}

// whole reads DATA of n bytes, and the end of their stream if that is to come.
func (p *peer) whole(n int, end bool) {
	p.t.Helper()
	p.until(func(f http2.Frame) bool {
		d, ok := f.(*http2.DataFrame)
		if ok {
			n -= len(d.Data())
		}
		return n <= 0 && (!end || ok && d.StreamEnded())
	})
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
