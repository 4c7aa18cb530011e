package proxy

import (
	"bufio"
	"context"
	"errors"
	"io"
	"net"
	"strings"
	"testing"
	"time"

	"txmesh/interceptor"
)

func TestGateSeesTheRequest(t *testing.T) {
	g := newGate()
	var seen []string
	g.before = func(r interceptor.Request) interceptor.Verdict {
		seen = append(seen, r.Method(), r.Host(), r.Path(), r.Query(), r.Header("X-A"), strings.Join(r.Headers("x-a"), "+"))
		r.EachHeader(func(name, value string) { seen = append(seen, name+"="+value) })
		r.SetHeader("x-a", "3\r\nEvil: 1")
		r.SetHeader("Tx-Id", "t")
		r.DelHeader("X-B")
		r.SetHeader("Content-Length", "0")
		return interceptor.Verdict{}
	}
	var got string
	trusted := func(remote net.Addr) bool { return strings.HasPrefix(remote.String(), "127.0.0.1:") }
	p, err := NewInbound(Options{Gate: g, Trusted: trusted}, "bank/accounts", upstreamServer(t, func(conn net.Conn) {
		got, _ = readHead(bufio.NewReader(conn))
		if _, err := io.WriteString(conn, okay); err != nil {
			t.Error(err)
		}
	}))
	c := dial(t, start(t, p, err))
	c.send("POST /p%20q/r?s=t HTTP/1.1\r\nhost: h:1\r\nX-a:1\r\nX-B: b\r\nX-A: 2 \r\nConnection: Secret\r\nsecret: s\r\nContent-Length: 0\r\n\r\n")
	c.want(okay)
	want := []string{"POST", "h:1", "/p%20q/r", "s=t", "1", "1+2", "host=h:1", "X-a=1", "X-B=b", "X-A=2", "Content-Length=0"}
	if strings.Join(seen, "|") != strings.Join(want, "|") {
		t.Errorf("the gate saw %q, want %q", seen, want)
	}
	sent := "POST /p%20q/r?s=t HTTP/1.1\r\nhost: h:1\r\nx-a: 3  Evil: 1\r\nContent-Length: 0\r\nTx-Id: t\r\n\r\n"
	if got != sent {
		t.Errorf("sent %q, want %q", got, sent)
	}
	if p := g.ports[0]; p.Service != "bank/accounts" || p.Direction != interceptor.Inbound || !p.Trusted {
		t.Errorf("port %+v", g.ports[0])
	}
}

func TestGateAnswersItself(t *testing.T) {
	g := newGate()
	g.before = func(interceptor.Request) interceptor.Verdict {
		return interceptor.Verdict{Answer: &interceptor.Answer{Status: 409, Header: [][2]string{{"tx-error", "TXM0300"}}, Body: []byte("no")}}
	}
	p, err := NewInbound(Options{Gate: g}, "s", "127.0.0.1:1")
	c := dial(t, start(t, p, err))
	c.send("POST /a HTTP/1.1\r\nHost: x\r\nContent-Length: 3\r\n\r\nabc")
	c.want("HTTP/1.1 409 Conflict\r\ntx-error: TXM0300\r\nContent-Length: 2\r\n\r\nno")
	c.send("HEAD /a HTTP/1.1\r\nHost: x\r\n\r\n")
	c.want("HTTP/1.1 409 Conflict\r\ntx-error: TXM0300\r\nContent-Length: 2\r\n\r\n")
	c.send("POST /a HTTP/1.1\r\nHost: x\r\nContent-Length: 3\r\n\r\n")
	c.want("HTTP/1.1 409 Conflict\r\ntx-error: TXM0300\r\nContent-Length: 2\r\nConnection: close\r\n\r\nno")
	if got := c.rest(); got != "" {
		t.Errorf("then %q, want the end: the body of the request never came", got)
	}
}

