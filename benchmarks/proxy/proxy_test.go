package proxy

import (
	"bufio"
	"context"
	"fmt"
	"net"
	"os"
	"slices"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/valyala/fasthttp"

	"txmesh/interceptor"
	"txmesh/interceptor/proxy"
)

const (
	rounds      = 5
	connections = 32
	bodyBytes   = 1 << 10
)

// TestThroughput measures the untagged path against a minimal fasthttp proxy, in turns. It runs when
// TXMESH_BENCH says for how long each of the ten turns lasts, such as 2s.
func TestThroughput(t *testing.T) {
	turn, err := time.ParseDuration(os.Getenv("TXMESH_BENCH"))
	if err != nil {
		turn = 50 * time.Millisecond // a smoke run: the figures mean nothing
	}
	backend := echo(t)
	direct := backend
	plain, ours := minimal(t, backend), untagged(t, backend, nil)
	var ds, ps, xs, ratios []float64
	for range rounds {
		ds = append(ds, rate(t, direct, turn))
		ps = append(ps, rate(t, plain, turn))
		xs = append(xs, rate(t, ours, turn))
		ratios = append(ratios, xs[len(xs)-1]/ps[len(ps)-1])
	}
	t.Logf("requests/s, medians of %d turns of %v, %d connections, %d-byte bodies both ways", rounds, turn, connections, bodyBytes)
	t.Logf("direct           %8.0f  %v", median(ds), spread(ds, "%.0f"))
	t.Logf("minimal fasthttp %8.0f  %v", median(ps), spread(ps, "%.0f"))
	t.Logf("txmesh untagged  %8.0f  %v", median(xs), spread(xs, "%.0f"))
	t.Logf("ratio of turns   %8.2f  %v", median(ratios), spread(ratios, "%.2f"))
	if err == nil && median(ratios) < 0.8 {
		t.Errorf("ratio %.2f, want at least 0.80", median(ratios))
	}
}

// BenchmarkExchange counts allocations: one connection, one request after the other. The client and the backend
// allocate nothing.
func BenchmarkExchange(b *testing.B) {
	backend := echo(b)
	for _, path := range []struct{ name, address string }{
		{"direct", backend}, {"fasthttp", minimal(b, backend)}, {"txmesh", untagged(b, backend, nil)}, {"txmesh-gate", untagged(b, backend, lookGate{})},
	} {
		b.Run(path.name, func(b *testing.B) {
			c := connect(b, path.address)
			defer c.Close()
			b.ReportAllocs()
			for b.Loop() {
				if err := c.exchange(); err != nil {
					b.Fatal(err)
				}
			}
		})
	}
}

func listen(t testing.TB) net.Listener {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	return l
}

// echo answers 1 KiB to each request, as bytes: the backend should cost little.
func echo(t testing.TB) string {
	l := listen(t)
	answer := []byte("HTTP/1.1 200 OK\r\nContent-Type: text/plain\r\nContent-Length: " +
		strconv.Itoa(bodyBytes) + "\r\n\r\n" + strings.Repeat("a", bodyBytes))
	go func() {
		for {
			conn, err := l.Accept()
			if err != nil {
				return
			}
			go func() {
				defer conn.Close()
				r := bufio.NewReader(conn)
				for skipRequest(r) == nil {
					if _, err := conn.Write(answer); err != nil {
						return
					}
				}
			}()
		}
	}()
	t.Cleanup(func() { l.Close() })
	return l.Addr().String()
}

// skipRequest reads a head and a body of bodyBytes.
func skipRequest(r *bufio.Reader) error {
	for {
		line, err := r.ReadSlice('\n')
		if err != nil {
			return err
		}
		if len(line) == 2 {
			_, err := r.Discard(bodyBytes)
			return err
		}
	}
}

// minimal is the shortest reverse proxy that fasthttp makes.
func minimal(t testing.TB, backend string) string {
	l := listen(t)
	c := &fasthttp.HostClient{Addr: backend, MaxConns: 1024}
	s := &fasthttp.Server{Handler: func(ctx *fasthttp.RequestCtx) {
		ctx.Request.Header.Del("Connection")
		if err := c.Do(&ctx.Request, &ctx.Response); err != nil {
			ctx.Error(err.Error(), fasthttp.StatusBadGateway)
		}
		ctx.Response.Header.Del("Connection")
	}}
	go func() { _ = s.Serve(l) }() // Shutdown ends it
	t.Cleanup(func() {
		if err := s.Shutdown(); err != nil {
			t.Error(err)
		}
	})
	return l.Addr().String()
}

func untagged(t testing.TB, backend string, gate proxy.Gate) string {
	l := listen(t)
	p, err := proxy.NewInbound(proxy.Options{Gate: gate}, "bench/echo", backend)
	if err != nil {
		t.Fatal(err)
	}
	go func() { _ = p.Serve(l) }() // Shutdown ends it
	t.Cleanup(func() {
		if err := p.Shutdown(context.Background()); err != nil {
			t.Error(err)
		}
	})
	return l.Addr().String()
}

// lookGate reads what a Gate reads of an untagged request, and lets it pass.
type lookGate struct{}

func (lookGate) Before(_ context.Context, _ interceptor.Port, r interceptor.Request) interceptor.Verdict {
	if r.Header("tx-context") != "" || r.Header("baggage") != "" || r.Header("traceparent") != "" ||
		r.Method() == "" || r.Host() == "" || r.Path() == "" {
		return interceptor.Verdict{Answer: &interceptor.Answer{Status: 500}}
	}
	return interceptor.Verdict{}
}

func (lookGate) After(context.Context, *interceptor.Ticket, interceptor.Response, error) *interceptor.Answer {
	panic("After without a ticket")
}

var request = []byte("POST /accounts/7/withdrawals HTTP/1.1\r\nHost: accounts.bank:8080\r\nUser-Agent: bench\r\n" +
	"Accept: */*\r\nContent-Type: application/octet-stream\r\nContent-Length: " + strconv.Itoa(bodyBytes) + "\r\n\r\n" +
	strings.Repeat("b", bodyBytes))

type conn struct {
	net.Conn
	r *bufio.Reader
}

func connect(t testing.TB, address string) *conn {
	c, err := net.Dial("tcp", address)
	if err != nil {
		t.Fatal(err)
	}
	return &conn{c, bufio.NewReader(c)}
}

// exchange sends one request and reads one response.
func (c *conn) exchange() error {
	if _, err := c.Write(request); err != nil {
		return err
	}
	first, err := c.r.ReadSlice('\n')
	if err != nil {
		return err
	}
	if string(first) != "HTTP/1.1 200 OK\r\n" {
		return fmt.Errorf("status line %q", first)
	}
	return skipRequest(c.r)
}

// rate is the requests per second of all connections together.
func rate(t testing.TB, address string, turn time.Duration) float64 {
	var all sync.WaitGroup
	var mu sync.Mutex
	total := 0
	begin := time.Now()
	for range connections {
		all.Go(func() {
			c := connect(t, address)
			defer c.Close()
			n := 0
			for time.Since(begin) < turn {
				if err := c.exchange(); err != nil {
					t.Error(err)
					return
				}
				n++
			}
			mu.Lock()
			total += n
			mu.Unlock()
		})
	}
	all.Wait()
	return float64(total) / time.Since(begin).Seconds()
}

func median(v []float64) float64 {
	s := slices.Sorted(slices.Values(v))
	return s[len(s)/2]
}

func spread(v []float64, format string) string {
	return fmt.Sprintf("("+format+" to "+format+")", slices.Min(v), slices.Max(v))
}
