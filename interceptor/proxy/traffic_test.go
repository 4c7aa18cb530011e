package proxy

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"maps"
	"net"
	"net/http"
	"runtime"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"txmesh/interceptor"
	"txmesh/interceptor/traffic"
	"txmesh/policies"
)

// inForce is a policy set that tests change.
type inForce struct{ set atomic.Pointer[policies.Set] }

func (f *inForce) Current() *policies.Set { return f.set.Load() }

func (f *inForce) use(t testing.TB, spec string) {
	t.Helper()
	text := "apiVersion: txmesh.io/v1beta1\nkind: TrafficPolicy\nmetadata: {name: p, namespace: bank}\nspec: {to: accounts, " + spec + "}\n"
	set, err := policies.Compile(policies.Source{Name: "p.yaml", Data: []byte(text)})
	if err != nil {
		t.Fatal(err)
	}
	f.set.Store(set)
}

// governed are the options of a proxy under a TrafficPolicy; counted counts refusals.
func governed(t testing.TB, spec string) (o Options, force *inForce, refused *atomic.Int64) {
	o, force, refused, _ = queued(t, spec)
	return o, force, refused
}

// queued is governed that also tells how many requests wait.
func queued(t testing.TB, spec string) (o Options, force *inForce, refused, waiting *atomic.Int64) {
	force, refused, waiting = &inForce{}, new(atomic.Int64), new(atomic.Int64)
	force.use(t, spec)
	o.Traffic = traffic.New(traffic.Options{Policies: force, Observe: func(string) *traffic.Observer {
		return &traffic.Observer{Picked: func(traffic.State) {}, Ejected: func() {}, Retried: func(bool) {},
			Refused: func(bool) { refused.Add(1) }, Waiting: func(n int) { waiting.Store(int64(n)) }}
	}})
	return o, force, refused, waiting
}

// book counts what servers have really done, by the path of the request.
type book struct {
	mu   sync.Mutex // guards done
	done map[string]int
}

func newBook() *book { return &book{done: map[string]int{}} }

func (b *book) note(path string) {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.done[path]++
}

func (b *book) copy() map[string]int {
	b.mu.Lock()
	defer b.mu.Unlock()
	return maps.Clone(b.done)
}

// endpoint is a server with faults: each request that it has read whole is noted, then it behaves as fault says.
func (b *book) endpoint(t testing.TB, fault func(conn net.Conn) (goOn bool)) string {
	return upstreamServer(t, func(conn net.Conn) {
		r := bufio.NewReader(conn)
		for {
			head, err := readHead(r)
			if err != nil {
				return
			}
			if _, err := io.CopyN(io.Discard, r, int64(contentLength(head))); err != nil {
				return
			}
			b.note(strings.Fields(head)[1])
			if !fault(conn) {
				return
			}
		}
	})
}

func answers(text string) func(net.Conn) bool {
	return func(conn net.Conn) bool { say(conn, text); return true }
}

// breaks closes with a reset, so that nobody mistakes it for an end.
func breaks(conn net.Conn) bool { return false }

func hangs(conn net.Conn) bool {
	drain(conn)
	return false
}

const (
	failed  = "HTTP/1.1 500 Internal Server Error\r\nContent-Length: 2\r\n\r\nno"
	gateway = "HTTP/1.1 503 Service Unavailable\r\nContent-Length: 2\r\n\r\nno"
	unsent  = "HTTP/1.1 503 Service Unavailable\r\ntx-error: TXM0236\r\nContent-Length: 2\r\n\r\nno"
)

// status sends one request and reads its answer.
func (c *client) status(method, path, body string) int {
	c.t.Helper()
	c.send(fmt.Sprintf("%s %s HTTP/1.1\r\nHost: x\r\nContent-Length: %d\r\n\r\n%s", method, path, len(body), body))
	res, err := http.ReadResponse(c.Reader, nil)
	if err != nil {
		c.t.Fatal(err)
	}
	drain(res.Body)
	return res.StatusCode
}

