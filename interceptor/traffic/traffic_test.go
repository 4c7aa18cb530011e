package traffic

import (
	"context"
	"errors"
	"math/rand/v2"
	"slices"
	"strconv"
	"strings"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/google/go-cmp/cmp"

	"txmesh/policies"
)

// clock is a time that tests move.
type clock struct{ at time.Time }

func newClock() *clock { return &clock{time.Date(2026, 1, 2, 3, 4, 5, 0, time.UTC)} }

func (c *clock) now() time.Time       { return c.at }
func (c *clock) pass(d time.Duration) { c.at = c.at.Add(d) }

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

// counts is an Observer that counts.
type counts struct {
	picks             [3]int
	ejected, refused  int
	granted, denied   int
	waiting, waitings int
}

func (n *counts) observer(string) *Observer {
	return &Observer{Picked: func(s State) { n.picks[s]++ }, Ejected: func() { n.ejected++ },
		Retried: func(granted bool) {
			if granted {
				n.granted++
			} else {
				n.denied++
			}
		},
		Refused: func(bool) { n.refused++ }, Waiting: func(w int) { n.waiting = w; n.waitings++ }}
}

// world is one cluster with everything that it depends on.
type world struct {
	*Cluster
	clock  *clock
	force  *inForce
	counts *counts
}

func newWorld(t testing.TB, spec string, endpoints int) *world {
	w := &world{clock: newClock(), force: &inForce{}, counts: &counts{}}
	w.force.use(t, spec)
	cs := New(Options{Policies: w.force, Now: w.clock.now, Observe: w.counts.observer})
	w.Cluster = cs.Service("bank/accounts", names(endpoints))
	return w
}

func names(n int) []string {
	var out []string
	for i := range n {
		out = append(out, "e"+strconv.Itoa(i)+":1")
	}
	return out
}

func get() Ask { return Ask{Method: "GET", Path: "/x"} }

func (w *world) pick(t testing.TB) Lease {
	t.Helper()
	l, err := w.Pick(context.Background(), get())
	if err != nil {
		t.Fatal(err)
	}
	return l
}

// call makes one exchange and returns where.
func (w *world) call(t testing.TB, how func(endpoint string) Outcome) string {
	t.Helper()
	l := w.pick(t)
	l.Report(how(l.Endpoint()))
	at := l.Endpoint()
	l.Done()
	return at
}

func always(o Outcome) func(string) Outcome { return func(string) Outcome { return o } }

func TestIdleEndpointsTakeTurns(t *testing.T) {
	for _, spec := range []string{"loadBalancing: RoundRobin", "loadBalancing: LeastOutstanding"} {
		w := newWorld(t, spec, 3)
		var got []string
		for range 6 {
			got = append(got, w.call(t, always(OK)))
		}
		if diff := cmp.Diff([]string{"e0:1", "e1:1", "e2:1", "e0:1", "e1:1", "e2:1"}, got); diff != "" {
			t.Errorf("%s (-want +got):\n%s", spec, diff)
		}
	}
}

// TestTwoChoicesBeatRandom runs a queue per endpoint in simulated time: with the same arrivals and the same work, the
// tail of the waiting times must be much shorter than where endpoints are drawn.
func TestTwoChoicesBeatRandom(t *testing.T) {
	p99 := func(random bool) time.Duration {
		w := newWorld(t, "loadBalancing: LeastOutstanding", 10)
		draw := rand.New(rand.NewPCG(1, 2))
		free := map[string]time.Time{}
		type running struct {
			l   Lease
			end time.Time
		}
		var all []running
		var waits []time.Duration
		for range 20000 {
			w.clock.pass(time.Duration(draw.ExpFloat64() * float64(time.Millisecond) * 1.25)) // 80 % of what ten can do
			all = slices.DeleteFunc(all, func(r running) bool {
				if r.end.After(w.clock.at) {
					return false
				}
				r.l.Done()
				return true
			})
			l, work, drawn := w.pick(t), time.Duration(draw.ExpFloat64()*float64(10*time.Millisecond)), draw.IntN(10)
			at := l.Endpoint()
			if random {
				at = names(10)[drawn]
			}
			begin := w.clock.at
			if free[at].After(begin) {
				begin = free[at]
			}
			free[at] = begin.Add(work)
			waits = append(waits, begin.Sub(w.clock.at))
			all = append(all, running{l, free[at]})
		}
		slices.Sort(waits)
		return waits[len(waits)*99/100]
	}
	two, random := p99(false), p99(true)
	t.Logf("p99 of the wait at 80 %% load: two choices %v, random %v", two, random)
	if 2*two > random {
		t.Errorf("p99 with two choices %v, random %v: want less than half", two, random)
	}
}

