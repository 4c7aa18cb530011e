package proxy

import (
	"bufio"
	"context"
	"fmt"
	"io"
	"net"
	"strings"
	"sync"
	"testing"
	"time"

	"txmesh/interceptor"
)

// patience bounds every wait of a test: it is reached only by a bug.
const patience = 10 * time.Second

// gate is a Gate made of functions, which counts.
type gate struct {
	before func(r interceptor.Request) interceptor.Verdict
	after  func(t *interceptor.Ticket, res interceptor.Response, err error) *interceptor.Answer

	mu    sync.Mutex // guards ports and ended
	ports []interceptor.Port
	ended []error       // of each After
	done  chan struct{} // one for each After
}

func newGate() *gate { return &gate{done: make(chan struct{}, 1000)} }

// tagAll gives every request that ticket.
func tagAll(t interceptor.Ticket) *gate {
	g := newGate()
	g.before = func(interceptor.Request) interceptor.Verdict {
		ticket := t
		return interceptor.Verdict{Ticket: &ticket}
	}
	return g
}

func (g *gate) Before(_ context.Context, p interceptor.Port, r interceptor.Request) interceptor.Verdict {
	g.mu.Lock()
	g.ports = append(g.ports, p)
	g.mu.Unlock()
	if g.before == nil {
		return interceptor.Verdict{}
	}
	return g.before(r)
}

func (g *gate) After(_ context.Context, t *interceptor.Ticket, res interceptor.Response, err error) (a *interceptor.Answer) {
	if g.after != nil {
		a = g.after(t, res, err)
	}
	g.mu.Lock()
	g.ended = append(g.ended, err)
	g.mu.Unlock()
	g.done <- struct{}{}
	return a
}

// ends waits for the n-th After and returns the errors of all.
func (g *gate) ends(t *testing.T, n int) []error {
	t.Helper()
	for range n {
		select {
		case <-g.done:
		case <-time.After(patience):
			t.Fatalf("After was not called %d times", n)
		}
	}
	g.mu.Lock()
	defer g.mu.Unlock()
	if len(g.ended) != n {
		t.Fatalf("After was called %d times, want %d", len(g.ended), n)
	}
	return append([]error(nil), g.ended...)
}

type proxy interface {
	Serve(net.Listener) error
	Shutdown(context.Context) error
}

func listen(t testing.TB) net.Listener {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	return l
}

// start serves p until the end of the test and returns its address.
func start(t testing.TB, p proxy, err error) string {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
	l := listen(t)
	served := make(chan error, 1)
	go func() { served <- p.Serve(l) }()
	t.Cleanup(func() {
		ctx, cancel := context.WithTimeout(context.Background(), patience)
		defer cancel()
		if err := p.Shutdown(ctx); err != nil && t.Context().Err() == nil {
			t.Error(err)
		}
		if err := <-served; err != nil {
			t.Error(err)
		}
	})
	return l.Addr().String()
}

// upstreamServer runs handle for each connection, until the end of the test.
func upstreamServer(t testing.TB, handle func(net.Conn)) string {
	t.Helper()
	l := listen(t)
	var conns sync.WaitGroup
	conns.Go(func() {
		for {
			conn, err := l.Accept()
			if err != nil {
				return
			}
			conns.Go(func() {
				defer conn.Close()
				readUntil(conn, time.Now().Add(patience))
				handle(conn)
			})
		}
	})
	t.Cleanup(func() {
		l.Close()
		conns.Wait()
	})
	return l.Addr().String()
}

// scripted answers each request head on a connection with the next text, whatever it says; "" closes.
func scripted(t testing.TB, answers ...string) string {
	return upstreamServer(t, func(conn net.Conn) {
		r := bufio.NewReader(conn)
		for i := 0; ; i++ {
			head, err := readHead(r)
			if err != nil {
				return
			}
			if n := contentLength(head); n > 0 {
				if _, err := io.CopyN(io.Discard, r, int64(n)); err != nil {
					return
				}
			}
			answer := answers[min(i, len(answers)-1)]
			if answer == "" {
				return
			}
			say(conn, answer)
		}
	})
}

func contentLength(head string) int {
	var n int
	_, after, ok := strings.Cut(strings.ToLower(head), "\r\ncontent-length:")
	if ok {
		_, _ = fmt.Sscan(after, &n) // no number is no body
	}
	return n
}

func readHead(r *bufio.Reader) (string, error) {
	var head strings.Builder
	for {
		line, err := r.ReadString('\n')
		if err != nil {
			return head.String(), err
		}
		head.WriteString(line)
		if line == "\r\n" {
			return head.String(), nil
		}
	}
}

type client struct {
	net.Conn
	*bufio.Reader
	t testing.TB
}

func (c *client) Read(p []byte) (int, error) { return c.Reader.Read(p) }

func dial(t testing.TB, address string) *client {
	t.Helper()
	conn, err := net.Dial("tcp", address)
	if err != nil {
		t.Fatal(err)
	}
	readUntil(conn, time.Now().Add(patience))
	t.Cleanup(func() { conn.Close() })
	return &client{conn, bufio.NewReader(conn), t}
}

func (c *client) send(s string) {
	c.t.Helper()
	if _, err := io.WriteString(c.Conn, s); err != nil {
		c.t.Fatal(err)
	}
}

// want reads as many bytes as s has and compares.
func (c *client) want(s string) {
	c.t.Helper()
	got := make([]byte, len(s))
	n, err := io.ReadFull(c.Reader, got)
	if string(got[:n]) != s {
		c.t.Fatalf("got %q, %v; want %q", got[:n], err, s)
	}
}

// rest reads to the end.
func (c *client) rest() string {
	c.t.Helper()
	got, err := io.ReadAll(c.Reader)
	if err != nil {
		return string(got) + "!" + err.Error()
	}
	return string(got)
}

const (
	get   = "GET /a HTTP/1.1\r\nHost: x\r\n\r\n"
	okay  = "HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok"
	okayC = "HTTP/1.1 200 OK\r\nContent-Length: 2\r\nConnection: close\r\n\r\nok"
)

func TestRequestsShareConnections(t *testing.T) {
	p, err := NewInbound(Options{}, "bank/accounts", scripted(t, okay))
	c := dial(t, start(t, p, err))
	for range 3 {
		c.send(get)
		c.want(okay)
	}
	c.send("POST /a HTTP/1.1\r\nHost: x\r\nContent-Length: 3\r\n\r\nabc" + get)
	c.want(okay + okay)
}

// say sends s. Whether the other side still listened shows in what it answers.
func say(w io.Writer, s string) { _, _ = io.WriteString(w, s) }

// drain reads until the other side is done, in whatever way.
func drain(r io.Reader) { _, _ = io.Copy(io.Discard, r) }

// skipHead reads a head that the test does not look at.
func skipHead(r *bufio.Reader) { _, _ = readHead(r) }