// TestOneOfThreeEndpointsFails counts the errors that clients see: with what holds without a policy, with a circuit
// breaker, and with repeats beside it. The limits of time are far from what a good endpoint takes on a busy machine.
func TestOneOfThreeEndpointsFails(t *testing.T) {
	const breaker = "timeouts: {request: 300ms}, circuitBreaker: {consecutiveErrors: 3, ejectFor: 1h}"
	const repeats = "timeouts: {request: 5s}, circuitBreaker: {consecutiveErrors: 3, ejectFor: 1h}, " +
		"retries: {on: [reset, gateway-error, timeout], perTryTimeout: 300ms}"
	for _, tt := range []struct {
		name                   string
		fault                  func(net.Conn) bool
		requests               int
		none, breaker, repeats int // errors
	}{
		{"breaks off", breaks, 120, 40, 3, 0},
		{"hangs", hangs, 30, 10, 3, 0},
		{"answers 500", answers(failed), 120, 40, 3, 3}, // that is an answer of the application
		{"answers 503", answers(gateway), 120, 40, 3, 0},
	} {
		for _, p := range []struct {
			name, spec string
			want       int
		}{{"no protection", "timeouts: {request: 300ms}", tt.none}, {"circuit breaker", breaker, tt.breaker}, {"and repeats", repeats, tt.repeats}} {
			t.Run(tt.name+", "+p.name, func(t *testing.T) {
				b := newBook()
				o, _, _ := governed(t, p.spec)
				up, err := NewUpstream(o, "bank/accounts", []string{
					b.endpoint(t, answers(okay)), b.endpoint(t, tt.fault), b.endpoint(t, answers(okay))})
				c := dial(t, start(t, up, err))
				errs := 0
				for i := range tt.requests {
					if c.status("GET", fmt.Sprint("/", i), "") != 200 {
						errs++
					}
				}
				t.Logf("%d of %d requests saw an error", errs, tt.requests)
				if errs != p.want {
					t.Errorf("%d errors, want %d", errs, p.want)
				}
			})
		}
	}
}

// TestNothingIsDoneTwice runs all kinds of requests against endpoints with all faults under a policy that repeats
// whatever it may, and asks the servers.
func TestNothingIsDoneTwice(t *testing.T) {
	const spec = "timeouts: {request: 1s}, retries: {attempts: 5, on: [connect-failure, not-sent, reset, gateway-error, timeout], perTryTimeout: 30ms, budget: {percent: 100, minPerSecond: 1000}}"
	half := func(conn net.Conn) bool { say(conn, "HTTP/1.1 200 OK\r\nContent-Le"); return false }
	late := func(conn net.Conn) bool { say(conn, "HTTP/1.1 200 OK\r\nContent-Length: 9\r\n\r\nhalf"); return false }
	for _, tagged := range []bool{false, true} {
		t.Run(fmt.Sprintf("tagged=%v", tagged), func(t *testing.T) {
			b := newBook()
			o, _, _ := governed(t, spec)
			if tagged {
				o.Gate = tagAll(interceptor.Ticket{})
			}
			p, err := NewUpstream(o, "bank/accounts", []string{"127.0.0.1:1", b.endpoint(t, breaks), b.endpoint(t, half),
				b.endpoint(t, hangs), b.endpoint(t, answers(failed)), b.endpoint(t, answers(gateway)), b.endpoint(t, answers(unsent)),
				b.endpoint(t, late), b.endpoint(t, answers(okay))})
			address := start(t, p, err)
			var clients sync.WaitGroup
			for n := range 4 {
				clients.Go(func() {
					for i := range 60 {
						c := dial(t, address)
						method := []string{"POST", "PATCH", "PUT", "GET"}[i%4]
						c.send(fmt.Sprintf("%s /%s/%d/%d HTTP/1.1\r\nHost: x\r\nContent-Length: 4\r\n\r\nbody", method, method, n, i))
						_, _ = http.ReadResponse(c.Reader, nil) // the servers are asked
						c.Close()
					}
				})
			}
			clients.Wait()
			repeated := 0
			for path, times := range b.copy() {
				once := tagged || strings.HasPrefix(path, "/P") && !strings.HasPrefix(path, "/PUT")
				if once && times > 1 {
					t.Errorf("L16: %s was done %d times", path, times)
				}
				if times > 1 {
					repeated++
				}
			}
			if !tagged && repeated == 0 {
				t.Error("nothing was repeated: the test shows nothing")
			}
		})
	}
}

