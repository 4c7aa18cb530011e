package h2_test

import (
	"io"
	"net/http"
	"runtime"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/interop"
	testgrpc "google.golang.org/grpc/interop/grpc_testing"
	"google.golang.org/grpc/status"

	"txmesh/interceptor"
	"txmesh/interceptor/proxy"
)

func grpcServer(t *testing.T) (*grpc.Server, string) {
	srv := grpc.NewServer()
	testgrpc.RegisterTestServiceServer(srv, interop.NewTestServer())
	l := listen(t)
	go func() { _ = srv.Serve(l) }() // Stop ends it
	t.Cleanup(srv.Stop)
	return srv, l.Addr().String()
}

func grpcClient(t *testing.T, address string) testgrpc.TestServiceClient {
	conn, err := grpc.NewClient("passthrough:///"+address, grpc.WithTransportCredentials(insecure.NewCredentials()))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = conn.Close() })
	return testgrpc.NewTestServiceClient(conn)
}

// TestGoAwayUnderLoadLosesNothing: servers that shut down gracefully, one after the other, while calls run.
func TestGoAwayUnderLoadLosesNothing(t *testing.T) {
	first, a := grpcServer(t)
	_, b := grpcServer(t)
	p, err := proxy.NewUpstream(proxy.Options{}, "test/service", []string{a, b})
	if err != nil {
		t.Fatal(err)
	}
	address := serving(t, p)
	var stop atomic.Bool
	var calls atomic.Int64
	var all sync.WaitGroup
	for range 16 {
		c := grpcClient(t, address)
		all.Go(func() {
			for !stop.Load() {
				if _, err := c.UnaryCall(t.Context(), &testgrpc.SimpleRequest{ResponseSize: 100, Payload: &testgrpc.Payload{Body: make([]byte, 1000)}}); err != nil {
					t.Error(err)
					return
				}
				calls.Add(1)
			}
		})
	}
	wait := func(n int64) {
		for end := time.Now().Add(patience); calls.Load() < n && time.Now().Before(end); {
			time.Sleep(time.Millisecond)
		}
	}
	wait(1000)
	first.GracefulStop()
	wait(calls.Load() + 1000)
	stop.Store(true)
	all.Wait()
	t.Logf("%d calls", calls.Load())
}

// TestGRPCDeadline: the time that a client gives bounds the exchange, also where its own clock would not.
func TestGRPCDeadline(t *testing.T) {
	cancelled := make(chan struct{})
	up := upstream(t, func(_ http.ResponseWriter, r *http.Request) {
		<-r.Context().Done()
		close(cancelled)
	})
	address, _ := inbound(t, proxy.Options{}, up)
	p := dial(t, address)
	p.must(0, p.headers(1, true, ":method", "POST", ":scheme", "http", ":authority", "x", ":path", "/", "content-type", "application/grpc", "grpc-timeout", "30m"))
	if res := metaHeaders(p); res["grpc-status"] != "4" || res["tx-error"] != "TXM0223" {
		t.Errorf("got %v, want grpc-status 4 and TXM0223", res)
	}
	<-cancelled
}

// TestGRPCCallsThroughAGate: a held call keeps its trailers, and a refused one is a status of gRPC.
func TestGRPCCallsThroughAGate(t *testing.T) {
	_, server := grpcServer(t)
	g := tagAll(interceptor.Ticket{Hold: true})
	var ends []string
	g.after = func(res interceptor.Response, err error) *interceptor.Answer {
		if err != nil {
			t.Error(err)
			return nil
		}
		if _, err := res.Body(1 << 20); err != nil {
			t.Error(err)
		}
		ends = append(ends, res.Trailer("grpc-status"))
		return nil
	}
	address, _ := inbound(t, proxy.Options{Gate: g}, server)
	c := grpcClient(t, address)
	if _, err := c.UnaryCall(t.Context(), &testgrpc.SimpleRequest{ResponseSize: 300000}); err != nil {
		t.Error(err)
	}
	_, err := c.UnaryCall(t.Context(), &testgrpc.SimpleRequest{ResponseStatus: &testgrpc.EchoStatus{Code: 9, Message: "no"}})
	if status.Code(err) != codes.FailedPrecondition {
		t.Errorf("got %v, want FailedPrecondition", err)
	}
	if len(ends) != 2 || ends[0] != "0" || ends[1] != "9" {
		t.Errorf("the gate saw %q, want 0 and 9", ends)
	}
	g.once(t, 2)
}

// TestMemoryStaysFlat streams 100 MB each way.
func TestMemoryStaysFlat(t *testing.T) {
	const size = 100 << 20
	up := upstream(t, func(w http.ResponseWriter, r *http.Request) {
		if n, err := io.Copy(io.Discard, r.Body); err != nil || n != size {
			t.Errorf("the server got %d bytes, %v", n, err)
		}
		_, _ = io.Copy(w, io.LimitReader(zeros{}, size)) // the client counts
	})
	address, _ := inbound(t, proxy.Options{}, up)
	req, err := http.NewRequestWithContext(t.Context(), "POST", "http://"+address+"/", io.LimitReader(zeros{}, size))
	if err != nil {
		t.Fatal(err)
	}
	var before, after runtime.MemStats
	runtime.GC()
	runtime.ReadMemStats(&before)
	c := client(t)
	c.Timeout = time.Minute // a loaded machine with the race detector takes its time
	res, err := c.Do(req)
	if err != nil {
		t.Fatal(err)
	}
	defer res.Body.Close()
	if n, err := io.Copy(io.Discard, res.Body); err != nil || n != size {
		t.Errorf("the client got %d bytes, %v", n, err)
	}
	runtime.ReadMemStats(&after)
	if grown := int64(after.Sys) - int64(before.Sys); grown > 32<<20 {
		t.Errorf("memory grew by %d MB", grown>>20)
	}
}

type zeros struct{}

func (zeros) Read(p []byte) (int, error) { return len(p), nil }
