package fidelity

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"net"
	"net/http"
	"runtime"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"txmesh/interceptor"
	"txmesh/interceptor/proxy"
)

// TestChaos lets clients and a server that misbehave at random meet through the proxy. A whole response must be the one
// to its request, each ticket must get its After, and nothing may be left running.
func TestChaos(t *testing.T) {
	const clients, exchanges = 16, 120
	before := runtime.NumGoroutine()
	t.Run("exchanges", func(t *testing.T) {
		seed := rand.Uint64()
		t.Logf("seed %d", seed)
		g := new(chaosGate)
		address, stop := newProxy(t, "inbound", serveRaw(t, func(c net.Conn, r *bufio.Reader) { misbehave(c, r) }),
			proxy.Options{Gate: g, Limits: proxy.Limits{BufferTime: 100 * time.Millisecond}})
		var all sync.WaitGroup
		var whole atomic.Int64
		for i := range clients {
			all.Go(func() {
				rnd := rand.New(rand.NewPCG(seed, uint64(i)))
				c := &chaosClient{t: t, address: address, rnd: rnd}
				for n := range exchanges {
					if c.exchange(fmt.Sprintf("%d-%d", i, n)) {
						whole.Add(1)
					}
				}
				c.drop()
			})
		}
		all.Wait()
		if err := stop(); err != nil {
			t.Error(err)
		}
		if g.tickets.Load() != g.afters.Load() {
			t.Errorf("%d tickets, %d times After", g.tickets.Load(), g.afters.Load())
		}
		t.Logf("%d exchanges, %d whole, %d tickets", clients*exchanges, whole.Load(), g.tickets.Load())
		if n := whole.Load(); n < clients*exchanges/4 {
			t.Errorf("%d whole responses: the test proves little", n)
		}
	})
	for deadline := time.Now().Add(patience); runtime.NumGoroutine() > before; runtime.Gosched() {
		if time.Now().After(deadline) {
			t.Fatalf("%d goroutines, %d before", runtime.NumGoroutine(), before)
		}
	}
}

// chaosGate tags by what the path says.
type chaosGate struct{ tickets, afters atomic.Int64 }

func (g *chaosGate) Before(_ context.Context, _ interceptor.Port, r interceptor.Request) interceptor.Verdict {
	q := r.Query()
	if strings.Contains(q, "read") {
		if _, err := r.Body(1 << 10); err != nil && !errors.Is(err, interceptor.ErrBodyTooLarge) {
			return interceptor.Verdict{Answer: &interceptor.Answer{Status: 400}}
		}
	}
	if !strings.Contains(q, "tag") {
		return interceptor.Verdict{}
	}
	g.tickets.Add(1)
	return interceptor.Verdict{Ticket: &interceptor.Ticket{
		Hold: strings.Contains(q, "hold"), Outlive: strings.Contains(q, "outlive"), Timeout: 2 * time.Second,
	}}
}

func (g *chaosGate) After(_ context.Context, _ *interceptor.Ticket, res interceptor.Response, err error) *interceptor.Answer {
	g.afters.Add(1)
	if err == nil {
		_, _ = res.Body(2 << 10) // streamed, too large, broken or whole: all must go on
	}
	return nil
}

