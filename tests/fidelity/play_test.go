package fidelity

import (
	"bytes"
	"context"
	"errors"
	"io"
	"net"
	"strings"
	"syscall"
	"testing"
	"time"

	"txmesh/interceptor/proxy"
)

// patience bounds every wait of a test: it is reached only by a bug.
const patience = 10 * time.Second

func TestShapes(t *testing.T) {
	all := shapes(t)
	if len(all) < 60 {
		t.Errorf("%d shapes, want at least 60", len(all))
	}
	for _, s := range all {
		t.Run(s.name, func(t *testing.T) {
			t.Parallel()
			switch {
			case s.refused != "":
				t.Run("inbound", func(t *testing.T) { playRefused(t, s) })
				return
			case s.forward:
				t.Run("forward", func(t *testing.T) { play(t, s, "forward") })
			default:
				t.Run("inbound", func(t *testing.T) { play(t, s, "inbound") })
				t.Run("upstream", func(t *testing.T) { play(t, s, "upstream") })
			}
			t.Run("direct", func(t *testing.T) { play(t, s, "direct") })
		})
	}
	t.Logf("%d shapes", len(all))
}

type server interface {
	Serve(net.Listener) error
	Shutdown(context.Context) error
}

func listen(t testing.TB) net.Listener {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { l.Close() })
	return l
}

// newProxy starts a proxy in front of the address and returns its own, and its end.
func newProxy(t testing.TB, kind, address string, o proxy.Options) (string, func() error) {
	var p server
	var err error
	switch kind {
	case "direct":
		return address, func() error { return nil }
	case "inbound":
		p, err = proxy.NewInbound(o, "test/server", address)
	case "upstream":
		p, err = proxy.NewUpstream(o, "test/server", []string{address})
	case "forward":
		p, err = proxy.NewForward(o, []proxy.Route{{Host: "x", Service: "test/server", Endpoints: []string{address}}})
	}
	if err != nil {
		t.Fatal(err)
	}
	l := listen(t)
	served := make(chan error, 1)
	go func() { served <- p.Serve(l) }()
	return l.Addr().String(), func() error {
		ctx, cancel := context.WithTimeout(context.Background(), patience)
		defer cancel()
		return errors.Join(p.Shutdown(ctx), <-served)
	}
}

func dial(t testing.TB, address string) net.Conn {
	conn, err := net.Dial("tcp", address)
	if err != nil {
		t.Fatal(err)
	}
	limit(t, conn.SetDeadline, patience)
	t.Cleanup(func() { conn.Close() })
	return conn
}

// accept waits for the one connection to the server.
func accept(t testing.TB, l net.Listener) net.Conn {
	limit(t, l.(*net.TCPListener).SetDeadline, patience)
	conn, err := l.Accept()
	if err != nil {
		t.Fatal(err)
	}
	limit(t, conn.SetDeadline, patience)
	t.Cleanup(func() { conn.Close() })
	return conn
}

// declineHTTP2 is a server of HTTP/1 that is asked whether it speaks HTTP/2, and then gets the request itself.
func declineHTTP2(t *testing.T, l net.Listener, asked net.Conn) net.Conn {
	const preface = "PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"
	got := make([]byte, len(preface))
	if _, err := io.ReadFull(asked, got); err != nil || string(got) != preface {
		t.Fatalf("the server was asked %q, %v; want the preface of HTTP/2", got, err)
	}
	asked.Close()
	return accept(t, l)
}

// play runs the conversation over one client connection and one server connection.
func play(t *testing.T, s shape, kind string) {
	l := listen(t)
	address, stop := newProxy(t, kind, l.Addr().String(), proxy.Options{})
	c := dial(t, address)
	var srv net.Conn
	for i, st := range s.steps {
		if srv == nil && i > 0 {
			t.Fatal("the first step is not the client's")
		}
		if st.side == 'C' && st.act == "" {
			send(t, c, together(s.steps[i:]))
		}
		if srv == nil {
			srv = accept(t, l)
			if bytes.Contains(st.direct, []byte("Upgrade: h2c")) && kind != "direct" && kind != "forward" {
				srv = declineHTTP2(t, l, srv)
			}
		}
		near, far := c, srv
		if st.side == 'S' {
			near, far = srv, c
		}
		switch st.act {
		case "", "&":
			if st.side == 'S' {
				send(t, srv, st.direct)
			}
			want := st.behind
			if kind == "direct" {
				want = st.direct
			}
			receive(t, far, want, i)
		case "close":
			near.Close()
		case "end", "broken":
			ends(t, near, st.act == "broken")
		}
	}
	if kind == "direct" {
		// each side closes in its turn
		half(srv)
		ends(t, c, false)
		c.Close()
		ends(t, srv, false)
		return
	}
	shut := make(chan error, 1)
	go func() { shut <- stop() }()
	ends(t, c, false)
	c.Close()
	ends(t, srv, false)
	if err := <-shut; err != nil {
		t.Error(err)
	}
}

// together is what the client sends at once: its block and those marked with &.
func together(steps []step) []byte {
	all := bytes.Clone(steps[0].direct)
	for _, st := range steps[1:] {
		if st.side == 'C' && st.act == "" {
			break
		}
		if st.act == "&" {
			all = append(all, st.direct...)
		}
	}
	return all
}

func send(t *testing.T, c net.Conn, p []byte) {
	t.Helper()
	if _, err := c.Write(p); err != nil {
		t.Fatal(err)
	}
}

func receive(t *testing.T, c net.Conn, want []byte, step int) {
	t.Helper()
	got := make([]byte, len(want))
	n, err := io.ReadFull(c, got)
	if !bytes.Equal(got[:n], want) {
		t.Fatalf("step %d: got %q, %v; want %q", step+1, got[:n], err, want)
	}
}

// limit bounds what is waited for.
func limit(t testing.TB, set func(time.Time) error, d time.Duration) {
	if err := set(time.Now().Add(d)); err != nil {
		t.Error(err)
	}
}

func half(c net.Conn) {
	_ = c.(*net.TCPConn).CloseWrite() // the other side may have gone
}

// ends wants the end of the connection and nothing before it.
func ends(t *testing.T, c net.Conn, broken bool) {
	t.Helper()
	rest, err := io.ReadAll(c)
	if broken && errors.Is(err, syscall.ECONNRESET) || errors.Is(err, net.ErrClosed) {
		err = nil
	}
	if len(rest) > 0 || err != nil {
		t.Fatalf("at the end: got %q, %v; want the end", rest, err)
	}
}

// playRefused wants the error and no connection to the server.
func playRefused(t *testing.T, s shape) {
	l := listen(t)
	kind := "inbound"
	if s.forward {
		kind = "forward"
	}
	address, stop := newProxy(t, kind, l.Addr().String(), proxy.Options{})
	c := dial(t, address)
	send(t, c, s.steps[0].direct)
	half(c)
	rest, err := io.ReadAll(c)
	if err != nil && !errors.Is(err, syscall.ECONNRESET) {
		t.Fatal(err)
	}
	if n := strings.Count(string(rest), "\r\ntx-error: "); n != 1 {
		t.Errorf("got %d responses, want 1: %q", n, rest)
	}
	if !strings.Contains(string(rest), "\r\ntx-error: "+s.refused+"\r\n") {
		t.Errorf("got %q, want %s", rest, s.refused)
	}
	limit(t, l.(*net.TCPListener).SetDeadline, 0)
	if conn, err := l.Accept(); err == nil {
		conn.Close()
		t.Error("the server was called")
	}
	if err := stop(); err != nil {
		t.Error(err)
	}
}