// TestTaggedCallsStay looks at each fault by itself: no other endpoint hears of the call.
func TestTaggedCallsStay(t *testing.T) {
	const spec = "loadBalancing: RoundRobin, timeouts: {request: 1s}, retries: {on: [connect-failure, not-sent, reset, gateway-error, timeout], perTryTimeout: 30ms}"
	for name, fault := range map[string]func(net.Conn) bool{"unreachable": nil, "breaks off": breaks, "503": answers(gateway), "not sent": answers(unsent)} {
		t.Run(name, func(t *testing.T) {
			bad, good := newBook(), newBook()
			first, want := "127.0.0.1:1", 0
			if fault != nil {
				first, want = bad.endpoint(t, fault), 1
			}
			o, _, _ := governed(t, spec)
			g := tagAll(interceptor.Ticket{})
			o.Gate = g
			p, err := NewUpstream(o, "bank/accounts", []string{first, good.endpoint(t, answers(okay))})
			c := dial(t, start(t, p, err))
			if got := c.status("GET", "/x", ""); got < 500 {
				t.Errorf("L16: a tagged call got %d by a repeat", got)
			}
			g.ends(t, 1)
			if n := good.copy()["/x"]; n != 0 || bad.copy()["/x"] != want {
				t.Errorf("L16: a tagged call was sent %d times to the endpoint chosen and %d times to another", bad.copy()["/x"], n)
			}
		})
	}
}

func TestRepeatsSendTheSameBytes(t *testing.T) {
	const spec = "loadBalancing: RoundRobin, retries: {on: [reset, gateway-error]}"
	for _, tt := range []struct {
		name, request, want string
		gate                bool // it reads the body
	}{
		{"body with the head", "PUT /a HTTP/1.1\r\nHost: x\r\nContent-Length: 4\r\n\r\nbody", okay, false},
		{"chunks", "PUT /a HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n4\r\nbody\r\n0\r\n\r\n", okay, false},
		{"body that the Gate has read", "PUT /a HTTP/1.1\r\nHost: x\r\nContent-Length: 20000\r\n\r\n" + strings.Repeat("b", 20000), okay, true},
		{"body that was streamed", "PUT /a HTTP/1.1\r\nHost: x\r\nContent-Length: 200000\r\n\r\n" + strings.Repeat("b", 200000), "HTTP/1.1 50", false},
	} {
		for _, fault := range []string{"", gateway} {
			t.Run(tt.name, func(t *testing.T) {
				var mu sync.Mutex // guards seen
				var seen []string
				record := func(answer string) string {
					return upstreamServer(t, func(conn net.Conn) {
						got := make([]byte, len(tt.request))
						if _, err := io.ReadFull(conn, got); err != nil {
							return
						}
						mu.Lock()
						seen = append(seen, string(got))
						mu.Unlock()
						say(conn, answer)
					})
				}
				o, _, _ := governed(t, spec)
				if tt.gate {
					g := newGate()
					g.before = func(r interceptor.Request) interceptor.Verdict {
						if _, err := r.Body(1 << 20); err != nil {
							t.Error(err)
						}
						return interceptor.Verdict{}
					}
					o.Gate = g
				}
				p, err := NewUpstream(o, "bank/accounts", []string{record(fault), record(okay)})
				c := dial(t, start(t, p, err))
				c.send(tt.request)
				c.want(tt.want)
				mu.Lock()
				defer mu.Unlock()
				for _, s := range seen {
					if s != tt.request {
						t.Errorf("an endpoint got %q", s)
					}
				}
				if want := 2; tt.want == okay && len(seen) != want {
					t.Errorf("%d endpoints got the request, want %d", len(seen), want)
				}
			})
		}
	}
}

func TestNothingIsRepeatedBehindAnInterimAnswer(t *testing.T) {
	o, _, _ := governed(t, "loadBalancing: RoundRobin, retries: {on: [reset]}")
	b := newBook()
	const early = "HTTP/1.1 103 Early Hints\r\nLink: x\r\n\r\n"
	p, err := NewUpstream(o, "bank/accounts", []string{
		b.endpoint(t, func(conn net.Conn) bool { say(conn, early); return false }), b.endpoint(t, answers(okay))})
	c := dial(t, start(t, p, err))
	c.send(get)
	c.want(early + "HTTP/1.1 502 ")
	if n := b.copy()["/a"]; n != 1 {
		t.Errorf("the request was sent %d times", n)
	}
}

