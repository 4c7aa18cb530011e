package e2e

import (
	"errors"
	"fmt"
	"maps"
	"math/rand/v2"
	"os"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"txmesh/tests/processes"
)

// storm is how hard the chaos test is. TXMESH_E2E=full asks for the full one, TXMESH_E2E=10m for one of that length.
type storm struct {
	clients    int
	transfers  int           // at least
	lasts      time.Duration // at least
	killsEach  int           // of every process, at least
	kills      int           // in all, at least
	committing float64       // the part that must commit
	seed       uint64
}

func newStorm(t *testing.T) storm {
	t.Helper()
	s := storm{clients: 32, transfers: 200, lasts: 12 * time.Second, killsEach: 1, kills: 8, committing: 0.7, seed: 1}
	switch asked := os.Getenv("TXMESH_E2E"); asked {
	case "":
	case "full":
		s.transfers, s.lasts, s.killsEach, s.kills = 4000, 100*time.Second, 10, 80
	default:
		var err error
		if s.lasts, err = time.ParseDuration(asked); err != nil {
			t.Fatalf("TXMESH_E2E is %q: want full, or a duration such as 10m", asked)
		}
		const transfersPerSecond, killsPerSecond = 40, 0.8
		s.transfers, s.kills = int(transfersPerSecond*s.lasts.Seconds()), int(killsPerSecond*s.lasts.Seconds())
		s.seed = rand.Uint64()
		t.Logf("seed %d", s.seed)
	}
	return s
}

// promise is what a client was told of one transfer.
type promise struct {
	id            string
	from, to      string
	amount        int64
	refusable     bool // an account is closed or empty
	first, second reply
	firstErr, err error
	answered      bool          // one of the two answers is final
	committed     bool          // ... and says so
	tries         int           // of the second request, until the port was back
	took          time.Duration // the first request
}

// final reads an answer: the application's 201, or anything that says that the transaction is or will be aborted.
func final(r reply, err error) (committed, ok bool) {
	status := r.header.Get("Tx-Status")
	switch {
	case err != nil:
		return false, false
	case r.status == 201 && r.header.Get("Tx-Error") == "":
		return true, true
	case status == "aborted" || status == "aborting":
		return false, true
	}
	return false, false
}

// chaos is one run.
type chaos struct {
	storm
	m      *mesh
	began  time.Time
	killed chan struct{} // closed when the killer has done its part
	mu     sync.Mutex    // guards below
	made   []*promise
	struck map[string]int           // kills by process
	down   map[string]time.Duration // longest time from kill to ready
	errs   []error
}

// TestNothingIsLostUnderKill9 is the main proof of the release: transfers while every process is killed again and
// again. Afterwards the services' own files say what became of every transfer.
func TestNothingIsLostUnderKill9(t *testing.T) {
	s := newStorm(t)
	var accounts, savings []string
	for i := range 20 {
		accounts = append(accounts, fmt.Sprintf("a%d=1000000", i))
		savings = append(savings, fmt.Sprintf("s%d=1000", i))
	}
	m := newBank(t, strings.Join(append(accounts, "poor=0"), ","), strings.Join(append(savings, "closed=closed"), ","))
	for _, name := range []string{"accounts", "savings"} { // so that kills meet calls in flight
		m.nodes[name].service.Args = append(m.nodes[name].service.Args, "--delay", "20ms")
	}
	m.start()
	c := &chaos{storm: s, m: m, began: time.Now(), killed: make(chan struct{}), struck: map[string]int{}, down: map[string]time.Duration{}}
	before := readBook(m.nodes["accounts"]).sum() + readBook(m.nodes["savings"]).sum()
	var all sync.WaitGroup
	for i := range s.clients {
		all.Go(func() { c.client(i) })
	}
	all.Go(func() {
		defer close(c.killed)
		c.kill()
	})
	all.Wait()
	calm := time.Now()
	for _, err := range c.errs {
		t.Error(err)
	}
	c.settled(calm)
	c.check(before)
}

// client sends its part of the transfers at an even pace, every one of them twice, and goes on while there are kills.
func (c *chaos) client(i int) {
	random := rand.New(rand.NewPCG(c.seed, uint64(i)))
	part := (c.transfers + c.clients - 1) / c.clients
	pause := c.lasts / time.Duration(part)
	offset := pause * time.Duration(i) / time.Duration(c.clients)
	for n := 0; n < part || c.killing(); n++ {
		<-time.After(time.Until(c.began.Add(offset + time.Duration(n)*pause)))
		p := &promise{id: fmt.Sprintf("t-%d-%d", i, n), amount: 1 + random.Int64N(50),
			from: fmt.Sprintf("a%d", random.IntN(20)), to: fmt.Sprintf("s%d", random.IntN(20))}
		switch random.IntN(40) {
		case 0:
			p.from, p.refusable = "poor", true
		case 1:
			p.to, p.refusable = "closed", true
		}
		c.transfer(p)
		c.mu.Lock()
		c.made = append(c.made, p)
		c.mu.Unlock()
	}
}

