package sim

import (
	"flag"
	"fmt"
	"os"
	"runtime"
	"runtime/debug"
	"slices"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"txmesh/txn"
)

var (
	seeds = flag.Uint64("seeds", 2000, "how many seeds TestRandom runs")
	seed  = flag.Uint64("seed", 0, "the one seed that TestRandom runs, with its trace")
	want  = flag.String("want", "", "the law that TestHunt wants to see broken")
)

func TestMain(m *testing.M) {
	flag.Parse()
	debug.SetGCPercent(400) // worlds leave much behind, and soon
	os.Exit(m.Run())
}

func rigFor(t testing.TB) *rig {
	t.Helper()
	r, err := newRig()
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(r.close)
	return r
}

// usual is the world of TestRandom.
func usual(seed uint64) Options {
	modes := []txn.Mode{txn.Saga, txn.SagaGraph, txn.TCC, txn.XA, txn.Msg, txn.Workflow, txn.LRA, txn.Explicit, txn.Explicit}
	return Options{Seed: seed, Roots: 5, Modes: modes, Faults: 1, Habits: 1}
}

// tally adds up what worlds report. It is used by many goroutines.
type tally struct {
	mu     sync.Mutex // guards all below
	counts map[string]int
	steps  int
	points int
}

func (c *tally) add(r Result) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.steps += r.Steps
	c.points += r.Points
	for k, n := range r.Counts {
		c.counts[k] += n
	}
}

func (c *tally) log(t *testing.T) {
	t.Logf("%d steps, %d crash points", c.steps, c.points)
	var lines []string
	for k, n := range c.counts {
		lines = append(lines, fmt.Sprintf("%8d %s", n, k))
	}
	slices.SortFunc(lines, func(a, b string) int { return strings.Compare(a[9:], b[9:]) })
	t.Log("what happened, and what no law promises:\n" + strings.Join(lines, "\n"))
}

// each runs n worlds on all cores, every one in a single thread, and fails with the first that breaks a law.
func each(t *testing.T, n uint64, options func(i uint64) Options) *tally {
	t.Helper()
	sum := &tally{counts: map[string]int{}}
	var next atomic.Uint64
	var wg sync.WaitGroup
	for range runtime.GOMAXPROCS(0) {
		r := rigFor(t)
		wg.Go(func() {
			for i := next.Add(1) - 1; i < n && !t.Failed(); i = next.Add(1) - 1 {
				o := options(i)
				res := r.Run(o)
				sum.add(res)
				if res.Law != "" {
					t.Errorf("%s: %s\nseed %d, crash point %d, stopped at %d, of %+v\nto read it: go test ./tests/sim -run %s %d",
						res.Law, res.Text, o.Seed, o.CrashAt, o.FreezeAt, o.Modes, reader(o), o.Seed)
				}
			}
		})
	}
	wg.Wait()
	return sum
}

// reader is the test that shows what happens in a world, and its flag.
func reader(o Options) string {
	if o.Fleet {
		return "TestFleets -fleet"
	}
	return "TestRandom -seed"
}

// found are the seeds of testdata/seeds.txt.
func found(t *testing.T) (list []uint64) {
	t.Helper()
	data, err := os.ReadFile("testdata/seeds.txt")
	if err != nil {
		t.Fatal(err)
	}
	for line := range strings.Lines(string(data)) {
		word, _, _ := strings.Cut(strings.TrimSpace(line), " ")
		if word == "" || word == "#" {
			continue
		}
		n, err := strconv.ParseUint(word, 10, 64)
		if err != nil {
			t.Fatalf("testdata/seeds.txt: %v", err)
		}
		list = append(list, n)
	}
	return list
}

// TestRandom runs worlds in which everything goes wrong that may.
func TestRandom(t *testing.T) {
	if *seed > 0 {
		o := usual(*seed)
		o.Trace = true
		res := rigFor(t).Run(o)
		fmt.Print(res.Trace)
		if res.Law != "" {
			t.Fatalf("%s: %s", res.Law, res.Text)
		}
		return
	}
	old := found(t)
	all := append(old, make([]uint64, *seeds)...)
	for i := range *seeds {
		all[len(old)+int(i)] = i + 1
	}
	start := time.Now()
	each(t, uint64(len(all)), func(i uint64) Options { return usual(all[i]) }).log(t)
	t.Logf("%d seeds, %.0f a second on %d cores", len(all), float64(len(all))/time.Since(start).Seconds(), runtime.GOMAXPROCS(0))
}

