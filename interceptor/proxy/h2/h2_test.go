package h2_test

import (
	"context"
	"errors"
	"io"
	"net"
	"net/http"
	"strings"
	"sync"
	"testing"
	"time"

	"txmesh/interceptor"
	"txmesh/interceptor/proxy"
)

// patience bounds every wait of a test: it is reached only by a bug.
const patience = 10 * time.Second

// gate is a Gate made of two functions, which counts tickets and their ends.
type gate struct {
	before func(r interceptor.Request) interceptor.Verdict
	after  func(res interceptor.Response, err error) *interceptor.Answer

	mu    sync.Mutex
	given map[*interceptor.Ticket]int // by ticket, how often After came
}

func newGate() *gate {
	return &gate{given: map[*interceptor.Ticket]int{}}
}

func tagAll(t interceptor.Ticket) *gate {
	g := newGate()
	g.before = func(interceptor.Request) interceptor.Verdict {
		ticket := t
		return interceptor.Verdict{Ticket: &ticket}
	}
	return g
}

func (g *gate) Before(_ context.Context, _ interceptor.Port, r interceptor.Request) interceptor.Verdict {
	v := g.before(r)
	if v.Ticket != nil {
		g.mu.Lock()
		g.given[v.Ticket] = 0
		g.mu.Unlock()
	}
	return v
}

func (g *gate) After(_ context.Context, t *interceptor.Ticket, res interceptor.Response, err error) *interceptor.Answer {
	g.mu.Lock()
	g.given[t]++
	g.mu.Unlock()
	if g.after != nil {
		return g.after(res, err)
	}
	return nil
}

// once waits until each of n tickets has had its After, and fails if one had two.
func (g *gate) once(t *testing.T, n int) {
	t.Helper()
	for end := time.Now().Add(patience); ; time.Sleep(time.Millisecond) {
		g.mu.Lock()
		done, bad := 0, 0
		for _, k := range g.given {
			done += k
			if k > 1 {
				bad++
			}
		}
		given := len(g.given)
		g.mu.Unlock()
		if bad > 0 {
			t.Fatalf("%d tickets had more than one After", bad)
		}
		if done == n && given == n {
			return
		}
		if time.Now().After(end) {
			t.Fatalf("%d tickets, %d of them ended; want %d", given, done, n)
		}
	}
}

func listen(t testing.TB) net.Listener {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	return l
}

// upstream is a server of HTTP/2 with prior knowledge.
func upstream(t testing.TB, h http.HandlerFunc) string { return limited(t, 100, h) }

// limited is upstream that takes so many requests at a time on each connection.
func limited(t testing.TB, streams int, h http.HandlerFunc) string {
	l := listen(t)
	var protocols http.Protocols
	protocols.SetUnencryptedHTTP2(true)
	protocols.SetHTTP1(true)
	srv := &http.Server{Handler: h, Protocols: &protocols, ReadHeaderTimeout: patience,
		HTTP2: &http.HTTP2Config{MaxConcurrentStreams: streams}}
	go func() { _ = srv.Serve(l) }() // it ends with the test
	t.Cleanup(func() { _ = srv.Close() })
	return l.Addr().String()
}

// inbound starts a proxy before one endpoint. The returned function shuts it down.
func inbound(t testing.TB, o proxy.Options, endpoint string) (string, func(context.Context) error) {
	p, err := proxy.NewInbound(o, "test/service", endpoint)
	if err != nil {
		t.Fatal(err)
	}
	l := listen(t)
	go func() { _ = p.Serve(l) }() // Shutdown ends it
	stop := sync.OnceValue(func() error {
		ctx, cancel := context.WithTimeout(context.Background(), time.Second)
		defer cancel()
		return p.Shutdown(ctx)
	})
	t.Cleanup(func() { _ = stop() }) // it may have to cut what a test left open
	return l.Addr().String(), p.Shutdown
}

// serving starts a proxy and returns its address.
func serving(t testing.TB, p interface {
	Serve(l net.Listener) error
	Shutdown(ctx context.Context) error
}) string {
	l := listen(t)
	go func() { _ = p.Serve(l) }() // Shutdown ends it
	t.Cleanup(func() {
		ctx, cancel := context.WithTimeout(context.Background(), time.Second)
		defer cancel()
		_ = p.Shutdown(ctx) // clients keep their connections
	})
	return l.Addr().String()
}