func (c *chaos) killing() bool {
	select {
	case <-c.killed:
		return false
	default:
		return true
	}
}

// transfer asks for one transfer, then once more under the same key.
func (c *chaos) transfer(p *promise) {
	started := time.Now()
	p.first, p.firstErr = c.send(p)
	p.took = time.Since(started)
	// The repeat is one request that arrives: one that finds the port closed, or the first one still being served, is
	// made again after the time that the answer names.
	deadline := time.Now().Add(30 * time.Second)
	for {
		p.tries++
		p.second, p.err = c.send(p)
		pause := 20 * time.Millisecond
		if p.err == nil && !retryable(p.second) {
			break
		}
		if p.err == nil {
			pause = time.Second
		}
		if time.Now().After(deadline) {
			break
		}
		<-time.After(pause)
	}
	if yes, ok := final(p.first, p.firstErr); ok {
		p.answered, p.committed = true, yes
	}
	if yes, ok := final(p.second, p.err); ok {
		if p.answered && p.committed != yes {
			c.fail(fmt.Errorf("%s was told two things: first %d %s, then %d %s (%s)", p.id, p.first.status, p.first.body,
				p.second.status, p.second.body, p.second.header.Get("Tx-Id")))
		}
		p.answered, p.committed = true, yes
	}
}

func retryable(r reply) bool {
	return r.header.Get("Retry-After") != "" && (r.status == 409 || r.status == 503)
}

func (c *chaos) send(p *promise) (reply, error) {
	body := fmt.Sprintf(`{"from":%q,"to":%q,"amount":%d}`, p.from, p.to, p.amount)
	return c.m.send("POST", "http://"+c.m.nodes["transfers"].inbound+"/transfers", body, "Idempotency-Key", `"`+p.id+`"`)
}

func (c *chaos) fail(err error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.errs = append(c.errs, err)
}

// victim is a process that may be killed.
type victim struct {
	p     *processes.Process
	again func() error
}

// kill kills and restarts processes in a seeded order with seeded pauses, spread over the run. On a machine where a
// start takes long, the pauses grow with it: what is asked for is that most transfers find everybody up.
func (c *chaos) kill() {
	var all []victim
	for _, n := range c.m.order {
		all = append(all, victim{n.service, n.startService}, victim{n.sidecar, n.startSidecar})
	}
	random := rand.New(rand.NewPCG(c.seed, 0))
	var plan []victim
	for len(plan) < max(c.kills, c.killsEach*len(all)) {
		round := slices.Clone(all)
		random.Shuffle(len(round), func(i, j int) { round[i], round[j] = round[j], round[i] })
		plan = append(plan, round...)
	}
	mean := c.lasts / time.Duration(len(plan)+1)
	const restsFor = 3 // times as long as the strike took
	var rest time.Duration
	for i := 0; i < len(plan); {
		at := c.began.Add(time.Duration(i)*mean + time.Duration(random.Int64N(int64(mean))))
		<-time.After(max(time.Until(at), rest))
		together := plan[i : i+1]
		if random.IntN(4) == 0 && i+1 < len(plan) && plan[i+1].p != plan[i].p {
			together = plan[i : i+2] // both are down at once
		}
		dead := time.Now()
		if err := c.strike(together); err != nil {
			c.fail(err)
			return
		}
		rest = restsFor * time.Since(dead)
		i += len(together)
	}
}

// strike kills processes and starts them again, each as fast as it can.
func (c *chaos) strike(together []victim) error {
	dead := time.Now()
	for _, v := range together {
		v.p.Kill()
	}
	errs := make([]error, len(together))
	var all sync.WaitGroup
	for i, v := range together {
		all.Go(func() {
			errs[i] = v.again()
			c.mu.Lock()
			defer c.mu.Unlock()
			c.struck[v.p.Name]++
			c.down[v.p.Name] = max(c.down[v.p.Name], time.Since(dead))
		})
	}
	all.Wait()
	return errors.Join(errs...)
}

// settled waits until no sidecar has a transaction open, 30 s after the faults at the latest.
func (c *chaos) settled(calm time.Time) {
	left := func() (bool, string) {
		var ids []string
		for _, n := range c.m.order {
			open, err := n.open()
			if err != nil {
				return false, err.Error()
			}
			for _, x := range open {
				ids = append(ids, x.ID+" "+x.Phase)
			}
		}
		return len(ids) == 0, strings.Join(ids, ", ")
	}
	if err := poll(time.Until(calm.Add(30*time.Second)), left); err != nil {
		c.m.t.Errorf("transactions are open after the faults: %v", err)
	}
	c.m.t.Logf("nothing open %v after the last fault", time.Since(calm).Round(time.Millisecond))
}

