package proxy

import (
	"bufio"
	"context"
	"fmt"
	"io"
	"net"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"txmesh/interceptor"
)

// tally counts codes as they are told.
type tally struct {
	mu    sync.Mutex // guards codes
	codes []string
}

func (c *tally) add(code string) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.codes = append(c.codes, code)
}

func (c *tally) all() []string {
	c.mu.Lock()
	defer c.mu.Unlock()
	return slices.Clone(c.codes)
}

// awaits waits until exactly these codes were told.
func (c *tally) awaits(t *testing.T, want ...string) {
	t.Helper()
	for end := time.Now().Add(patience); time.Now().Before(end) && len(c.all()) < len(want); {
		time.Sleep(time.Millisecond)
	}
	if got := c.all(); !slices.Equal(got, want) {
		t.Errorf("told of %v, want %v", got, want)
	}
}

// endless answers with a body that does not end, and says when it can write no more.
func endless(t *testing.T, written chan<- int) string {
	return upstreamServer(t, func(conn net.Conn) {
		skipHead(bufio.NewReader(conn))
		n, _ := io.WriteString(conn, "HTTP/1.1 200 OK\r\nContent-Length: 1000000000\r\n\r\n")
		for piece := make([]byte, 64<<10); ; {
			m, err := conn.Write(piece)
			n += m
			if err != nil {
				written <- n
				return
			}
		}
	})
}

// small makes the windows of a connection small, so that little fits into the kernel's buffers.
func small(t *testing.T, c *client) {
	t.Helper()
	if err := c.Conn.(*net.TCPConn).SetReadBuffer(4 << 10); err != nil {
		t.Fatal(err)
	}
}

func TestAClientThatTakesNothingIsEnded(t *testing.T) {
	for _, tagged := range []bool{false, true} {
		t.Run(fmt.Sprintf("tagged %v", tagged), func(t *testing.T) {
			var codes tally
			o := Options{Refused: codes.add, Limits: Limits{WriteIdle: 200 * time.Millisecond}}
			g := tagAll(interceptor.Ticket{})
			if tagged {
				o.Gate = g
			}
			written := make(chan int, 1)
			p, err := NewInbound(o, "s", endless(t, written))
			c := dial(t, start(t, p, err))
			small(t, c)
			began := time.Now()
			c.send(get)
			n := <-written // the endpoint is let go
			if took := time.Since(began); took < 200*time.Millisecond {
				t.Errorf("ended after %v with %d bytes written: before the limit", took, n)
			}
			codes.awaits(t, "TXM0216")
			if tagged {
				if err := g.ends(t, 1)[0]; err == nil || !strings.Contains(err.Error(), "takes nothing") {
					t.Errorf("After was told %v", err)
				}
			}
		})
	}
}

// A client that takes a little all the time is not ended, nor is one for which nothing waits.
func TestSlowAndSilentAnswersLast(t *testing.T) {
	const pause, size = 300 * time.Millisecond, 24 << 20
	up := upstreamServer(t, func(conn net.Conn) {
		skipHead(bufio.NewReader(conn))
		say(conn, "HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\n\r\n")
		for i := range 2 {
			time.Sleep(3 * pause) // nothing waits for three times the limit
			say(conn, fmt.Sprintf("data: %d\n\n", i))
		}
		say(conn, strings.Repeat("x", size))
	})
	var codes tally
	p, err := NewInbound(Options{Refused: codes.add, Limits: Limits{WriteIdle: pause}}, "s", up)
	c := dial(t, start(t, p, err))
	c.send(get)
	want := "HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nConnection: close\r\n\r\n" +
		"data: 0\n\ndata: 1\n\n"
	c.want(want)
	got, piece := 0, make([]byte, 2<<20)
	for {
		n, err := io.ReadFull(c.Reader, piece) // the proxy waits for a while in each of these
		got += n
		if err != nil {
			break
		}
		time.Sleep(pause / 2)
	}
	if got != size || len(codes.all()) > 0 {
		t.Errorf("%d bytes came, told of %v; want %d and nothing", got, codes.all(), size)
	}
}

func TestATunnelWhoseEndTakesNothingIsEnded(t *testing.T) {
	for _, tt := range []struct {
		name    string
		slow    string // who takes nothing
		code    string
		fromApp bool
	}{
		{"client", "client", "TXM0216", true},
		{"endpoint", "endpoint", "TXM0223", false},
	} {
		t.Run(tt.name, func(t *testing.T) {
			var codes tally
			ended := make(chan struct{})
			up := upstreamServer(t, func(conn net.Conn) {
				defer close(ended)
				r := bufio.NewReader(conn)
				skipHead(r)
				say(conn, "HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\nUpgrade: x\r\n\r\n")
				if tt.fromApp {
					for piece := make([]byte, 64<<10); ; {
						if _, err := conn.Write(piece); err != nil {
							return
						}
					}
				}
				for codes.all() == nil { // it reads nothing until it is over
					time.Sleep(time.Millisecond)
				}
			})
			p, err := NewInbound(Options{Refused: codes.add, Limits: Limits{WriteIdle: 200 * time.Millisecond}}, "s", up)
			c := dial(t, start(t, p, err))
			small(t, c)
			c.send("GET / HTTP/1.1\r\nHost: x\r\nConnection: Upgrade\r\nUpgrade: x\r\n\r\n")
			c.want("HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\nUpgrade: x\r\n\r\n")
			if !tt.fromApp {
				for piece := make([]byte, 64<<10); ; {
					if _, err := c.Conn.Write(piece); err != nil {
						break
					}
				}
			}
			<-ended
			codes.awaits(t, tt.code)
		})
	}
}