func client(t testing.TB) *http.Client {
	var protocols http.Protocols
	protocols.SetUnencryptedHTTP2(true)
	plain := &http.Transport{Protocols: &protocols}
	t.Cleanup(plain.CloseIdleConnections)
	return &http.Client{Transport: plain, Timeout: patience}
}

func get(t testing.TB, c *http.Client, method, url, body string) (*http.Response, string) {
	t.Helper()
	req, err := http.NewRequestWithContext(t.Context(), method, url, strings.NewReader(body))
	if err != nil {
		t.Fatal(err)
	}
	res, err := c.Do(req)
	if err != nil {
		t.Fatal(err)
	}
	defer res.Body.Close()
	got, err := io.ReadAll(res.Body)
	if err != nil {
		t.Fatal(err)
	}
	return res, string(got)
}

func TestGateSeesTheExchange(t *testing.T) {
	up := upstream(t, func(w http.ResponseWriter, r *http.Request) {
		b, err := io.ReadAll(r.Body)
		if err != nil {
			t.Error(err)
		}
		w.Header().Set("Trailer", "X-End")
		w.Header().Set("X-Sent", r.Header.Get("X-Added")+"|"+r.Header.Get("X-Gone"))
		_, _ = w.Write(b) // the client sees what is missing
		w.Header().Set("X-End", "done")
	})
	g := newGate()
	var seen []string
	g.before = func(r interceptor.Request) interceptor.Verdict {
		b, err := r.Body(5)
		if err != nil {
			t.Error(err)
		}
		if _, err := r.Body(4); !errors.Is(err, interceptor.ErrBodyTooLarge) {
			t.Errorf("body of five bytes in a buffer of four: %v", err)
		}
		seen = append(seen, r.Method(), r.Path(), r.Query(), r.Header("X-A"), string(b))
		r.SetHeader("X-Added", "1")
		r.DelHeader("X-Gone")
		return interceptor.Verdict{Ticket: &interceptor.Ticket{Hold: true}}
	}
	g.after = func(res interceptor.Response, err error) *interceptor.Answer {
		if err != nil {
			t.Error(err)
			return nil
		}
		b, err := res.Body(100)
		if err != nil {
			t.Error(err)
		}
		seen = append(seen, string(b), res.Trailer("X-End"), res.Header("X-Sent"))
		res.SetHeader("X-New", "n")
		return nil
	}
	address, _ := inbound(t, proxy.Options{Gate: g}, up)
	req, err := http.NewRequestWithContext(t.Context(), "POST", "http://"+address+"/p%20q?s=t", io.MultiReader(strings.NewReader("ab"), strings.NewReader("cde")))
	if err != nil {
		t.Fatal(err)
	}
	req.Header.Set("X-A", "a")
	req.Header.Set("X-Gone", "g")
	res, err := client(t).Do(req)
	if err != nil {
		t.Fatal(err)
	}
	defer res.Body.Close()
	body, err := io.ReadAll(res.Body)
	if err != nil || string(body) != "abcde" || res.Header.Get("X-New") != "n" || res.Trailer.Get("X-End") != "done" || res.ProtoMajor != 2 {
		t.Errorf("got %q, %v, %v, trailer %v", body, err, res.Header, res.Trailer)
	}
	want := "POST|/p%20q|s=t|a|abcde|abcde|done|1|"
	if got := strings.Join(seen, "|"); got != want {
		t.Errorf("the gate saw %s, want %s", got, want)
	}
	g.once(t, 1)
}

func TestAnswersTakeThePlace(t *testing.T) {
	up := upstream(t, func(w http.ResponseWriter, _ *http.Request) { _, _ = io.WriteString(w, "theirs") })
	answer := &interceptor.Answer{Status: 409, Header: [][2]string{{"TX-Error", "TXM0105"}, {"content-type", "application/problem+json"}},
		Body: []byte(`{"title":"decided","detail":"no 100%","remedy":"stop"}`)}
	for _, when := range []string{"before", "after"} {
		for _, kind := range []string{"application/json", "application/grpc+proto"} {
			t.Run(when+" "+kind, func(t *testing.T) {
				g := tagAll(interceptor.Ticket{Hold: true})
				g.after = func(interceptor.Response, error) *interceptor.Answer { return answer }
				if when == "before" {
					g.before = func(interceptor.Request) interceptor.Verdict { return interceptor.Verdict{Answer: answer} }
				}
				address, _ := inbound(t, proxy.Options{Gate: g}, up)
				req, err := http.NewRequestWithContext(t.Context(), "POST", "http://"+address+"/", strings.NewReader("x"))
				if err != nil {
					t.Fatal(err)
				}
				req.Header.Set("Content-Type", kind)
				res, err := client(t).Do(req)
				if err != nil {
					t.Fatal(err)
				}
				defer res.Body.Close()
				body, err := io.ReadAll(res.Body)
				if err != nil {
					t.Fatal(err)
				}
				got := []string{res.Status, res.Header.Get("Grpc-Status"), res.Header.Get("Grpc-Message"), res.Header.Get("Tx-Error"), string(body)}
				want := []string{"409 Conflict", "", "", "TXM0105", string(answer.Body)}
				if kind != "application/json" {
					want = []string{"200 OK", "10", "decided: no 100%25: stop", "TXM0105", ""}
				}
				if strings.Join(got, "|") != strings.Join(want, "|") {
					t.Errorf("got %q, want %q", got, want)
				}
			})
		}
	}
}

