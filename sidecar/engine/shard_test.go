package engine

import (
	"context"
	"errors"
	"fmt"
	"reflect"
	"testing"
	"testing/synctest"
	"time"

	"txmesh/txlog"
	"txmesh/txlog/memory"
	"txmesh/txn"
)

var epoch = time.Unix(1_700_000_000, 0).UTC()

func step(t *testing.T, s *Shard, now time.Time, id txn.ID, ev txn.Event) Ready {
	t.Helper()
	if err := s.Step(now, id, ev); err != nil {
		t.Fatal(err)
	}
	return s.Ready()
}

// TestOneAlarmPerTransaction: a thousand extensions leave one alarm, at the last deadline.
func TestOneAlarmPerTransaction(t *testing.T) {
	s := NewShard(Limits{})
	for _, id := range []txn.ID{"b", "a", "c"} {
		step(t, s, epoch, id, begin(id, txn.TCC))
	}
	for i := range 1000 {
		step(t, s, epoch, "a", txn.Extend{Timeout: time.Duration(i+1) * time.Minute})
	}
	if len(s.alarms) != 3 || !s.Next().Equal(epoch.Add(30*time.Second)) {
		t.Errorf("%d alarms, next %v, want 3 and the first deadline", len(s.alarms), s.Next())
	}
	s.Tick(epoch.Add(30 * time.Second))
	var order []txn.ID
	for _, e := range s.Ready().Entries {
		order = append(order, e.Tx)
	}
	if got := fmt.Sprint(order); got != "[b b c c]" { // each decided and finished
		t.Errorf("woke %s, want b and c in order", got)
	}
	if want := epoch.Add(1000 * time.Minute); len(s.alarms) != 1 || !s.Next().Equal(want) {
		t.Errorf("%d alarms, next %v, want 1 at %v", len(s.alarms), s.Next(), want)
	}
	step(t, s, epoch.Add(time.Minute), "a", txn.Decide{})
	if len(s.alarms) != 0 || !s.Next().IsZero() {
		t.Errorf("an alarm is left for a finished transaction: %v", s.Next())
	}
}

// TestFinishedLeaveTheMemoryOnceAppended, and not before: History could not know their end yet.
func TestFinishedLeaveTheMemoryOnceAppended(t *testing.T) {
	s := NewShard(Limits{})
	step(t, s, epoch, "x", begin("x", txn.TCC))
	rd := step(t, s, epoch, "x", txn.Decide{Commit: true})
	if !s.Has("x") {
		t.Error("left before its end was appended")
	}
	if _, open := s.Oldest(); open {
		t.Error("a finished transaction counts as open")
	}
	if got := s.Appended(rd); len(got) != 1 || got[0] != "x" || s.Has("x") || s.Len() != 0 {
		t.Errorf("ended %v, still there %v", got, s.Has("x"))
	}
}

// TestLoadGoesOn restores what Each step left, wakes it and asks for a sync.
func TestLoadGoesOn(t *testing.T) {
	s := NewShard(Limits{})
	s.Load(epoch, nil)
	if rd := s.Ready(); !rd.Sync {
		t.Error("L3: what was loaded is not made durable")
	}
	var journal []txlog.Entry
	for _, id := range []txn.ID{"x", "y"} {
		journal = append(journal, step(t, s, epoch, id, begin(id, txn.Saga, branch("", txn.Forward, txn.Undo))).Entries...)
	}
	done := step(t, s, epoch, "y", txn.Returned{Branch: "0", Op: txn.Forward, Outcome: txn.OK})
	journal = append(journal, done.Entries...)

	r := NewShard(Limits{})
	r.Load(epoch.Add(time.Second), journal)
	rd := r.Ready()
	if len(rd.Entries) != 0 || len(rd.Calls) != 1 || rd.Calls[0].Tx != "x" || !rd.Sync {
		t.Errorf("after the load: %+v, want the forward call of x", rd)
	}
	if r.Has("y") || !r.Begun("x").Equal(epoch) {
		t.Errorf("y is there: %v; x begun at %v, want %v", r.Has("y"), r.Begun("x"), epoch)
	}
	a, errA := s.State("x")
	b, errB := r.State("x")
	if errA != nil || errB != nil || !reflect.DeepEqual(a, b) {
		t.Errorf("L4: loaded %+v, was %+v (%v, %v)", b, a, errB, errA)
	}
}

