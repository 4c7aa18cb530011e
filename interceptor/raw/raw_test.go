package raw

import (
	"bytes"
	"context"
	"errors"
	"io"
	"math/rand/v2"
	"net"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
)

func must(t *testing.T, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

// patience is how long a test waits for what must come.
const patience = 20 * time.Second

func listener(t *testing.T) net.Listener {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	must(t, err)
	t.Cleanup(func() { l.Close() })
	return l
}

// running is a proxy with its listener and what it reports.
type running struct {
	*Proxy
	at    string
	ended chan Report
}

func run(t *testing.T, o Options, endpoints ...string) *running {
	t.Helper()
	r := &running{ended: make(chan Report, 10_000)}
	o.Ended = func(x Report) { r.ended <- x }
	var err error
	r.Proxy, err = New(o, endpoints...)
	must(t, err)
	l := listener(t)
	r.at = l.Addr().String()
	served := make(chan error, 1)
	go func() { served <- r.Serve(l) }()
	t.Cleanup(func() {
		ctx, cancel := context.WithCancel(context.Background())
		cancel()
		_ = r.Shutdown(ctx) // the test may have left connections
		must(t, <-served)
	})
	return r
}

func (r *running) report(t *testing.T) Report {
	t.Helper()
	select {
	case x := <-r.ended:
		return x
	case <-time.After(patience):
		t.Fatal("no connection has ended")
		return Report{}
	}
}

func dial(t *testing.T, address string) *net.TCPConn {
	t.Helper()
	c, err := net.Dial("tcp", address)
	must(t, err)
	t.Cleanup(func() { c.Close() })
	must(t, c.SetDeadline(time.Now().Add(patience)))
	return c.(*net.TCPConn)
}

func accepted(t *testing.T, l net.Listener) *net.TCPConn {
	t.Helper()
	must(t, l.(*net.TCPListener).SetDeadline(time.Now().Add(patience)))
	c, err := l.Accept()
	must(t, err)
	t.Cleanup(func() { c.Close() })
	must(t, c.SetDeadline(time.Now().Add(patience)))
	return c.(*net.TCPConn)
}

// pair is a connection through a proxy, from both ends.
func pair(t *testing.T, o Options) (r *running, client, server *net.TCPConn) {
	t.Helper()
	l := listener(t)
	r = run(t, o, l.Addr().String())
	client = dial(t, r.at)
	return r, client, accepted(t, l)
}

func say(t *testing.T, c net.Conn, text string) {
	t.Helper()
	_, err := c.Write([]byte(text))
	must(t, err)
}

func hear(t *testing.T, c net.Conn, want string) {
	t.Helper()
	got := make([]byte, len(want))
	_, err := io.ReadFull(c, got)
	must(t, err)
	if string(got) != want {
		t.Fatalf("heard %q, want %q", got, want)
	}
}

// ending reads to the end and says how it ended.
func ending(c net.Conn) string {
	_, err := io.Copy(io.Discard, c)
	switch {
	case err == nil:
		return "end"
	case errors.Is(err, syscall.ECONNRESET):
		return "reset"
	}
	return err.Error()
}

// refused wants a connection to be reset: at once, so that it may be while the client still connects.
func refused(t *testing.T, address string) {
	t.Helper()
	c, err := net.Dial("tcp", address)
	if err == nil {
		defer c.Close()
		must(t, c.SetDeadline(time.Now().Add(patience)))
		_, err = io.Copy(io.Discard, c)
	}
	if !errors.Is(err, syscall.ECONNRESET) {
		t.Errorf("the client sees %v, want a reset", err)
	}
}

func TestTheServerMaySpeakFirst(t *testing.T) {
	_, client, server := pair(t, Options{})
	say(t, server, "220 ready\r\n")
	hear(t, client, "220 ready\r\n")
}

func TestHalvesCloseOneByOne(t *testing.T) {
	for _, first := range []string{"client", "server"} {
		t.Run(first, func(t *testing.T) {
			r, a, b := pair(t, Options{})
			if first == "server" {
				a, b = b, a
			}
			say(t, a, "last words")
			must(t, a.CloseWrite())
			hear(t, b, "last words")
			if got := ending(b); got != "end" {
				t.Fatalf("after the last words: %s", got)
			}
			for range 3 {
				say(t, b, "still here")
				hear(t, a, "still here")
			}
			must(t, b.CloseWrite())
			if got := ending(a); got != "end" {
				t.Fatalf("at the end: %s", got)
			}
			if got := r.report(t); got.End != Closed || got.Copied != 0 && spliceExpected {
				t.Errorf("reported %+v", got)
			}
		})
	}
}

func TestResetsArePassedOn(t *testing.T) {
	for name, prepare := range map[string]func(a, b *net.TCPConn){
		"while both speak":            func(_, _ *net.TCPConn) {},
		"after the one's last word":   func(a, _ *net.TCPConn) { must(t, a.CloseWrite()) },
		"after the other's last word": func(_, b *net.TCPConn) { must(t, b.CloseWrite()) },
	} {
		for _, who := range []string{"client", "server"} {
			t.Run(who+" "+name, func(t *testing.T) {
				r, a, b := pair(t, Options{})
				if who == "server" {
					a, b = b, a
				}
				say(t, a, "x")
				hear(t, b, "x")
				prepare(a, b)
				must(t, a.SetLinger(0))
				if strings.HasSuffix(name, "other's last word") {
					if got := ending(a); got != "end" {
						t.Fatal(got)
					}
				}
				if strings.HasSuffix(name, "one's last word") {
					if got := ending(b); got != "end" {
						t.Fatal(got)
					}
				}
				must(t, a.Close())
				if got := r.report(t); got.End != Reset {
					t.Errorf("reported %+v", got)
				}
				if _, err := b.Write([]byte("x")); err == nil {
					_, err = b.Write([]byte("x"))
					t.Errorf("the other side takes more after the reset; then %v", err)
				}
			})
		}
	}
}

func TestTheNextEndpointIsTaken(t *testing.T) {
	gone := listener(t)
	must(t, gone.Close())
	l := listener(t)
	r := run(t, Options{}, gone.Addr().String(), l.Addr().String())
	for range 2 { // each endpoint has its turn
		client := dial(t, r.at)
		server := accepted(t, l)
		say(t, client, "x")
		hear(t, server, "x")
	}
}

func TestClientsAreResetWhereNoEndpointIs(t *testing.T) {
	gone := listener(t)
	must(t, gone.Close())
	r := run(t, Options{}, gone.Addr().String())
	refused(t, r.at)
	if got := r.report(t); got.End != Unreachable {
		t.Errorf("reported %+v", got)
	}
}

func TestConnectionsAreBounded(t *testing.T) {
	r, client, server := pair(t, Options{Limits: Limits{Conns: 1}})
	refused(t, r.at)
	if got := r.report(t); got.End != Full {
		t.Errorf("reported %+v", got)
	}
	say(t, client, "x")
	hear(t, server, "x")
}

func TestSilenceHasAnEnd(t *testing.T) {
	began := time.Now()
	r, client, server := pair(t, Options{Limits: Limits{Idle: 300 * time.Millisecond}})
	for range 6 { // each word counts
		say(t, server, "x")
		hear(t, client, "x")
		time.Sleep(100 * time.Millisecond)
	}
	if got := ending(client); got != "reset" {
		t.Errorf("the client sees %s", got)
	}
	if got := r.report(t); got.End != Idle || time.Since(began) < 800*time.Millisecond {
		t.Errorf("reported %+v after %v", got, time.Since(began))
	}
}

func TestShutdownWaitsThenCuts(t *testing.T) {
	r, client, server := pair(t, Options{})
	done := make(chan error, 1)
	go func() { done <- r.Shutdown(t.Context()) }()
	for !r.listeners.Closed() {
		time.Sleep(time.Millisecond)
	}
	say(t, client, "still")
	hear(t, server, "still")
	must(t, errors.Join(client.Close(), server.Close()))
	must(t, <-done)

	r, client, _ = pair(t, Options{})
	ctx, cancel := context.WithTimeout(t.Context(), 50*time.Millisecond)
	defer cancel()
	if err := r.Shutdown(ctx); err == nil || !strings.Contains(err.Error(), "1 raw connections cut") {
		t.Errorf("the end of the patience says %v", err)
	}
	if got := ending(client); got != "reset" {
		t.Errorf("the client sees %s", got)
	}
	if got := r.report(t); got.End != Cut {
		t.Errorf("reported %+v", got)
	}
}

func TestMuchPassesUnchangedBothWays(t *testing.T) {
	for name, dialer := range map[string]func(context.Context, string, string) (net.Conn, error){
		"in the kernel":  nil,
		"through memory": wrapped,
	} {
		t.Run(name, func(t *testing.T) {
			r, client, server := pair(t, Options{Dial: dialer})
			const size = 100 << 20
			var all sync.WaitGroup
			for i, c := range []*net.TCPConn{client, server} {
				other := []*net.TCPConn{server, client}[i]
				all.Go(func() {
					if _, err := io.CopyN(c, rand.NewChaCha8([32]byte{byte(i)}), size); err != nil {
						t.Error(err)
					}
					if err := c.CloseWrite(); err != nil {
						t.Error(err)
					}
				})
				all.Go(func() {
					if !same(other, rand.NewChaCha8([32]byte{byte(i)}), size) {
						t.Errorf("direction %d differs", i)
					}
				})
			}
			all.Wait()
			want := Report{End: Closed, Sent: size, Received: size}
			if dialer != nil || !spliceExpected {
				want.Copied = 2 * size
			}
			if diff := cmp.Diff(want, r.report(t)); diff != "" {
				t.Error(diff)
			}
		})
	}
}

// wrapped is a connection that is no bare socket, as one with TLS.
func wrapped(ctx context.Context, network, address string) (net.Conn, error) {
	c, err := new(net.Dialer).DialContext(ctx, network, address)
	if err != nil {
		return nil, err
	}
	return struct {
		net.Conn
		half
	}{c, c.(half)}, nil
}

type half interface{ CloseWrite() error }

func same(got, want io.Reader, size int64) bool {
	a, b := make([]byte, 1<<20), make([]byte, 1<<20)
	for size > 0 {
		n, err := got.Read(a)
		if err != nil {
			return false
		}
		_, _ = io.ReadFull(want, b[:n]) // it never ends
		if !bytes.Equal(a[:n], b[:n]) {
			return false
		}
		size -= int64(n)
	}
	n, err := got.Read(a)
	return n == 0 && errors.Is(err, io.EOF)
}