func TestRecordedGRPCAnswerIsSentAsItIs(t *testing.T) {
	g := newGate()
	g.before = func(interceptor.Request) interceptor.Verdict {
		return interceptor.Verdict{Answer: &interceptor.Answer{Status: 200, Header: [][2]string{{"content-type", "application/grpc"}},
			Body: []byte("\x00\x00\x00\x00\x01x"), Trailer: [][2]string{{"grpc-status", "0"}}}}
	}
	address, _ := inbound(t, proxy.Options{Gate: g}, "127.0.0.1:1")
	req, err := http.NewRequestWithContext(t.Context(), "POST", "http://"+address+"/", strings.NewReader("x"))
	if err != nil {
		t.Fatal(err)
	}
	req.Header.Set("Content-Type", "application/grpc")
	res, err := client(t).Do(req)
	if err != nil {
		t.Fatal(err)
	}
	defer res.Body.Close()
	body, err := io.ReadAll(res.Body)
	if err != nil || len(body) != 6 || res.Trailer.Get("Grpc-Status") != "0" || res.Header.Get("Grpc-Status") != "" {
		t.Errorf("got %q, %v, header %v, trailer %v", body, err, res.Header, res.Trailer)
	}
}

func TestEndpointsThatCannotServe(t *testing.T) {
	old := listen(t)
	go func() { // a server of HTTP/1 that knows nothing else
		for {
			c, err := old.Accept()
			if err != nil {
				return
			}
			_, _ = io.WriteString(c, "HTTP/1.1 400 Bad Request\r\nContent-Length: 0\r\n\r\n")
			c.Close()
		}
	}()
	t.Cleanup(func() { old.Close() })
	for _, tt := range []struct{ name, endpoint, code string }{
		{"nobody listens", "127.0.0.1:1", "TXM0220"},
		{"speaks HTTP/1", old.Addr().String(), "TXM0226"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			g := tagAll(interceptor.Ticket{})
			var notSent bool
			g.after = func(_ interceptor.Response, err error) *interceptor.Answer {
				e, ok := errors.AsType[*proxy.Error](err)
				notSent = ok && e.NotSent()
				return nil
			}
			address, _ := inbound(t, proxy.Options{Gate: g}, tt.endpoint)
			res, _ := get(t, client(t), "POST", "http://"+address+"/", "x")
			if res.StatusCode != 503 || res.Header.Get("Tx-Error") != tt.code || !notSent {
				t.Errorf("got %d %v, not sent %v; want 503 with %s", res.StatusCode, res.Header, notSent, tt.code)
			}
			g.once(t, 1)
		})
	}
}

// TestSlowReaderStopsNobody: one stream whose client reads nothing, beside others on the same connections.
func TestSlowReaderStopsNobody(t *testing.T) {
	up := upstream(t, func(w http.ResponseWriter, r *http.Request) {
		n := 1 << 10
		if r.URL.Path == "/much" {
			n = 8 << 20
		}
		_, _ = w.Write(make([]byte, n)) // a client that goes away is not this server's fault
	})
	address, _ := inbound(t, proxy.Options{}, up)
	c := client(t)
	for range 20 {
		req, err := http.NewRequestWithContext(t.Context(), "GET", "http://"+address+"/much", http.NoBody)
		if err != nil {
			t.Fatal(err)
		}
		res, err := c.Do(req)
		if err != nil {
			t.Fatal(err)
		}
		defer res.Body.Close() // read by nobody
	}
	for range 50 {
		if _, body := get(t, c, "GET", "http://"+address+"/little", ""); len(body) != 1<<10 {
			t.Fatalf("got %d bytes", len(body))
		}
	}
}