// TestBrokenTransactionHarmsNobodyElse: its records cannot have been written by a machine.
func TestBrokenTransactionHarmsNobodyElse(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		store := memory.New(memory.Options{})
		at := time.Now().UTC()
		err := store.Append(t.Context(), []txlog.Entry{
			{Tx: "bad", At: at, Record: txn.Began{Spec: begin("bad", txn.TCC).Spec}},
			{Tx: "bad", At: at, Record: txn.Left{Branch: "7"}},
			{Tx: "good", At: at, Record: txn.Began{Spec: begin("good", txn.TCC).Spec}},
		}, true)
		if err != nil {
			t.Fatal(err)
		}
		e := start(t, store, &book{})
		defer stop(t, e)
		want := "transaction bad: engine: the records of this transaction cannot be followed: " +
			"txn: record names a branch that is not enlisted: 7"
		for _, err := range []error{second(e.State(t.Context(), "bad")), second(e.Do(t.Context(), "bad", txn.Decide{}))} {
			if !errors.Is(err, ErrBroken) || err.Error() != want {
				t.Errorf("got  %v\nwant %s", err, want)
			}
		}
		if s := do(t, e, "good", txn.Decide{Commit: true}); s.Phase != txn.Committed {
			t.Errorf("the good one is %s, want committed", s.Phase)
		}
		if _, open := e.Oldest(); !open {
			t.Error("a broken transaction must be seen by its age")
		}
		if all, err := e.All(); !errors.Is(err, ErrBroken) || all != nil {
			t.Errorf("all open ones: %v, %v; want none and why", all, err)
		}
		e.Each(func(s txn.State) {
			if s.Spec.ID != "bad" || s.Phase != txn.Stuck || s.Reason != want {
				t.Errorf("listed as %s, %s: %s", s.Spec.ID, s.Phase, s.Reason)
			}
		})
	})
}

// BenchmarkDo runs a whole intercepted transaction of two branches: begin, two enlists, two answers, the decision,
// two confirms, on a store that needs no disk.
func BenchmarkDo(b *testing.B) {
	e, err := New(Config{Store: memory.New(memory.Options{}), Caller: &quick{}})
	if err != nil {
		b.Fatal(err)
	}
	if err := e.Start(b.Context()); err != nil {
		b.Fatal(err)
	}
	defer func() { _ = e.Close() }() // nothing is left to be told
	one := branch("a", txn.Undo, txn.Commit)
	two := branch("b", txn.Undo, txn.Commit)
	n := 0
	b.ReportAllocs()
	for b.Loop() {
		n++
		id := txn.ID(fmt.Sprint("x", n))
		events := []txn.Event{begin(id, txn.Intercepted), txn.Enlist{Branch: one, Calling: true}, nil,
			txn.Enlist{Branch: two, Calling: true}, nil, txn.Decide{Commit: true}}
		for i, ev := range events {
			if ev == nil {
				e.Post(id, txn.Returned{Branch: []string{"0", "1"}[i/4], Op: txn.Forward, Outcome: txn.OK})
				continue
			}
			if _, err := e.Do(b.Context(), id, ev); err != nil {
				b.Fatal(err)
			}
		}
		if _, err := e.Wait(b.Context(), id, ended); err != nil {
			b.Fatal(err)
		}
	}
}

// BenchmarkShard is the deciding alone: the same events, without goroutines and store.
func BenchmarkShard(b *testing.B) {
	s := NewShard(Limits{})
	branches := []txn.Branch{branch("a", txn.Undo, txn.Commit), branch("b", txn.Undo, txn.Commit)}
	b.ReportAllocs()
	for b.Loop() {
		feed := func(ev txn.Event) {
			if err := s.Step(epoch, "x", ev); err != nil {
				b.Fatal(err)
			}
		}
		feed(begin("x", txn.Intercepted))
		for i, n := range []string{"0", "1"} {
			feed(txn.Enlist{Branch: branches[i], Calling: true})
			feed(txn.Returned{Branch: n, Op: txn.Forward, Outcome: txn.OK})
		}
		feed(txn.Decide{Commit: true})
		for _, n := range []string{"0", "1"} {
			feed(txn.Returned{Branch: n, Op: txn.Commit, Outcome: txn.OK})
		}
		if s.Appended(s.Ready()); s.Has("x") {
			b.Fatal("not ended")
		}
	}
}

type quick struct{}

func (*quick) Call(_ context.Context, _ txn.Call) (txn.Outcome, []byte, string) {
	return txn.OK, nil, ""
}