func TestTimeOutsOfPolicies(t *testing.T) {
	t.Run("connect", func(t *testing.T) {
		o, _, _ := governed(t, "timeouts: {connect: 30ms}")
		o.Dial = func(ctx context.Context, _, _ string) (net.Conn, error) {
			<-ctx.Done()
			return nil, ctx.Err()
		}
		p, err := NewUpstream(o, "bank/accounts", []string{"a:1"})
		c := dial(t, start(t, p, err))
		if got := c.status("GET", "/", ""); got != 503 {
			t.Errorf("status %d, want 503", got)
		}
	})
	t.Run("request", func(t *testing.T) {
		o, _, _ := governed(t, "timeouts: {request: 30ms}, routes: [{name: slow, match: {path: /slow}, timeouts: {request: 1h}}]")
		release := make(chan struct{})
		b := newBook()
		p, err := NewUpstream(o, "bank/accounts", []string{b.endpoint(t, func(conn net.Conn) bool {
			select {
			case <-release:
			case <-time.After(200 * time.Millisecond):
			}
			say(conn, okay)
			return true
		})})
		c := dial(t, start(t, p, err))
		if got := c.status("GET", "/", ""); got != 504 {
			t.Errorf("status %d, want 504", got)
		}
		if got := c.status("GET", "/slow", ""); got != 200 {
			t.Errorf("status of the slow route %d, want 200", got)
		}
	})
	t.Run("idle", func(t *testing.T) {
		o, _, _ := governed(t, "timeouts: {idle: 400ms}")
		var conns atomic.Int64
		backend := upstreamServer(t, func(conn net.Conn) {
			conns.Add(1)
			r := bufio.NewReader(conn)
			for {
				if _, err := readHead(r); err != nil {
					return
				}
				say(conn, okay)
			}
		})
		p, err := NewUpstream(o, "bank/accounts", []string{backend})
		c := dial(t, start(t, p, err))
		for range 2 {
			c.send(get)
			c.want(okay)
		}
		time.Sleep(450 * time.Millisecond) // what is measured is time itself
		c.send(get)
		c.want(okay)
		if n := conns.Load(); n != 2 {
			t.Errorf("%d connections, want 2: one was kept too long, or not at all", n)
		}
	})
}

// TestPoliciesChangeUnderConnections uses one connection all the time, with a request in flight over the change.
func TestPoliciesChangeUnderConnections(t *testing.T) {
	o, force, _ := governed(t, "timeouts: {request: 1h}")
	asked, release := make(chan struct{}, 1), make(chan struct{})
	b := newBook()
	p, err := NewUpstream(o, "bank/accounts", []string{b.endpoint(t, func(conn net.Conn) bool {
		asked <- struct{}{}
		<-release
		say(conn, okay)
		return true
	})})
	c := dial(t, start(t, p, err))
	c.send(get)
	<-asked
	force.use(t, "timeouts: {request: 30ms}")
	time.Sleep(60 * time.Millisecond) // longer than the new limit: the old one holds for what runs
	release <- struct{}{}
	c.want(okay)
	c.send(get)
	c.want("HTTP/1.1 504 ")
	close(release)
}

// TestOverload drives far more than an endpoint can take: what runs there, what waits and how long an answer takes stay
// bounded, and so does the memory; the rest is refused at once.
func TestOverload(t *testing.T) {
	const clients, most, pending, work = 64, 4, 8, 5 * time.Millisecond
	o, _, refusals := governed(t, fmt.Sprintf("connections: {max: %d, maxPending: %d}, timeouts: {connect: 1s}", most, pending))
	var running, peak atomic.Int64
	b := newBook()
	p, err := NewUpstream(o, "bank/accounts", []string{b.endpoint(t, func(conn net.Conn) bool {
		n := running.Add(1)
		for old := peak.Load(); n > old && !peak.CompareAndSwap(old, n); old = peak.Load() {
		}
		time.Sleep(work)
		running.Add(-1)
		say(conn, okay)
		return true
	})})
	address := start(t, p, err)
	var mu sync.Mutex // guards took and refused
	var took, refused []time.Duration
	var before, after runtime.MemStats
	runtime.GC()
	runtime.ReadMemStats(&before)
	until := time.Now().Add(700 * time.Millisecond)
	var all sync.WaitGroup
	for range clients {
		c := dial(t, address)
		all.Go(func() {
			for time.Now().Before(until) {
				began := time.Now()
				c.send(get)
				res, err := http.ReadResponse(c.Reader, nil)
				if err != nil {
					t.Error(err)
					return
				}
				drain(res.Body)
				mu.Lock()
				switch {
				case res.StatusCode == 200:
					took = append(took, time.Since(began))
				case res.StatusCode == 503 && res.Header.Get("tx-error") == "TXM0236" && res.Header.Get("Retry-After") == "1":
					refused = append(refused, time.Since(began))
				default:
					t.Errorf("status %d, %v", res.StatusCode, res.Header)
				}
				mu.Unlock()
				if res.StatusCode == 503 {
					time.Sleep(time.Millisecond)
				}
			}
		})
	}
	all.Wait()
	runtime.GC()
	runtime.ReadMemStats(&after)
	slices.Sort(took)
	slices.Sort(refused)
	grown := int64(after.HeapAlloc) - int64(before.HeapAlloc)
	t.Logf("%d answered, median %v, p99 %v; %d refused, median %v; at most %d at the endpoint; heap grew by %d KiB",
		len(took), took[len(took)/2], took[len(took)*99/100], len(refused), refused[len(refused)/2], peak.Load(), grown>>10)
	if peak.Load() > most {
		t.Errorf("%d requests ran at the endpoint, want at most %d", peak.Load(), most)
	}
	if median := took[len(took)/2]; median > 20*(pending/most+1)*work {
		t.Errorf("the median of the answers is %v: the queue is not bounded", median)
	}
	if len(refused) == 0 || int64(len(refused)) != refusals.Load() {
		t.Errorf("%d refused, %d counted", len(refused), refusals.Load())
	}
	if grown > 8<<20 {
		t.Errorf("the heap grew by %d bytes", grown)
	}
}