// check compares what the clients were told with what the services' own files say.
func (c *chaos) check(before int64) {
	t := c.m.t
	accounts, savings := readBook(c.m.nodes["accounts"]), readBook(c.m.nodes["savings"])
	if after := accounts.sum() + savings.sum(); after != before {
		t.Errorf("sum of all balances = %d, was %d", after, before)
	}
	tally := map[string]int{}
	statuses := map[string]int{}
	lost := 0
	var slowest time.Duration
	for _, p := range c.made {
		slowest = max(slowest, p.took)
		statuses[fmt.Sprintf("first %s", sketch(p.first, p.firstErr))]++
		statuses[fmt.Sprintf("second %s", sketch(p.second, p.err))]++
		applied := accounts.net[p.id] == -p.amount && savings.net[p.id] == p.amount
		absent := accounts.net[p.id] == 0 && savings.net[p.id] == 0
		switch {
		case !applied && !absent:
			tally["violations"]++
			t.Errorf("%s is neither applied nor absent: accounts %d, savings %d of %d; %s", p.id, accounts.net[p.id],
				savings.net[p.id], p.amount, c.told(p))
		case p.answered && p.committed && !applied:
			lost++
			t.Errorf("%s was confirmed and is lost; %s", p.id, c.told(p))
		case p.answered && !p.committed && !absent:
			tally["violations"]++
			t.Errorf("%s was refused and is applied; %s", p.id, c.told(p))
		}
		if applied {
			tally["committed"]++
		} else if accounts.times[p.id]+savings.times[p.id] > 0 {
			tally["undone"]++
		}
		if accounts.times[p.id] > 1 || savings.times[p.id] > 1 {
			tally["violations"]++
			t.Errorf("%s is booked %d and %d times; %s", p.id, accounts.times[p.id], savings.times[p.id], c.told(p))
		}
		if !p.answered {
			tally["never told"]++
		}
		if p.refusable {
			tally["refusable"]++
		}
		if p.firstErr != nil {
			tally["first without answer"]++
		}
		tally["in all"]++
	}
	c.figures(tally, statuses, lost)
	t.Logf("the slowest first answer took %v", slowest.Round(time.Millisecond))
	if part := float64(tally["committed"]) / float64(tally["in all"]); part < c.committing {
		t.Errorf("%.1f %% of the transfers committed, want at least %.0f %%", part*100, c.committing*100)
	}
	for _, n := range c.m.order {
		for _, p := range []*processes.Process{n.service, n.sidecar} {
			if c.struck[p.Name] < c.killsEach {
				t.Errorf("%s was killed %d times, want at least %d", p.Name, c.struck[p.Name], c.killsEach)
			}
		}
	}
}

func sketch(r reply, err error) string {
	if err != nil {
		text := err.Error()
		return "no answer: " + text[strings.LastIndex(text, ": ")+2:]
	}
	return strings.TrimSpace(fmt.Sprint(r.status, " ", r.header.Get("Tx-Error"), " ", r.header.Get("Tx-Status")))
}

func (c *chaos) told(p *promise) string {
	return fmt.Sprintf("told %s %s, then %s %s", sketch(p.first, p.firstErr), p.first.header.Get("Tx-Id"),
		sketch(p.second, p.err), p.second.header.Get("Tx-Id"))
}

func (c *chaos) figures(tally, statuses map[string]int, lost int) {
	var out []string
	out = append(out, fmt.Sprintf("%d transfers from %d clients in %v", tally["in all"], c.clients, time.Since(c.began).Round(time.Second)))
	out = append(out, fmt.Sprintf("committed %d (%.1f %%), undone %d, refusable %d, first without answer %d, never told %d, violations %d, lost: %d",
		tally["committed"], 100*float64(tally["committed"])/float64(tally["in all"]), tally["undone"], tally["refusable"],
		tally["first without answer"], tally["never told"], tally["violations"], lost))
	for _, k := range slices.Sorted(maps.Keys(statuses)) {
		out = append(out, fmt.Sprintf("  %6d %s", statuses[k], k))
	}
	sum := 0
	for _, k := range slices.Sorted(maps.Keys(c.struck)) {
		sum += c.struck[k]
		out = append(out, fmt.Sprintf("  killed %3d times: %s, at most %v from kill to ready", c.struck[k], k, c.down[k].Round(time.Millisecond)))
	}
	c.m.t.Logf("%s\n%d kills", strings.Join(out, "\n"), sum)
}