// TestEveryCrashPoint kills the process once at each point where it can die, in runs without any other fault of the
// network. Applications are flawless in the even seeds and have their habits in the odd ones.
func TestEveryCrashPoint(t *testing.T) {
	modes := usual(0).Modes
	type kind struct {
		name  string
		roots int
		modes []txn.Mode
	}
	kinds := []kind{{"intercepted", 1, nil}, {"intercepted again", 1, nil}}
	for i, m := range modes {
		if !slices.Contains(modes[:i], m) {
			kinds = append(kinds, kind{string(m), 0, []txn.Mode{m}})
		}
	}
	for i, k := range kinds {
		t.Run(k.name, func(t *testing.T) {
			var all []Options
			r := rigFor(t)
			for s := range uint64(6) {
				o := Options{Seed: 1 + s + uint64(i)*100, Roots: k.roots, Modes: k.modes, Habits: float64(s % 2)}
				calm := r.Run(o)
				if calm.Law != "" {
					t.Fatalf("%s: %s\nwithout any fault, seed %d", calm.Law, calm.Text, o.Seed)
				}
				for at := 1; at <= calm.Points; at++ {
					o.CrashAt = at
					all = append(all, o)
				}
			}
			each(t, uint64(len(all)), func(i uint64) Options { return all[i] })
			t.Log("crash runs:", len(all))
		})
	}
}

// TestSameSeedSameRun compares two runs of one seed byte for byte.
func TestSameSeedSameRun(t *testing.T) {
	for s := range uint64(20) {
		o := usual(s + 1)
		o.Trace = true
		a, b := rigFor(t).Run(o), rigFor(t).Run(o)
		if a.Trace != b.Trace || a.Steps != b.Steps {
			t.Fatalf("seed %d: two runs differ", o.Seed)
		}
		if len(a.Trace) < 1000 {
			t.Fatalf("seed %d: nothing happens: %s", o.Seed, a.Trace)
		}
	}
}

// TestNobodyNeedsAControlPlane is L8: no world has one. Sidecars have their policies, peers and keys from the start,
// nothing in a world could give them others, and after a restart they have their disks and no more.
func TestNobodyNeedsAControlPlane(t *testing.T) {
	sum := each(t, 20, func(i uint64) Options { return usual(i + 1) })
	if sum.counts["intercepted committed"] == 0 || sum.counts["sidecar died"] == 0 {
		t.Errorf("L8: nothing ends in worlds without a control plane: %v", sum.counts)
	}
}

// bites runs worlds in which something is taken away, and wants the law that it breaks to be named.
func bites(t *testing.T, law string, take func(*Options)) {
	t.Helper()
	r := rigFor(t)
	caught, other := 0, map[string]int{}
	const n = 200
	for s := range uint64(n) {
		o := usual(s + 1)
		take(&o)
		switch res := r.Run(o); res.Law {
		case law:
			caught++
		case "":
		default:
			other[res.Law]++
		}
	}
	t.Logf("%s: %d of %d seeds; other laws: %v", law, caught, n, other)
	if caught == 0 {
		t.Errorf("no seed of %d sees it; other laws: %v", n, other)
	}
}

// hunted are worlds of all kinds in turn.
func hunted(i uint64) Options {
	o := usual(i/2 + 1)
	if i%2 == 0 {
		return o
	}
	o.Faults, o.Habits, o.CrashAt = 0, float64(i/2%2), int(i/2*37%400)
	o.Roots, o.Modes = 2, o.Modes[i/2%9:i/2%9+1]
	return o
}

// TestHunt looks for a world that breaks the law that -want names, whatever other laws are broken; that is how
// tests/mutate uses it. Where none is named, none may be broken.
func TestHunt(t *testing.T) {
	n := uint64(100)
	if *want != "" {
		n = *seeds
	}
	r, other, worlds := rigFor(t), map[string]int{}, hunted
	if *fleets {
		worlds = func(i uint64) Options { return fleetOf(i + 1) }
	}
	for i := range n {
		o := worlds(i)
		res := r.Run(o)
		switch {
		case res.Law == "":
		case res.Law == *want || *want == "":
			t.Fatalf("%s: %s\nseed %d, crash point %d", res.Law, res.Text, o.Seed, o.CrashAt)
		default:
			other[res.Law]++
		}
	}
	if *want != "" {
		t.Logf("%d worlds, and %s holds in all; other laws: %v", n, *want, other)
	}
}

func TestBarrierMatters(t *testing.T) { bites(t, "barrier", func(o *Options) { o.NoBarrier = true }) }

func TestSyncMatters(t *testing.T) { bites(t, "L14", func(o *Options) { o.NoSync = true }) }

func TestUndoMatters(t *testing.T) { bites(t, "conservation", func(o *Options) { o.NoUndo = true }) }