// TestOpsHaveTheRightOfWay fills the application with new work, which waits and is refused; an undo gets through.
func TestOpsHaveTheRightOfWay(t *testing.T) {
	o, _, refusals, waiting := queued(t, "connections: {maxRequests: 10, maxPending: 3}, timeouts: {connect: 10s}")
	asked, release := make(chan struct{}, 100), make(chan struct{})
	b := newBook()
	app := upstreamServer(t, func(conn net.Conn) {
		r := bufio.NewReader(conn)
		for {
			head, err := readHead(r)
			if err != nil {
				return
			}
			b.note(strings.Fields(head)[1])
			if strings.HasPrefix(head, "GET") {
				asked <- struct{}{}
				<-release
			}
			say(conn, okay)
		}
	})
	letGo := sync.OnceFunc(func() { close(release) })
	t.Cleanup(letGo) // before the servers wait for their connections
	g := newGate()
	g.before = func(r interceptor.Request) interceptor.Verdict {
		if r.Header("tx-context") != "signed" { // as the Gate does with what it cannot verify
			return interceptor.Verdict{}
		}
		return interceptor.Verdict{Ticket: &interceptor.Ticket{First: true}}
	}
	o.Gate = g
	p, err := NewInbound(o, "bank/accounts", app)
	address := start(t, p, err)
	var all []*client
	for i := range 12 { // nine run, three wait
		c := dial(t, address)
		c.send(get)
		all = append(all, c)
		if i < 9 {
			<-asked
		}
	}
	for waiting.Load() < 3 {
		time.Sleep(time.Millisecond)
	}
	c := dial(t, address)
	c.send(get)
	if head, err := readHead(c.Reader); err != nil || !strings.HasPrefix(head, "HTTP/1.1 503 ") || !strings.Contains(head, "Retry-After: 1\r\n") || !strings.Contains(head, "tx-error: TXM0236") {
		t.Fatalf("new work was answered %q, %v", head, err)
	}
	if refusals.Load() != 1 {
		t.Errorf("%d refusals counted, want 1", refusals.Load())
	}
	c = dial(t, address)
	began := time.Now()
	c.send("DELETE /undo HTTP/1.1\r\nHost: x\r\ntx-op: undo\r\ntx-context: signed\r\n\r\n")
	c.want(okay)
	t.Logf("an undo took %v while new work waits", time.Since(began))
	c.send("DELETE /forged HTTP/1.1\r\nHost: x\r\ntx-op: undo\r\ntx-context: forged\r\n\r\n")
	c.want("HTTP/1.1 503 ")
	letGo()
	for _, c := range all {
		c.want(okay)
	}
	if done := b.copy(); done["/undo"] != 1 || done["/forged"] != 0 {
		t.Errorf("done: %v", done)
	}
}

func TestServicesWithoutEndpoints(t *testing.T) {
	o, _, _ := governed(t, "loadBalancing: RoundRobin")
	p, err := NewUpstream(o, "bank/accounts", nil)
	c := dial(t, start(t, p, err))
	c.send(get)
	head, err := readHead(c.Reader)
	if err != nil || !strings.Contains(head, "tx-error: TXM0238") {
		t.Fatalf("%q, %v", head, err)
	}
	o.Traffic.Service("bank/accounts", nil).SetEndpoints([]string{scripted(t, okay)})
	c = dial(t, start(t, p, err))
	c.send(get)
	c.want(okay)
	if _, err := NewUpstream(Options{}, "bank/accounts", nil); err == nil || errors.Is(err, io.EOF) {
		t.Error("an upstream that nobody can give endpoints was taken")
	}
}
