package sim

import (
	"flag"
	"fmt"
	"testing"

	"txmesh/txn"
)

var (
	fleetSeed = flag.Uint64("fleet", 0, "the one seed that TestFleets runs, with its trace")
	fleets    = flag.Bool("fleets", false, "TestHunt looks among fleets")
)

// fleetOf is the world of TestFleets.
func fleetOf(seed uint64) Options {
	o := usual(seed)
	o.Fleet, o.Sharing = true, seed%2 == 0
	return o
}

// TestFleets runs worlds whose sidecars share a store, in which everything goes wrong that may.
func TestFleets(t *testing.T) {
	if *fleetSeed > 0 {
		o := fleetOf(*fleetSeed)
		o.Trace = true
		res := rigFor(t).Run(o)
		fmt.Print(res.Trace)
		if res.Law != "" {
			t.Fatalf("%s: %s", res.Law, res.Text)
		}
		return
	}
	each(t, max(*seeds/20, 20), func(i uint64) Options { return fleetOf(i + 1) }).log(t)
}

// TestEveryCrashPointOfAFleet has a sidecar or an application die at each point of small worlds, or a sidecar stop for
// longer than its lease lasts and go on with what it has in hand; others adopt what was open.
func TestEveryCrashPointOfAFleet(t *testing.T) {
	var all []Options
	r := rigFor(t)
	for s := range uint64(4) {
		o := Options{Seed: 1 + s, Roots: 1, Fleet: true, Habits: float64(s / 2)}
		if s%2 == 1 {
			o.Roots, o.Modes = 0, []txn.Mode{txn.Saga, txn.TCC}
		}
		calm := r.Run(o)
		if calm.Law != "" {
			t.Fatalf("%s: %s\nwithout any fault, seed %d", calm.Law, calm.Text, o.Seed)
		}
		for at := 1; at <= calm.Points; at++ {
			o.CrashAt, o.FreezeAt = at, 0
			all = append(all, o)
			o.CrashAt, o.FreezeAt = 0, at
			all = append(all, o)
		}
	}
	sum := each(t, uint64(len(all)), func(i uint64) Options { return all[i] })
	t.Log("runs:", len(all), "journals adopted:", sum.counts["journal adopted"], "fenced:", sum.counts["fenced"])
	if sum.counts["journal adopted"] == 0 || sum.counts["fenced"] == 0 {
		t.Error("nobody adopts anything, or nobody is fenced")
	}
}

// TestOpenedJournalsTakeNothingOlder: the simulated store refuses an append that was sent before its journal was opened
// anew. Without that, what was taken for lost can come true behind the back of who has read the journal.
func TestOpenedJournalsTakeNothingOlder(t *testing.T) {
	r := rigFor(t)
	for s := range uint64(400) {
		o := fleetOf(s + 1)
		o.Late = true
		if res := r.Run(o); res.Law == "L3" || res.Law == "L4" {
			t.Logf("seed %d: %s: %s", o.Seed, res.Law, res.Text[:min(80, len(res.Text))])
			return
		}
	}
	t.Error("no seed sees it")
}

func TestSameSeedSameFleet(t *testing.T) {
	for s := range uint64(3) {
		o := fleetOf(s + 1)
		o.Trace = true
		a, b := rigFor(t).Run(o), rigFor(t).Run(o)
		if a.Trace != b.Trace || a.Steps != b.Steps {
			t.Fatalf("seed %d: two runs differ", o.Seed)
		}
	}
}