func TestEjection(t *testing.T) {
	w := newWorld(t, "circuitBreaker: {consecutiveErrors: 3, interval: 10s, ejectFor: 30s, maxEjectedPercent: 50}", 3)
	bad := func(e string) Outcome {
		if e == "e1:1" {
			return Failed
		}
		return OK
	}
	seen := func(n int) (at int) {
		for range n {
			if w.call(t, bad) == "e1:1" {
				at++
			}
		}
		return at
	}
	if at := seen(30); at != 3 || w.counts.ejected != 1 {
		t.Fatalf("the bad endpoint was called %d times and ejected %d times, want 3 and 1", at, w.counts.ejected)
	}
	// Each time that it fails again on its return it is out for longer, up to sixteen times the first.
	for i, out := range []time.Duration{30 * time.Second, time.Minute, 2 * time.Minute, 4 * time.Minute, 8 * time.Minute, 8 * time.Minute} {
		w.clock.pass(out - time.Nanosecond)
		if at := seen(30); at != 0 {
			t.Fatalf("ejection %d ended after less than %v", i, out)
		}
		w.clock.pass(time.Nanosecond)
		if at := seen(30); at != 1 {
			t.Fatalf("after ejection %d it was called %d times, want one trial", i, at)
		}
	}
	if w.counts.picks[Trial] != 6 {
		t.Errorf("%d trials, want 6", w.counts.picks[Trial])
	}
	w.clock.pass(time.Hour)
	good := always(OK)
	for range 30 {
		w.call(t, good)
	}
	w.clock.pass(8 * time.Minute) // it has been back for as long as it was out
	for range 30 {
		w.call(t, good)
	}
	seen(30)
	w.clock.pass(30 * time.Second)
	if at := seen(30); at == 0 {
		t.Error("the length of ejections was not forgotten")
	}
}

func TestErrorsFarApartDoNotEject(t *testing.T) {
	w := newWorld(t, "circuitBreaker: {consecutiveErrors: 2, interval: 10s}", 2)
	for range 20 {
		w.call(t, always(Failed))
		w.clock.pass(6 * time.Second) // each endpoint fails every 12 s
	}
	if w.counts.ejected != 0 {
		t.Errorf("%d ejections, want none", w.counts.ejected)
	}
}

func TestOneRequestTriesAnEndpoint(t *testing.T) {
	w := newWorld(t, "circuitBreaker: {consecutiveErrors: 1, ejectFor: 1s}", 2)
	w.call(t, always(Failed)) // e0
	w.clock.pass(time.Second)
	var held []Lease
	at := map[string]int{}
	for range 10 {
		l := w.pick(t)
		at[l.Endpoint()]++
		held = append(held, l)
	}
	if at["e0:1"] != 1 {
		t.Errorf("%d requests at an endpoint on trial, want 1", at["e0:1"])
	}
	for i := range held {
		held[i].Done() // nobody says how it went: the trial is still to be made
	}
	if w.call(t, always(OK)); w.counts.picks[Trial] == 1 {
		w.call(t, always(OK))
	}
	if w.counts.picks[Trial] != 2 {
		t.Errorf("%d trials, want a second after one without outcome", w.counts.picks[Trial])
	}
}

func TestAllEjectedMeansPanic(t *testing.T) {
	w := newWorld(t, "circuitBreaker: {consecutiveErrors: 1, maxEjectedPercent: 100}", 2)
	for range 10 {
		w.call(t, always(Failed))
	}
	if w.counts.ejected != 2 || w.counts.picks != [3]int{2, 0, 8} {
		t.Errorf("ejected %d, picks %v; want 2, [2 0 8]", w.counts.ejected, w.counts.picks)
	}
}