func TestASilentBodyIsEnded(t *testing.T) {
	up := upstreamServer(t, func(conn net.Conn) { drain(conn) })
	var codes tally
	p, err := NewInbound(Options{Refused: codes.add, Limits: Limits{BodyIdle: 50 * time.Millisecond}}, "s", up)
	c := dial(t, start(t, p, err))
	c.send("POST / HTTP/1.1\r\nHost: x\r\nContent-Length: 100\r\n\r\n")
	for range 5 { // slow is not silent
		time.Sleep(20 * time.Millisecond)
		c.send("x")
	}
	head, err := readHead(c.Reader)
	if err != nil || !strings.HasPrefix(head, "HTTP/1.1 408 ") || !strings.Contains(head, "tx-error: TXM0217") {
		t.Errorf("got %q, %v", head, err)
	}
	codes.awaits(t, "TXM0217")
}

// The wait for the client while the answer is made is no part of the body.
func TestAnAnswerMayBeSlowerThanABodyMay(t *testing.T) {
	up := upstreamServer(t, func(conn net.Conn) {
		r := bufio.NewReader(conn)
		skipHead(r)
		_, _ = io.CopyN(io.Discard, r, 3)
		time.Sleep(150 * time.Millisecond)
		say(conn, okay)
	})
	p, err := NewInbound(Options{Limits: Limits{BodyIdle: 20 * time.Millisecond, WriteIdle: 20 * time.Millisecond}}, "s", up)
	c := dial(t, start(t, p, err))
	c.send("POST / HTTP/1.1\r\nHost: x\r\nContent-Length: 3\r\n\r\n")
	c.send("abc")
	c.want(okay)
}

// The time of a body is over with the body: a client that goes away later is seen as before.
func TestAClientThatGoesAfterASlowBodyIsSeen(t *testing.T) {
	got := make(chan struct{})
	up := upstreamServer(t, func(conn net.Conn) {
		r := bufio.NewReader(conn)
		skipHead(r)
		_, _ = io.CopyN(io.Discard, r, 3) // the proxy tells if less comes
		close(got)
		drain(r) // no answer, ever
	})
	g := tagAll(interceptor.Ticket{})
	p, err := NewInbound(Options{Gate: g, Limits: Limits{BodyIdle: 300 * time.Millisecond}}, "s", up)
	c := dial(t, start(t, p, err))
	c.send("POST / HTTP/1.1\r\nHost: x\r\nContent-Length: 3\r\n\r\n")
	time.Sleep(50 * time.Millisecond) // so that the body streams
	c.send("abc")
	<-got
	time.Sleep(400 * time.Millisecond) // longer than a body may be silent
	c.Close()
	if err := g.ends(t, 1)[0]; err == nil || !strings.Contains(err.Error(), "client went away") {
		t.Errorf("After was told %v", err)
	}
}

func TestAnEndpointThatTakesNothingOfABodyIsEnded(t *testing.T) {
	var codes tally
	up := upstreamServer(t, func(conn net.Conn) {
		for codes.all() == nil {
			time.Sleep(time.Millisecond)
		}
	})
	p, err := NewInbound(Options{Refused: codes.add, Limits: Limits{WriteIdle: 100 * time.Millisecond}}, "s", up)
	c := dial(t, start(t, p, err))
	c.send("POST / HTTP/1.1\r\nHost: x\r\nContent-Length: 1000000000\r\n\r\n")
	go func() { _, _ = io.Copy(c.Conn, io.LimitReader(zeros{}, 1e9)) }() // until it breaks
	head, err := readHead(c.Reader)
	if err != nil || !strings.HasPrefix(head, "HTTP/1.1 504 ") {
		t.Errorf("got %q, %v", head, err)
	}
	codes.awaits(t, "TXM0223")
}

type zeros struct{}

func (zeros) Read(p []byte) (int, error) { return len(p), nil }

func TestALoopIsRefused(t *testing.T) {
	var codes tally
	o := Options{Refused: codes.add, Dial: func(context.Context, string, string) (net.Conn, error) {
		return nil, fmt.Errorf("dial x: %w", ErrLoop)
	}}
	p, err := NewForward(o, nil)
	address := start(t, p, err)
	for _, request := range []string{"GET http://x/ HTTP/1.1\r\nHost: x\r\n\r\n", "CONNECT x:443 HTTP/1.1\r\nHost: x:443\r\n\r\n"} {
		c := dial(t, address)
		c.send(request)
		if head, err := readHead(c.Reader); err != nil || !strings.HasPrefix(head, "HTTP/1.1 508 Loop Detected\r\n") {
			t.Errorf("%q got %q, %v", request, head, err)
		}
	}
	codes.awaits(t, "TXM0215", "TXM0215")
}

// Beyond those that are told, clients are closed at once: a flood must not cost a goroutine each for long.
func TestAFloodOfConnectionsIsCounted(t *testing.T) {
	var codes tally
	p, err := NewInbound(Options{Refused: codes.add, Limits: Limits{Conns: 1}}, "s", scripted(t, okay))
	address := start(t, p, err)
	first := dial(t, address)
	first.send(get)
	first.want(okay)
	const flood = 2 * toldMax
	var conns []net.Conn
	for range flood {
		conn, err := net.Dial("tcp", address)
		if err != nil {
			continue // closed so soon that it never was one here; it counts there
		}
		conns = append(conns, conn)
	}
	codes.awaits(t, slices.Repeat([]string{"TXM0210"}, flood)...)
	for _, c := range conns {
		c.Close()
	}
	first.send(get)
	first.want(okay)
}
