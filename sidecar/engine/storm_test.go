package engine

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"txmesh/txlog"
	"txmesh/txlog/memory"
	"txmesh/txlog/txlogtest"
	"txmesh/txn"
)

// dice is shared by goroutines.
type dice struct {
	mu  sync.Mutex // guards rng
	rng *rand.Rand
}

func (d *dice) n(n int) int {
	d.mu.Lock()
	defer d.mu.Unlock()
	return d.rng.IntN(n)
}

// witness is a caller that looks into the journal at the moment of each call.
type witness struct {
	t     *testing.T
	store *memory.Store
	dice  *dice
}

func (w *witness) Call(ctx context.Context, c txn.Call) (txn.Outcome, []byte, string) {
	var records []txn.Record
	for e, err := range w.store.History(ctx, c.Tx) {
		if err != nil {
			return txn.Unknown, nil, err.Error()
		}
		records = append(records, e.Record)
	}
	s := txn.Fold(records)
	switch {
	case c.Op == txn.Forward && !s.Begun:
		w.t.Errorf("L2: forward call of %s %s, and nothing of it is in the journal", c.Tx, c.Branch)
	case c.Op == txn.Commit && (!s.Decided() || !s.Commit), c.Op == txn.Undo && (!s.Decided() || s.Commit && !s.Find(c.Branch).Undone):
		w.t.Errorf("L1: %s of %s %s, and the journal says %s", c.Op, c.Tx, c.Branch, s.Phase)
	}
	time.Sleep(time.Duration(w.dice.n(50)) * time.Millisecond)
	switch w.dice.n(20) {
	case 0:
		panic("a call")
	case 1:
		<-ctx.Done()
		return txn.Unknown, nil, "hung"
	case 2:
		return txn.Unknown, nil, "reset"
	case 3:
		return txn.Pending, nil, "not yet"
	case 4:
		if c.Op == txn.Forward {
			return txn.Refused, nil, "no"
		}
	}
	return txn.OK, nil, ""
}

// TestStorm drives the whole engine from many goroutines while one append in twenty fails, written or not. The
// journal has the last word: what was acknowledged is in it, and when the faults stop everything ends.
func TestStorm(t *testing.T) {
	for seed := range uint64(20) {
		t.Run(fmt.Sprint("seed ", seed), func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) { storm(t, seed) })
		})
	}
}

func storm(t *testing.T, seed uint64) {
	d := &dice{rng: rand.New(rand.NewPCG(seed, 3))}
	calm := time.Now().Add(time.Minute)
	bad := func([]txlog.Entry) bool { return time.Now().Before(calm) && d.n(40) == 0 }
	store := memory.New(memory.Options{})
	s := txlogtest.Faulty(store,
		txlogtest.Rule{On: txlogtest.OnAppend, From: 2, To: -1, If: bad, Err: errDisk, Delay: time.Millisecond},
		txlogtest.Rule{On: txlogtest.OnAppend, From: 2, To: -1, If: bad, Err: errDisk, Written: true},
		txlogtest.Rule{On: txlogtest.OnAppend, To: -1, Delay: time.Millisecond})
	e := start(t, s, &witness{t, store, d}, func(c *Config) { c.CallTimeout, c.CallsMax, c.BatchMax = time.Second, 20, 16 })
	defer stop(t, e)
	told := map[txn.ID]txn.Phase{}
	var mu sync.Mutex // guards told
	var wg sync.WaitGroup
	for i := range 40 {
		wg.Go(func() {
			for n := range 5 {
				id := txn.ID(fmt.Sprintf("x%d-%d", i, n))
				if phase, ok := client(t, e, d, id); ok {
					mu.Lock()
					told[id] = phase
					mu.Unlock()
				}
			}
		})
	}
	wg.Wait()
	time.Sleep(time.Hour)
	e.Each(func(s txn.State) { t.Errorf("L7: %s is still %s", s.Spec.ID, s.Phase) })
	for id, phase := range told {
		if got, err := e.State(t.Context(), id); err != nil || got.Phase != phase {
			t.Errorf("L3, L14: the client of %s was told %s, the journal says %s, %v", id, phase, got.Phase, err)
		}
	}
	if len(told) < 150 {
		t.Errorf("only %d of 200 were told the end", len(told))
	}
}

// client runs one transaction, repeats what it is not sure of, and returns the end that it was told.
func client(t *testing.T, e *Engine, d *dice, id txn.ID) (txn.Phase, bool) {
	sure := func(ev txn.Event) (txn.State, error) {
		for {
			s, err := e.Do(t.Context(), id, ev)
			if !errors.Is(err, ErrUnavailable) {
				return s, err
			}
			time.Sleep(time.Duration(50+d.n(200)) * time.Millisecond)
		}
	}
	mode := []txn.Mode{txn.Saga, txn.TCC, txn.Intercepted, txn.Explicit}[d.n(4)]
	b := begin(id, mode)
	if mode == txn.Saga {
		b.Spec.Branches = []txn.Branch{branch("", txn.Forward, txn.Undo), branch("", txn.Forward, txn.Undo)}
	}
	if _, err := sure(b); err != nil {
		t.Errorf("begin %s: %v", id, err)
	}
	if mode != txn.Saga {
		drive(e, d, id, sure)
	}
	for range 10 {
		s, err := e.Wait(timeout(t, time.Minute), id, ended)
		if err == nil {
			return s.Phase, true
		}
		time.Sleep(time.Second)
	}
	return 0, false
}

// drive enlists two branches, answers for them and decides. Any of it may be refused by then.
func drive(e *Engine, d *dice, id txn.ID, sure func(txn.Event) (txn.State, error)) {
	for _, key := range []string{"a", "b"} {
		s, err := sure(txn.Enlist{Branch: branch(key, txn.Commit, txn.Undo), Calling: true})
		if err != nil {
			continue
		}
		e.Post(id, txn.Returned{Branch: s.ByKey(key).ID, Op: txn.Forward, Outcome: []txn.Outcome{txn.OK, txn.OK, txn.Refused, txn.Unknown}[d.n(4)]})
	}
	if d.n(5) > 0 {
		_, _ = sure(txn.Decide{Commit: d.n(3) > 0}) // whatever it says, the end counts
	}
}