// TestEjectedNeverPassTheShare tries random histories, with endpoints and policies that change.
func TestEjectedNeverPassTheShare(t *testing.T) {
	for seed := range uint64(300) {
		draw := rand.New(rand.NewPCG(seed, 7))
		share := 1 + draw.IntN(100)
		spec := func() string {
			return "circuitBreaker: {consecutiveErrors: " + strconv.Itoa(1+draw.IntN(3)) + ", maxEjectedPercent: " + strconv.Itoa(share) + "}"
		}
		w := newWorld(t, spec(), 1+draw.IntN(8))
		var held []Lease
		for range 300 {
			switch draw.IntN(12) {
			case 0:
				w.clock.pass(time.Duration(draw.IntN(60)) * time.Second)
			case 1:
				w.SetEndpoints(names(1 + draw.IntN(8)))
			case 2:
				share = 1 + draw.IntN(100)
				w.force.use(t, spec())
				w.call(t, always(Unjudged))
			case 3, 4, 5:
				held = append(held, w.pick(t))
			default:
				if len(held) > 0 {
					i := draw.IntN(len(held))
					held[i].Report(Outcome(draw.IntN(3)))
					held[i].Done()
					held = slices.Delete(held, i, i+1)
				}
			}
			if out, n := w.ejected(), len(w.endpoints); 100*out > share*n {
				t.Fatalf("seed %d: %d of %d endpoints are out, the share is %d%%", seed, out, n, share)
			}
			running := 0
			for _, e := range w.endpoints {
				running += e.running
			}
			if w.running != len(held) || running > len(held) {
				t.Fatalf("seed %d: %d running, %d at endpoints, %d held", seed, w.running, running, len(held))
			}
		}
	}
}

// TestBudgetHoldsOverAnyWindow notes the time of every request and of every repeat, and looks at all windows.
func TestBudgetHoldsOverAnyWindow(t *testing.T) {
	for seed := range uint64(60) {
		draw := rand.New(rand.NewPCG(seed, 11))
		percent, min := draw.IntN(50), draw.IntN(20)
		w := newWorld(t, "retries: {attempts: 10, on: [reset], budget: {percent: "+strconv.Itoa(percent)+", minPerSecond: "+strconv.Itoa(min)+"}}", 3)
		type event struct {
			at      time.Time
			repeats int
		}
		var events []event
		for range 400 {
			if draw.IntN(20) == 0 {
				w.clock.pass(time.Duration(draw.IntN(3000)) * time.Millisecond)
			}
			l := w.pick(t)
			e := event{at: w.clock.at}
			for draw.IntN(3) > 0 && l.Next(policies.Reset) {
				e.repeats++
			}
			l.Done()
			events = append(events, e)
		}
		burst := max(10, float64(min))
		for i := range events {
			repeats := 0
			for j := i; j < len(events); j++ {
				repeats += events[j].repeats
				allowed := burst + float64((j-i+1)*percent)/100 + events[j].at.Sub(events[i].at).Seconds()*float64(min)
				if float64(repeats) > allowed+1e-6 {
					t.Fatalf("seed %d: %d repeats in a window that allows %.1f", seed, repeats, allowed)
				}
			}
		}
		if w.counts.granted == 0 || w.counts.denied == 0 && percent+min < 10 {
			t.Errorf("seed %d: %d granted and %d denied say nothing", seed, w.counts.granted, w.counts.denied)
		}
	}
}

func TestRepeats(t *testing.T) {
	const all = "retries: {attempts: 2, on: [connect-failure, not-sent, reset, gateway-error]}"
	for _, tt := range []struct {
		name, spec, method string
		why                policies.RetryOn
		fixed              bool
		endpoints, want    int
	}{
		{"reset of a GET", all, "GET", policies.Reset, false, 3, 2},
		{"reset of a PUT", all, "PUT", policies.Reset, false, 3, 2},
		{"reset of a POST", all, "POST", policies.Reset, false, 3, 0},
		{"reset of a PATCH", all, "PATCH", policies.Reset, false, 3, 0},
		{"unreachable with a POST", all, "POST", policies.ConnectFailure, false, 3, 2},
		{"unsent POST, as somebody says", all, "POST", policies.NotSent, false, 3, 0},
		{"503 of a POST", all, "POST", policies.GatewayError, false, 3, 0},
		{"time-out that the policy does not name", all, "GET", policies.TimedOut, false, 3, 0},
		{"tagged GET", all, "GET", policies.Reset, true, 3, 0},
		{"tagged call that was not sent", all, "POST", policies.ConnectFailure, true, 3, 0},
		{"the only endpoint", all, "GET", policies.Reset, false, 1, 2},
		{"without retries: each other once", "loadBalancing: RoundRobin", "POST", policies.ConnectFailure, false, 4, 3},
		{"without retries: nothing that was sent", "loadBalancing: RoundRobin", "GET", policies.Reset, false, 4, 0},
		{"without retries: the only endpoint", "loadBalancing: RoundRobin", "POST", policies.ConnectFailure, false, 1, 0},
		{"route without repeats", all + ", routes: [{name: x, match: {path: /x}, retries: {attempts: 0}}]", "GET", policies.Reset, false, 3, 0},
	} {
		t.Run(tt.name, func(t *testing.T) {
			w := newWorld(t, tt.spec, tt.endpoints)
			l, err := w.Pick(t.Context(), Ask{Method: tt.method, Path: "/x"})
			if err != nil {
				t.Fatal(err)
			}
			if tt.fixed {
				l.Fix()
			}
			seen, repeats := map[string]bool{l.Endpoint(): true}, 0
			for l.Next(tt.why) {
				repeats++
				seen[l.Endpoint()] = true
			}
			l.Done()
			if repeats != tt.want || len(seen) != min(tt.want+1, tt.endpoints) || w.running != 0 {
				t.Errorf("%d repeats at %d endpoints, %d left running; want %d", repeats, len(seen), w.running, tt.want)
			}
		})
	}
}