func TestGateReadsBodies(t *testing.T) {
	const chunked = "Transfer-Encoding: chunked\r\n\r\n3;x=y\r\nabc\r\n2\r\nde\r\n0\r\nT: v\r\n\r\n"
	for _, tt := range []struct {
		name string
		max  int
		want string // "": too large
	}{
		{"whole", 5, "abcde"},
		{"too large", 4, ""},
		{"far too large", 0, ""},
	} {
		t.Run(tt.name, func(t *testing.T) {
			g := tagAll(interceptor.Ticket{Hold: true})
			tag := g.before
			check := func(body []byte, err error) {
				if tt.want == "" && !errors.Is(err, interceptor.ErrBodyTooLarge) || string(body) != tt.want {
					t.Errorf("body %q, %v; want %q", body, err, tt.want)
				}
			}
			g.before = func(r interceptor.Request) interceptor.Verdict {
				check(r.Body(tt.max))
				check(r.Body(tt.max))
				return tag(r)
			}
			g.after = func(_ *interceptor.Ticket, res interceptor.Response, err error) *interceptor.Answer {
				if err != nil {
					t.Error(err)
					return nil
				}
				check(res.Body(tt.max))
				res.SetHeader("X-New", "1")
				return nil
			}
			got := make(chan string, 1)
			p, err := NewInbound(Options{Gate: g}, "s", upstreamServer(t, func(conn net.Conn) {
				p := make([]byte, len("POST / HTTP/1.1\r\nHost: x\r\n"+chunked))
				if _, err := io.ReadFull(conn, p); err != nil {
					t.Error(err)
				}
				got <- string(p)
				say(conn, "HTTP/1.1 200 OK\r\n"+chunked)
			}))
			c := dial(t, start(t, p, err))
			c.send("POST / HTTP/1.1\r\nHost: x\r\n" + chunked)
			c.want("HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\nX-New: 1\r\n\r\n" + strings.SplitN(chunked, "\r\n\r\n", 2)[1])
			if sent := <-got; sent != "POST / HTTP/1.1\r\nHost: x\r\n"+chunked {
				t.Errorf("sent %q", sent)
			}
			g.ends(t, 1)
		})
	}
}

func TestGateWelcomesTheBodyItReads(t *testing.T) {
	g := newGate()
	g.before = func(r interceptor.Request) interceptor.Verdict {
		if b, err := r.Body(10); string(b) != "abc" || err != nil {
			t.Errorf("body %q, %v", b, err)
		}
		return interceptor.Verdict{}
	}
	got := make(chan string, 1)
	p, err := NewInbound(Options{Gate: g}, "s", upstreamServer(t, func(conn net.Conn) {
		r := bufio.NewReader(conn)
		head, _ := readHead(r)
		got <- head
		say(conn, okay)
	}))
	c := dial(t, start(t, p, err))
	c.send("POST / HTTP/1.1\r\nHost: x\r\nExpect: 100-continue\r\nContent-Length: 3\r\n\r\n")
	c.want("HTTP/1.1 100 Continue\r\n\r\n")
	c.send("abc")
	c.want(okay)
	if head := <-got; head != "POST / HTTP/1.1\r\nHost: x\r\nContent-Length: 3\r\n\r\n" {
		t.Errorf("sent %q: the client was already told to continue", head)
	}
}

func TestGateReplacesAHeldResponse(t *testing.T) {
	g := tagAll(interceptor.Ticket{Hold: true})
	g.after = func(*interceptor.Ticket, interceptor.Response, error) *interceptor.Answer {
		return &interceptor.Answer{Status: 409, Body: []byte("aborted")}
	}
	conns := 0
	p, err := NewInbound(Options{Gate: g}, "s", upstreamServer(t, func(conn net.Conn) {
		conns++
		for r := bufio.NewReader(conn); ; say(conn, "HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n") {
			if _, err := readHead(r); err != nil {
				return
			}
		}
	}))
	c := dial(t, start(t, p, err))
	for range 2 {
		c.send(get)
		c.want("HTTP/1.1 409 Conflict\r\nContent-Length: 7\r\n\r\naborted")
	}
	g.ends(t, 2)
	if conns != 1 {
		t.Errorf("%d connections to the upstream, want 1", conns)
	}
}

// TestAfterComesOnce walks through every way in which a tagged exchange can end.
func TestAfterComesOnce(t *testing.T) {
	const half = "HTTP/1.1 200 OK\r\nContent-Length: 4\r\n\r\nok"
	for _, tt := range []struct {
		name   string
		ticket interceptor.Ticket
		answer string // of the upstream; "": it closes
		want   string // code, or "" for a response
		client string // start of what the client gets
	}{
		{"response", interceptor.Ticket{}, okayC, "", "HTTP/1.1 200"},
		{"held response", interceptor.Ticket{Hold: true}, okayC, "", "HTTP/1.1 200"},
		{"until close", interceptor.Ticket{}, "HTTP/1.1 200 OK\r\n\r\nall", "", "HTTP/1.1 200"},
		{"closed", interceptor.Ticket{}, "", "TXM0221", "HTTP/1.1 502"},
		{"closed held", interceptor.Ticket{Hold: true}, "", "TXM0221", "HTTP/1.1 502"},
		{"broken body", interceptor.Ticket{}, half, "TXM0221", "HTTP/1.1 200"},
		{"malformed head", interceptor.Ticket{}, "HTTP/1.1 2x0 OK\r\n\r\n", "TXM0222", "HTTP/1.1 502"},
		{"malformed chunk", interceptor.Ticket{}, "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\nxyz", "TXM0222", "HTTP/1.1 200"},
		{"nobody listens", interceptor.Ticket{Endpoint: "127.0.0.1:1"}, okay, "TXM0220", "HTTP/1.1 503"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			g := tagAll(tt.ticket)
			p, err := NewInbound(Options{Gate: g}, "s", upstreamServer(t, func(conn net.Conn) {
				if _, err := readHead(bufio.NewReader(conn)); err == nil {
					say(conn, tt.answer)
				}
			}))
			c := dial(t, start(t, p, err))
			c.send("GET /a HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n")
			if got := c.rest(); !strings.HasPrefix(got, tt.client) {
				t.Errorf("client got %q, want %q...", got, tt.client)
			}
			if got := code(g.ends(t, 1)[0]); got != tt.want {
				t.Errorf("After got %q, want %q", got, tt.want)
			}
		})
	}
}

