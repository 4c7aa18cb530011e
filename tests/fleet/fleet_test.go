//go:build linux

package fleet

import (
	"context"
	"math/rand/v2"
	"os"
	"strconv"
	"testing"
	"time"
)

// What a run of a minute must have at least: those of 20 minutes are 50,000 transfers and 100 faults.
const (
	transfersPerMinute = 2500
	faultsPerMinute    = 5
)

// settleMax is how long after the last fault something may still be open.
const settleMax = 30 * time.Second

// asked reads how long a run is to last, and its seed.
func asked(t *testing.T) (lasts time.Duration, seed uint64) {
	t.Helper()
	text := os.Getenv("TXMESH_FLEET")
	if text == "" {
		t.Skip("a run takes minutes and both cores: ask for it by TXMESH_FLEET=2m, or make soak")
	}
	lasts, err := time.ParseDuration(text)
	if err != nil || lasts < 2*lastsMax {
		t.Fatalf("TXMESH_FLEET is %q: want a duration of at least %v, such as 2m", text, 2*lastsMax)
	}
	seed = rand.Uint64()
	if text := os.Getenv("TXMESH_SEED"); text != "" {
		if seed, err = strconv.ParseUint(text, 10, 64); err != nil {
			t.Fatalf("TXMESH_SEED is %q: want a number", text)
		}
	}
	t.Logf("TXMESH_FLEET=%v TXMESH_SEED=%d", lasts, seed)
	return lasts, seed
}

// TestFleetLosesNothing is the main proof of the fleet.
func TestFleetLosesNothing(t *testing.T) {
	lasts, seed := asked(t)
	w := newWorld(t, seed)
	began := time.Now()
	s := &storm{w: w, began: began, active: map[int]Fault{}}
	l := &load{w: w, seed: seed, rate: 60, clients: 192, began: began, client: clientOn(w.clients)}
	ctx, stop := context.WithCancel(t.Context())
	defer stop()
	loaded := make(chan struct{})
	go func() {
		defer close(loaded)
		l.run(ctx)
	}()
	go func() { // a slow machine may take twice the time for what a run must have
		defer stop()
		pause(ctx, lasts)
		for time.Since(began) < 2*lasts && !enough(l, s, lasts) {
			pause(ctx, time.Second)
		}
	}()
	s.rage(ctx, Draw(seed, 2*lasts, w.roster))
	<-ctx.Done()
	ended := time.Since(began)
	settled := w.settle(settleMax)
	<-loaded
	bad := &wrong{t: t}
	for _, err := range s.errs { // first: without the store's members nothing else can be read
		bad.addf("%v", err)
	}
	f := w.checkStore(bad)
	all := w.checkBooks(bad, f)
	checkPromises(bad, l.made, all)
	for _, u := range w.units {
		if !u.process.Running() {
			bad.addf("%s has ended by itself: %v\n%s", u.name, u.process.Err(), u.process.Tail())
		}
	}
	t.Log(report{s, l, f, ended, settled, bad.count})
	if !enough(l, s, lasts) {
		t.Errorf("%d transfers and %d faults in %v, want %v and %v", len(l.made), len(s.struck), ended, transfersPerMinute*lasts.Minutes(), faultsPerMinute*lasts.Minutes())
	}
}

// enough tells whether a run has what it must have.
func enough(l *load, s *storm, lasts time.Duration) bool {
	l.mu.Lock()
	made := len(l.made)
	l.mu.Unlock()
	s.mu.Lock()
	defer s.mu.Unlock()
	return float64(made) >= transfersPerMinute*lasts.Minutes() && float64(len(s.struck)) >= faultsPerMinute*lasts.Minutes()
}