// misbehave answers requests in the way that their query asks for.
func misbehave(c net.Conn, r *bufio.Reader) {
	for {
		request, err := http.ReadRequest(r)
		if err != nil {
			return
		}
		q, id := request.URL.RawQuery, request.Header.Get("Id")
		if strings.Contains(q, "slow") {
			<-time.After(25 * time.Millisecond) // longer than the proxy waits before it watches the client
		}
		if !strings.Contains(q, "early") {
			if _, err := io.Copy(io.Discard, request.Body); err != nil {
				return
			}
		}
		if strings.Contains(q, "interim") {
			say(c, "HTTP/1.1 103 Early Hints\r\nLink: <a>\r\n\r\n")
		}
		body := id + "|" + strings.Repeat(id, len(q)*len(q)) + "|" + id
		switch {
		case strings.Contains(q, "gone"):
			return
		case strings.Contains(q, "half"):
			say(c, fmt.Sprintf("HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n%s", len(body), body[:len(body)/2]))
			return
		case strings.Contains(q, "open"):
			say(c, "HTTP/1.1 200 OK\r\n\r\n"+body)
			return
		case strings.Contains(q, "chunks"):
			say(c, fmt.Sprintf("HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n1\r\n%s\r\n%x;a\r\n%s\r\n0\r\nT: %s\r\n\r\n", body[:1], len(body)-1, body[1:], id))
		default:
			say(c, fmt.Sprintf("HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n%s", len(body), body))
		}
		if _, err := io.Copy(io.Discard, request.Body); err != nil {
			return
		}
	}
}

// chaosClient keeps its connection as long as it may.
type chaosClient struct {
	t       *testing.T
	address string
	rnd     *rand.Rand
	conn    net.Conn
	r       *bufio.Reader
}

func (c *chaosClient) drop() {
	if c.conn != nil {
		c.conn.Close()
		c.conn = nil
	}
}

// exchange sends a request and reports whether its whole response came back.
func (c *chaosClient) exchange(id string) bool {
	if c.conn == nil {
		conn, err := net.Dial("tcp", c.address)
		if err != nil {
			c.t.Error(err)
			return false
		}
		limit(c.t, conn.SetDeadline, patience)
		c.conn, c.r = conn, bufio.NewReader(conn)
	}
	var q []string
	for _, word := range []string{"slow", "early", "interim", "gone", "half", "open", "chunks", "read", "tag", "hold", "outlive"} {
		if c.rnd.IntN(5) == 0 || word == "tag" && c.rnd.IntN(2) == 0 {
			q = append(q, word)
		}
	}
	if !c.request(id, strings.Join(q, "+")) {
		c.drop()
		return false
	}
	response, err := http.ReadResponse(c.r, nil)
	for err == nil && response.StatusCode == 103 {
		response, err = http.ReadResponse(c.r, nil)
	}
	if err != nil {
		c.drop()
		return false
	}
	if c.rnd.IntN(10) == 0 {
		c.drop() // with the response half read
		return false
	}
	body, err := io.ReadAll(response.Body)
	if response.Close || err != nil {
		c.drop()
	}
	if err != nil || response.StatusCode != 200 {
		return false
	}
	if s := string(body); !strings.HasPrefix(s, id+"|") || !strings.HasSuffix(s, "|"+id) {
		c.t.Errorf("request %s got the response %.80q", id, s)
	}
	return true
}

// request sends one in one piece or in several, or not to its end.
func (c *chaosClient) request(id, q string) bool {
	body := strings.Repeat("b", 1+c.rnd.IntN(3000))
	if c.rnd.IntN(20) == 0 {
		body = strings.Repeat("b", 1<<20)
	}
	head := fmt.Sprintf("POST /?%s HTTP/1.1\r\nHost: x\r\nId: %s\r\n", q, id)
	switch c.rnd.IntN(3) {
	case 0:
		head += fmt.Sprintf("Content-Length: %d\r\n\r\n", len(body))
	case 1:
		head += "Transfer-Encoding: chunked\r\n\r\n"
		body = fmt.Sprintf("%x\r\n%s\r\n0\r\n\r\n", len(body), body)
	default:
		head, body = head+"\r\n", ""
	}
	all := head + body
	for len(all) > 0 {
		n := len(all)
		if c.rnd.IntN(3) == 0 {
			n = 1 + c.rnd.IntN(n)
		}
		if _, err := io.WriteString(c.conn, all[:n]); err != nil {
			return false
		}
		if all = all[n:]; len(all) > 0 && c.rnd.IntN(20) == 0 {
			return false
		}
	}
	return c.rnd.IntN(20) != 0 // or go away without waiting
}