func code(err error) string {
	var e *Error
	if errors.As(err, &e) {
		return e.Code()
	}
	if err != nil {
		return err.Error()
	}
	return ""
}

func TestTicketTimesOut(t *testing.T) {
	g := tagAll(interceptor.Ticket{Timeout: 30 * time.Millisecond})
	p, err := NewInbound(Options{Gate: g}, "s", upstreamServer(t, func(conn net.Conn) { drain(conn) }))
	c := dial(t, start(t, p, err))
	c.send("GET /a HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n")
	if got := c.rest(); !strings.HasPrefix(got, "HTTP/1.1 504 ") {
		t.Errorf("got %q", got)
	}
	if got := code(g.ends(t, 1)[0]); got != "TXM0223" {
		t.Errorf("After got %q", got)
	}
}

// TestHeldTimeIsTheGates lets After take longer than the ticket gives the upstream, whose body comes later still.
func TestHeldTimeIsTheGates(t *testing.T) {
	g := tagAll(interceptor.Ticket{Hold: true, Timeout: 50 * time.Millisecond})
	release := make(chan struct{})
	g.after = func(*interceptor.Ticket, interceptor.Response, error) *interceptor.Answer {
		<-time.After(80 * time.Millisecond)
		close(release)
		return nil
	}
	p, err := NewInbound(Options{Gate: g}, "s", upstreamServer(t, func(conn net.Conn) {
		skipHead(bufio.NewReader(conn))
		say(conn, okay[:len(okay)-2])
		<-release
		say(conn, "ok")
	}))
	c := dial(t, start(t, p, err))
	c.send(get)
	c.want(okay)
}

// TestAfterComesBeforeTheLastByte streams two pieces: the first at once, the last when After has returned.
func TestAfterComesBeforeTheLastByte(t *testing.T) {
	g := tagAll(interceptor.Ticket{})
	first, seen := make(chan struct{}), false
	g.after = func(_ *interceptor.Ticket, res interceptor.Response, err error) *interceptor.Answer {
		<-time.After(50 * time.Millisecond) // for the bytes to overtake, if they could
		if _, bodyErr := res.Body(10); err != nil || res.Status() != 200 || !errors.Is(bodyErr, errStreamed) {
			t.Errorf("After got %v, %v, %v", res.Status(), err, bodyErr)
		}
		seen = true
		return &interceptor.Answer{Status: 500} // too late to replace anything
	}
	p, err := NewInbound(Options{Gate: g}, "s", upstreamServer(t, func(conn net.Conn) {
		skipHead(bufio.NewReader(conn))
		say(conn, okay[:len(okay)-1])
		<-first
		say(conn, okay[len(okay)-1:])
	}))
	c := dial(t, start(t, p, err))
	c.send(get)
	c.want(okay[:len(okay)-1])
	close(first)
	c.want(okay[len(okay)-1:])
	g.mu.Lock()
	defer g.mu.Unlock()
	if !seen {
		t.Error("the client saw the end before After had returned")
	}
}

// TestTicketTimesOutOnAClientThatDoesNotRead fills all buffers with a streaming response.
func TestTicketTimesOutOnAClientThatDoesNotRead(t *testing.T) {
	g := tagAll(interceptor.Ticket{Timeout: 100 * time.Millisecond})
	p, err := NewInbound(Options{Gate: g}, "s", upstreamServer(t, func(conn net.Conn) {
		skipHead(bufio.NewReader(conn))
		say(conn, "HTTP/1.1 200 OK\r\nContent-Length: 1000000000\r\n\r\n")
		for piece := make([]byte, 1<<20); ; {
			if _, err := conn.Write(piece); err != nil {
				return
			}
		}
	}))
	c := dial(t, start(t, p, err))
	c.send(get)
	if got := code(g.ends(t, 1)[0]); got != "TXM0223" && got != "TXM0224" {
		t.Errorf("After got %q", got)
	}
}

