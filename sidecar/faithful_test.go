package sidecar

import (
	"bytes"
	"errors"
	"io"
	"net"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"txmesh/sidecar/identity/identitytest"
)

// rawApp reads a request up to its last word and answers with the bytes given; cut breaks the connection then.
type rawApp struct {
	net.Listener
	answer string
	cut    bool

	mu  sync.Mutex // guards saw
	saw []byte
}

func newRawApp(t *testing.T, answer string, cut bool) *rawApp {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	a := &rawApp{Listener: l, answer: answer, cut: cut}
	var open sync.WaitGroup
	open.Go(func() {
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			open.Go(func() { a.serve(c) })
		}
	})
	t.Cleanup(func() { l.Close(); open.Wait() })
	return a
}

func (a *rawApp) serve(c net.Conn) {
	defer c.Close()
	var got []byte
	buf := make([]byte, 4096)
	for !bytes.HasSuffix(got, []byte("END\r\n0\r\n\r\n")) {
		n, err := c.Read(buf)
		if err != nil {
			return
		}
		got = append(got, buf[:n]...)
	}
	a.mu.Lock()
	a.saw = got
	a.mu.Unlock()
	if _, err := io.WriteString(c, a.answer); err != nil {
		return
	}
	if a.cut {
		time.Sleep(50 * time.Millisecond) // the answer is on its way before the reset
		_ = c.(*net.TCPConn).SetLinger(0) // Close follows
	}
}

// through sends a request from a service to another, with a sidecar on both sides, and returns what arrived there and
// what came back.
func through(t *testing.T, services string, answer string, cut bool) (there, back string, end error) {
	t.Helper()
	app := newRawApp(t, answer, cut)
	a := identitytest.New(t, "mesh.test")
	at := a.Serve()
	callee := config(t, "bank/accounts", app.Addr().String())
	proven(t, a, at, &callee)
	callee.Identity.Services = services
	r := start(t, callee)
	caller := config(t, "bank/transfers", newService(t).address())
	proven(t, a, at, &caller)
	caller.Identity.Services = services
	caller.Peers = []string{r.Peer}
	caller.Upstreams = []Upstream{{Service: "bank/accounts", Listen: "127.0.0.1:0", To: []string{r.Inbound}}}
	if services == "strict" {
		eventually(t, "the callee is ready", func() bool { return r.identity.Ready() == nil })
	}
	from := start(t, caller)
	if services == "strict" && !from.directory.TLSAt(r.Inbound) {
		t.Fatal("the caller does not know that the callee takes TLS")
	}
	c, err := net.Dial("tcp", from.Upstreams["bank/accounts"])
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	if err := c.SetDeadline(time.Now().Add(10 * time.Second)); err != nil {
		t.Fatal(err)
	}
	for _, part := range []string{"POST /a%2Fb/../c?x=1&&y HTTP/1.1\r\nhOsT: accounts\r\nX-Odd:   two  words \r\nx-ODD: again\r\n",
		"Transfer-Encoding: chunked\r\n\r\n3;ext=1\r\nabc\r\n", "3\r\nEND\r\n0\r\n\r\n"} {
		if _, err := io.WriteString(c, part); err != nil {
			t.Fatal(err)
		}
		time.Sleep(10 * time.Millisecond) // so that it travels in parts
	}
	got, err := io.ReadAll(c)
	app.mu.Lock()
	defer app.mu.Unlock()
	return string(app.saw), string(got), err
}

func TestTLSChangesNoByte(t *testing.T) {
	const answer = "HTTP/1.1 200 Quite OK\r\nX-wEiRd:  v \r\nset-cookie: a\r\nSet-Cookie: b\r\n\r\nup to the end"
	plainThere, plainBack, err := through(t, "off", answer, false)
	if err != nil || plainThere == "" || !strings.Contains(plainBack, "up to the end") {
		t.Fatalf("plain: there %q, back %q, %v", plainThere, plainBack, err)
	}
	there, back, err := through(t, "strict", answer, false)
	if err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff(plainThere, there); diff != "" {
		t.Errorf("what arrived differs (-plain +tls):\n%s", diff)
	}
	if diff := cmp.Diff(plainBack, back); diff != "" {
		t.Errorf("what came back differs (-plain +tls):\n%s", diff)
	}
}

// An answer without a length that breaks off must not look like a whole one, on no part of its way.
func TestTLSHidesNoBrokenAnswer(t *testing.T) {
	for _, services := range []string{"off", "strict"} {
		_, back, err := through(t, services, "HTTP/1.1 200 OK\r\n\r\nup to", true)
		if err == nil || errors.Is(err, io.EOF) || strings.Contains(err.Error(), "timeout") {
			t.Errorf("service-mtls %s: a broken answer ends with %v after %q, want a reset", services, err, back)
		}
	}
}