func TestNewPoliciesHoldAtOnce(t *testing.T) {
	w := newWorld(t, "connections: {maxRequests: 1, maxPending: 0}", 1)
	first := w.pick(t)
	if _, err := w.Pick(t.Context(), get()); !errors.Is(err, ErrFull) {
		t.Fatalf("second pick: %v, want ErrFull", err)
	}
	w.force.use(t, "connections: {maxRequests: 2, maxPending: 0}, timeouts: {request: 7s}")
	second := w.pick(t)
	if second.Request() != 7*time.Second || first.Request() != 0 {
		t.Errorf("time of the new one %v, of the old one %v; want 7s and 0", second.Request(), first.Request())
	}
	w.force.set.Store(nil)
	for range 10 {
		w.pick(t)
	}
}

// TestQueue runs in a bubble: the first to wait is the first to be served, ops before all, and nobody waits for long.
func TestQueue(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var force inForce
		force.use(t, "connections: {maxRequests: 10, maxPending: 5}, timeouts: {connect: 1s}")
		c := New(Options{Policies: &force}).Own("bank/accounts", "app:1")
		var held []Lease
		for range 9 {
			l, err := c.Pick(t.Context(), get())
			if err != nil {
				t.Fatal(err)
			}
			held = append(held, l)
		}
		served := make(chan string, 20)
		ask := func(name string, first bool) {
			go func() {
				a := get()
				a.First = first
				l, err := c.Pick(t.Context(), a)
				if err != nil {
					served <- name + ": " + err.Error()
					return
				}
				served <- name
				time.Sleep(time.Millisecond)
				l.Done()
			}()
			synctest.Wait()
		}
		for i := range 6 {
			ask("new "+strconv.Itoa(i), false)
		}
		if got := <-served; got != "new 5: "+ErrFull.Error() {
			t.Fatalf("the first that heard was %q, want the sixth refused", got)
		}
		ask("op 0", true) // the tenth place is kept for it
		if got := <-served; got != "op 0" {
			t.Fatalf("served %q, want the op at once", got)
		}
		ask("op 1", true) // waits for op 0 alone
		ask("op 2", true)
		time.Sleep(10 * time.Millisecond)
		var got []string
		for range 2 {
			got = append(got, <-served)
		}
		held[0].Done()
		time.Sleep(10 * time.Millisecond) // one place of new work serves them in order
		for range 5 {
			got = append(got, <-served)
		}
		if want := "op 1,op 2,new 0,new 1,new 2,new 3,new 4"; strings.Join(got, ",") != want {
			t.Errorf("served %v, want %s", got, want)
		}
		l, err := c.Pick(t.Context(), get())
		if err != nil {
			t.Fatal(err)
		}
		held[0] = l
		began := time.Now()
		if _, err := c.Pick(t.Context(), get()); !errors.Is(err, ErrWaited) || time.Since(began) != time.Second {
			t.Errorf("waited %v: %v; want ErrWaited after 1s", time.Since(began), err)
		}
		ctx, cancel := context.WithCancel(t.Context())
		cancel()
		if _, err := c.Pick(ctx, get()); !errors.Is(err, context.Canceled) {
			t.Errorf("pick of one who is gone: %v", err)
		}
		for i := range held {
			held[i].Done()
		}
		if c.running != 0 || !c.idle() {
			t.Errorf("%d running at the end", c.running)
		}
	})
}