// TestClientGoes closes the client's connection while the upstream is silent.
func TestClientGoes(t *testing.T) {
	for _, outlive := range []bool{false, true} {
		t.Run(map[bool]string{false: "cancels", true: "does not cancel"}[outlive], func(t *testing.T) {
			g := tagAll(interceptor.Ticket{Outlive: outlive})
			asked, ended := make(chan struct{}), make(chan struct{})
			p, err := NewInbound(Options{Gate: g}, "s", upstreamServer(t, func(conn net.Conn) {
				r := bufio.NewReader(conn)
				skipHead(r)
				close(asked)
				if outlive {
					<-ended
					say(conn, okay)
					return
				}
				if _, err := r.ReadByte(); err == nil {
					t.Error("upstream read a byte, want the end")
				}
			}))
			c := dial(t, start(t, p, err))
			c.send(get)
			<-asked
			c.Close()
			if outlive {
				<-time.After(5 * watchAfter) // the end is seen, and must not matter
				close(ended)
			}
			if got, want := code(g.ends(t, 1)[0]), map[bool]string{false: "TXM0224"}[outlive]; got != want {
				t.Errorf("After got %q, want %q", got, want)
			}
		})
	}
}

func TestUntaggedRequestsMoveOn(t *testing.T) {
	good := scripted(t, okay)
	p, err := NewUpstream(Options{}, "bank/accounts", []string{"127.0.0.1:1", good, "127.0.0.1:2"})
	c := dial(t, start(t, p, err))
	for range 6 {
		c.send(get)
		c.want(okay)
	}
	g := tagAll(interceptor.Ticket{})
	p, err = NewUpstream(Options{Gate: g}, "bank/accounts", []string{"127.0.0.1:1", good})
	c = dial(t, start(t, p, err))
	c.send(get)
	c.want("HTTP/1.1 503 ")
	var e *Error
	if err := g.ends(t, 1)[0]; !errors.As(err, &e) || !e.NotSent() || e.Endpoint != "127.0.0.1:1" {
		t.Errorf("After got %v", err)
	}
}

func TestShutdownLetsExchangesEnd(t *testing.T) {
	asked, release := make(chan struct{}), make(chan struct{})
	p, err := NewInbound(Options{}, "s", upstreamServer(t, func(conn net.Conn) {
		skipHead(bufio.NewReader(conn))
		close(asked)
		<-release
		say(conn, okay)
	}))
	address := start(t, p, err)
	idle, busy := dial(t, address), dial(t, address)
	busy.send(get)
	<-asked
	down := make(chan error)
	go func() { down <- p.Shutdown(context.Background()) }()
	if got := idle.rest(); got != "" {
		t.Errorf("idle connection got %q, want the end", got)
	}
	close(release)
	busy.want("HTTP/1.1 200 OK\r\nContent-Length: 2\r\nConnection: close\r\n\r\nok")
	busy.Close()
	if err := <-down; err != nil {
		t.Error(err)
	}
}

func TestShutdownCutsWhatLasts(t *testing.T) {
	g := tagAll(interceptor.Ticket{Outlive: true})
	asked := make(chan struct{})
	p, err := NewInbound(Options{Gate: g}, "s", upstreamServer(t, func(conn net.Conn) {
		skipHead(bufio.NewReader(conn))
		close(asked)
		drain(conn) // until it is cut
	}))
	c := dial(t, start(t, p, err))
	c.send(get)
	<-asked
	ctx, cancel := context.WithCancel(context.Background())
	cancel()
	if err := p.Shutdown(ctx); err == nil || err.Error() != "shut down: 1 connections cut: context canceled" {
		t.Errorf("Shutdown: %v", err)
	}
	if got := code(g.ends(t, 1)[0]); got != "TXM0221" {
		t.Errorf("After got %q", got)
	}
}

func TestShutdownCutsTunnels(t *testing.T) {
	ended := make(chan struct{})
	up := upstreamServer(t, func(conn net.Conn) {
		drain(conn)
		close(ended)
	})
	p, err := NewForward(Options{}, nil)
	c := dial(t, start(t, p, err))
	c.send("CONNECT " + up + " HTTP/1.1\r\nHost: " + up + "\r\n\r\n")
	c.want("HTTP/1.1 200 Connection Established\r\n\r\n")
	ctx, cancel := context.WithCancel(context.Background())
	cancel()
	if err := p.Shutdown(ctx); err == nil || err.Error() != "shut down: 1 connections cut: context canceled" {
		t.Errorf("Shutdown: %v", err)
	}
	<-ended
	c.rest()
}
