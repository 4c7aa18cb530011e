package outbound

import (
	"context"
	"net"
	"net/http"
	"net/http/httptest"
	"sync/atomic"
	"testing"
	"time"

	"txmesh/interceptor"
)

// The service takes a second request on a kept connection and dies without an answer: what came of it is unknown,
// and only the engine may ask again.
func TestNothingIsRepeatedBehindTheEngine(t *testing.T) {
	var seen atomic.Int32
	srv := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
		if seen.Add(1) == 1 {
			return
		}
		conn, _, err := w.(http.Hijacker).Hijack()
		if err == nil {
			err = conn.Close()
		}
		if err != nil {
			t.Error(err)
		}
	}))
	defer srv.Close()
	app := NewApp(srv.Listener.Addr().String(), 1000, nil)
	defer app.Close()
	out := &interceptor.Outgoing{Method: "DELETE", Path: "/x", Header: http.Header{"Idempotency-Key": {`"k"`}}}
	if _, err := app.Send(context.Background(), out); err != nil {
		t.Fatal(err)
	}
	if r, err := app.Send(context.Background(), out); err == nil {
		t.Errorf("a broken exchange is answered %d", r.Status)
	}
	if n := seen.Load(); n != 2 {
		t.Errorf("the service saw %d requests, want 2", n)
	}
}

func TestCancelledCallReturnsAtOnce(t *testing.T) {
	silent, err := net.Listen("tcp", "127.0.0.1:0") // accepts in the kernel and never answers
	if err != nil {
		t.Fatal(err)
	}
	defer silent.Close()
	ctx, cancel := context.WithCancelCause(context.Background())
	cancel(context.Canceled)
	app := NewApp(silent.Addr().String(), 1000, nil)
	start := time.Now()
	_, err = app.Send(ctx, &interceptor.Outgoing{Method: "GET", Path: "/"})
	if err == nil || time.Since(start) > 30*time.Second {
		t.Errorf("a cancelled call returned %v after %v", err, time.Since(start))
	}
}

// The server closes kept connections after each answer, without a word: no request is written to one, and none fails.
func TestClosedConnectionTakesNoRequest(t *testing.T) {
	var seen atomic.Int32
	closed := make(chan struct{}, 10)
	srv := httptest.NewUnstartedServer(http.HandlerFunc(func(http.ResponseWriter, *http.Request) { seen.Add(1) }))
	srv.Config.IdleTimeout = idleMin / 2
	srv.Config.ConnState = func(_ net.Conn, s http.ConnState) {
		if s == http.StateClosed {
			closed <- struct{}{}
		}
	}
	srv.Start()
	defer srv.Close()
	app := NewApp(srv.Listener.Addr().String(), 1000, nil)
	defer app.Close()
	for n := range 4 {
		if _, err := app.Send(context.Background(), &interceptor.Outgoing{Method: "POST", Path: "/x"}); err != nil {
			t.Fatalf("request %d: %v", n, err)
		}
		<-closed
		time.Sleep(2 * idleMin) // longer than what counts as fresh
	}
	if n := seen.Load(); n != 4 {
		t.Errorf("the service saw %d requests, want 4", n)
	}
}