func TestPlaceOfAnOpExistsHoweverSmallTheLimit(t *testing.T) {
	var force inForce
	force.use(t, "connections: {maxRequests: 1, maxPending: 0}")
	c := New(Options{Policies: &force}).Own("bank/accounts", "app:1")
	if _, err := c.Pick(t.Context(), get()); err != nil {
		t.Fatal(err)
	}
	if _, err := c.Pick(t.Context(), get()); !errors.Is(err, ErrFull) {
		t.Errorf("second of new work: %v", err)
	}
	if _, err := c.Pick(t.Context(), Ask{First: true}); err != nil {
		t.Errorf("op beside it: %v", err)
	}
}

func TestConnectionsPerEndpoint(t *testing.T) {
	w := newWorld(t, "connections: {max: 2, maxPending: 0}", 3)
	for range 6 {
		if _, err := w.Pick(t.Context(), Ask{Alone: true}); err != nil {
			t.Fatal(err)
		}
	}
	for _, e := range w.endpoints {
		if e.running != 2 {
			t.Errorf("%s has %d, want 2", e.address, e.running)
		}
	}
	if _, err := w.Pick(t.Context(), Ask{Alone: true}); !errors.Is(err, ErrFull) {
		t.Errorf("seventh: %v, want ErrFull", err)
	}
	if _, err := w.Pick(t.Context(), Ask{}); err != nil {
		t.Errorf("a request that shares a connection: %v", err)
	}
}

func TestEndpointsMayCome(t *testing.T) {
	w := newWorld(t, "circuitBreaker: {consecutiveErrors: 1}", 0)
	if _, err := w.Pick(t.Context(), get()); !errors.Is(err, ErrNoEndpoint) {
		t.Errorf("pick without endpoints: %v", err)
	}
	w.SetEndpoints(names(2))
	w.call(t, always(Failed)) // e0 is out
	w.SetEndpoints([]string{"e2:1", "e0:1", "e1:1"})
	at := map[string]int{}
	for range 10 {
		at[w.call(t, always(OK))]++
	}
	if diff := cmp.Diff(map[string]int{"e1:1": 5, "e2:1": 5}, at); diff != "" {
		t.Errorf("what was known of the endpoints that stay was forgotten (-want +got):\n%s", diff)
	}
}

func TestHostsAreKnownByPolicyAlone(t *testing.T) {
	set, err := policies.Compile(policies.Source{Name: "p", Data: []byte("apiVersion: txmesh.io/v1beta1\nkind: TrafficPolicy\nmetadata: {name: p}\nspec: {host: a.example}\n")})
	if err != nil {
		t.Fatal(err)
	}
	var force inForce
	force.set.Store(set)
	cs := New(Options{Policies: &force})
	if cs.Host("b.example:80") != nil {
		t.Error("a host that no policy names is remembered")
	}
	for i := range 3 * hostsMax {
		l, err := cs.Host("a.example:"+strconv.Itoa(i)).Pick(t.Context(), get())
		if err != nil {
			t.Fatal(err)
		}
		l.Done()
	}
	if n := len(cs.hosts); n > hostsMax {
		t.Errorf("%d hosts are remembered, want at most %d", n, hostsMax)
	}
	if a := cs.Host("a.example:1"); a != cs.Host("a.example:1") {
		t.Error("the same host has two clusters")
	}
}

// everything is a policy that uses all there is.
const everything = "timeouts: {request: 5s}, connections: {max: 100, maxPending: 10, maxRequests: 1000}, circuitBreaker: {}, retries: {}, routes: [{name: a, match: {method: GET, path: /x}}]"

func TestPicksDoNotAllocate(t *testing.T) {
	for _, spec := range []string{"loadBalancing: LeastOutstanding", everything} {
		w := newWorld(t, spec, 3)
		if n := testing.AllocsPerRun(1000, func() {
			l, err := w.Pick(context.Background(), Ask{Method: "GET", Path: "/x", Alone: true})
			if err != nil {
				t.Fatal(err)
			}
			l.Report(OK)
			l.Done()
		}); n != 0 {
			t.Errorf("%s: %v allocations for one exchange, want none", spec, n)
		}
	}
}

func BenchmarkPick(b *testing.B) {
	for name, spec := range map[string]string{"defaults": "loadBalancing: LeastOutstanding", "everything": everything} {
		b.Run(name, func(b *testing.B) {
			w := newWorld(b, spec, 3)
			b.ReportAllocs()
			b.RunParallel(func(pb *testing.PB) {
				for pb.Next() {
					l, err := w.Pick(context.Background(), Ask{Method: "GET", Path: "/x", Alone: true})
					if err != nil {
						b.Fatal(err)
					}
					l.Report(OK)
					l.Done()
				}
			})
		})
	}
}
