package engine

import (
	"context"
	"errors"
	"fmt"
	"iter"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"txmesh/txlog"
	"txmesh/txlog/memory"
	"txmesh/txn"
)

// callerFunc is a Caller.
type callerFunc func(ctx context.Context, c txn.Call) (txn.Outcome, []byte, string)

func (f callerFunc) Call(ctx context.Context, c txn.Call) (txn.Outcome, []byte, string) {
	return f(ctx, c)
}

// book is a caller that keeps what it was asked and answers by a rule.
type book struct {
	mu     sync.Mutex // guards calls
	calls  []string
	answer func(ctx context.Context, c txn.Call) (txn.Outcome, []byte, string) // nil: ok
}

func (b *book) Call(ctx context.Context, c txn.Call) (txn.Outcome, []byte, string) {
	b.mu.Lock()
	b.calls = append(b.calls, fmt.Sprintf("%s %s %s", c.Tx, c.Op, c.Branch))
	b.mu.Unlock()
	if b.answer == nil {
		return txn.OK, nil, ""
	}
	return b.answer(ctx, c)
}

func (b *book) seen() string {
	b.mu.Lock()
	defer b.mu.Unlock()
	return strings.Join(b.calls, ", ")
}

func (b *book) reset() {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.calls = nil
}

func start(t *testing.T, s txlog.Journal, c Caller, change ...func(*Config)) *Engine {
	t.Helper()
	cfg := Config{Store: s, Caller: c}
	for _, f := range change {
		f(&cfg)
	}
	e, err := New(cfg)
	if err != nil {
		t.Fatal(err)
	}
	if err := e.Start(t.Context()); err != nil {
		t.Fatal(err)
	}
	return e
}

func stop(t *testing.T, e *Engine) {
	t.Helper()
	if err := e.Close(); err != nil {
		t.Fatal(err)
	}
}

func do(t *testing.T, e *Engine, id txn.ID, ev txn.Event) txn.State {
	t.Helper()
	s, err := e.Do(t.Context(), id, ev)
	if err != nil {
		t.Fatalf("%s %T: %v", id, ev, err)
	}
	return s
}

func begin(id txn.ID, mode txn.Mode, branches ...txn.Branch) txn.Begin {
	return txn.Begin{Spec: txn.Spec{ID: id, Mode: mode, Plan: mode.Plan(), Timeout: 30 * time.Second, Branches: branches}}
}

func branch(key string, ops ...txn.Op) txn.Branch {
	b := txn.Branch{Key: key}
	for _, op := range ops {
		b.Ops[op] = []byte(op.String())
	}
	return b
}

// intercepted begins a transaction with two answered branches that can be undone and confirmed.
func intercepted(t *testing.T, e *Engine, id txn.ID) {
	t.Helper()
	do(t, e, id, begin(id, txn.Intercepted))
	for _, key := range []string{"a", "b"} {
		do(t, e, id, txn.Enlist{Branch: branch(key, txn.Undo, txn.Commit), Calling: true})
	}
	for _, n := range []string{"0", "1"} {
		e.Post(id, txn.Returned{Branch: n, Op: txn.Forward, Outcome: txn.OK})
	}
}

func ended(s txn.State) bool { return s.Phase.Done() }

func wait(t *testing.T, e *Engine, id txn.ID, until func(txn.State) bool) txn.State {
	t.Helper()
	s, err := e.Wait(t.Context(), id, until)
	if err != nil {
		t.Fatalf("wait for %s: %v", id, err)
	}
	return s
}

func TestTwoBranchesCommit(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		calls := &book{}
		e := start(t, memory.New(memory.Options{}), calls)
		defer stop(t, e)
		intercepted(t, e, "x")
		if s := do(t, e, "x", txn.Decide{Commit: true, Answer: []byte("200")}); s.Phase != txn.Committing {
			t.Errorf("phase %s after the decision, want committing", s.Phase)
		}
		s := wait(t, e, "x", ended)
		if s.Phase != txn.Committed || string(s.Answer) != "200" {
			t.Errorf("ended %s with %q, want committed with 200", s.Phase, s.Answer)
		}
		synctest.Wait()
		if got := len(strings.Split(calls.seen(), ", ")); got != 2 {
			t.Errorf("calls %s, want two commits", calls.seen())
		}
		e.Each(func(s txn.State) { t.Errorf("%s is still in memory", s.Spec.ID) })
		if _, ok := e.Oldest(); ok {
			t.Error("an oldest transaction where none is open")
		}
	})
}

// TestFinishedTransactionsAnswerFromTheJournal also shows that a repeated Begin does not begin twice.
func TestFinishedTransactionsAnswerFromTheJournal(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		calls := &book{}
		e := start(t, memory.New(memory.Options{}), calls)
		defer stop(t, e)
		saga := begin("x", txn.Saga, branch("", txn.Forward, txn.Undo))
		saga.Spec.Key = "k"
		do(t, e, "x", saga)
		wait(t, e, "x", ended)
		synctest.Wait()
		calls.reset()

		if s := do(t, e, "x", saga); s.Phase != txn.Committed {
			t.Errorf("repeated begin: %s, want committed", s.Phase)
		}
		other := begin("x", txn.Saga)
		if _, err := e.Do(t.Context(), "x", other); !errors.Is(err, txn.ErrConflict) {
			t.Errorf("other begin: %v, want %v", err, txn.ErrConflict)
		}
		if s, err := e.Do(t.Context(), "x", txn.Decide{}); !errors.Is(err, txn.ErrDecided) || s.Phase != txn.Committed {
			t.Errorf("abort: %s, %v, want committed, %v", s.Phase, err, txn.ErrDecided)
		}
		if s, err := e.State(t.Context(), "x"); err != nil || s.Phase != txn.Committed {
			t.Errorf("state: %s, %v", s.Phase, err)
		}
		if _, err := e.Wait(t.Context(), "x", func(s txn.State) bool { return s.Phase == txn.Aborted }); !errors.Is(err, ErrEnded) {
			t.Errorf("wait for an abort: %v, want %v", err, ErrEnded)
		}
		if id, err := e.Find(t.Context(), "k"); id != "x" || err != nil {
			t.Errorf("find: %q, %v", id, err)
		}
		for _, err := range []error{
			second(e.Find(t.Context(), "other")),
			second(e.State(t.Context(), "y")),
			second(e.Do(t.Context(), "y", txn.Decide{})),
			second(e.Wait(t.Context(), "y", ended)),
		} {
			if !errors.Is(err, txn.ErrUnknown) {
				t.Errorf("unknown transaction: %v, want %v", err, txn.ErrUnknown)
			}
		}
		e.Post("x", txn.Returned{Branch: "0", Op: txn.Undo, Outcome: txn.OK})
		synctest.Wait()
		if calls.seen() != "" {
			t.Errorf("calls after the end: %s", calls.seen())
		}
	})
}

func second[T any](_ T, err error) error { return err }

func TestManyBeginsOfOneID(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		began := 0
		e := start(t, memory.New(memory.Options{}), &book{}, func(c *Config) {
			c.Observer.Began = func(txn.Mode) { began++ }
		})
		defer stop(t, e)
		var wg sync.WaitGroup
		for range 20 {
			wg.Go(func() { do(t, e, "x", begin("x", txn.Saga, branch("", txn.Forward))) })
		}
		wg.Wait()
		synctest.Wait()
		if began != 1 {
			t.Errorf("begun %d times, want once", began)
		}
	})
}

func TestWaitersGoAway(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		e := start(t, memory.New(memory.Options{}), &book{})
		defer stop(t, e)
		do(t, e, "x", begin("x", txn.TCC))
		ctx, cancel := context.WithTimeout(t.Context(), time.Second)
		defer cancel()
		if _, err := e.Wait(ctx, "x", func(s txn.State) bool { return s.Decided() }); !errors.Is(err, context.DeadlineExceeded) {
			t.Errorf("wait: %v, want %v", err, context.DeadlineExceeded)
		}
		synctest.Wait()
		left := -1
		e.inLoop(func(l *loop) { left = len(l.waiters) })
		if left != 0 {
			t.Errorf("%d waiters left", left)
		}
	})
}

// slowHistory reads, and hands over what it read when it is let go.
type slowHistory struct {
	*memory.Store
	reading chan struct{} // says that one has read
	release chan struct{}
}

func (s *slowHistory) History(ctx context.Context, id txn.ID) iter.Seq2[txlog.Entry, error] {
	var entries []txlog.Entry
	for e, err := range s.Store.History(ctx, id) {
		if err == nil {
			entries = append(entries, e)
		}
	}
	select {
	case s.reading <- struct{}{}:
		<-s.release
	default: // only the first is slow
	}
	return func(yield func(txlog.Entry, error) bool) {
		for _, e := range entries {
			if !yield(e, nil) {
				return
			}
		}
	}
}

// TestBeginIsNotBegunTwice where one Begin looks into the journal, another begins and ends the transaction, and
// only then the first comes back with what it saw.
func TestBeginIsNotBegunTwice(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := &slowHistory{Store: memory.New(memory.Options{}), reading: make(chan struct{}, 1), release: make(chan struct{})}
		began := 0
		e := start(t, s, &book{}, func(c *Config) { c.Observer.Began = func(txn.Mode) { began++ } })
		defer stop(t, e)
		first := make(chan error, 1)
		go func() { first <- second(e.Do(t.Context(), "x", begin("x", txn.TCC))) }()
		synctest.Wait()
		do(t, e, "x", begin("x", txn.TCC))
		do(t, e, "x", txn.Decide{Commit: true})
		synctest.Wait()
		close(s.release)
		if err := <-first; err != nil || began != 1 {
			t.Errorf("the late begin: %v; begun %d times, want once", err, began)
		}
		left := -1
		e.inLoop(func(l *loop) { left = len(l.lookups) })
		if left != 0 {
			t.Errorf("%d lookups left", left)
		}
	})
}

// TestWakesUpOnTime: at the deadlines, not before, whichever comes first.
// TestBeginOfANewID asks the journal whether it takes transactions, and not for what it knows of this one.
func TestBeginOfANewID(t *testing.T) {
	store := &unasked{Store: memory.New(memory.Options{})}
	e := start(t, store, &book{})
	defer stop(t, e)
	if s, err := e.Begin(t.Context(), begin("x", txn.TCC)); err != nil || !s.Begun {
		t.Fatalf("begun %t, %v", s.Begun, err)
	}
	if n := store.asked.Load(); n > 0 {
		t.Errorf("the journal was asked %d times", n)
	}
	store.full = true
	if _, err := e.Begin(t.Context(), begin("y", txn.TCC)); !errors.Is(err, txlog.ErrFull) {
		t.Errorf("begin on a full disk: %v", err)
	}
	if _, err := e.State(t.Context(), "y"); !errors.Is(err, txn.ErrUnknown) {
		t.Errorf("what was refused: %v, want it unknown", err)
	}
}

// unasked counts who asks for a history.
type unasked struct {
	*memory.Store
	asked atomic.Int32
	full  bool
}

func (s *unasked) History(ctx context.Context, id txn.ID) iter.Seq2[txlog.Entry, error] {
	s.asked.Add(1)
	return s.Store.History(ctx, id)
}

func (s *unasked) Accepts() error {
	if s.full {
		return txlog.ErrFull
	}
	return s.Store.Accepts()
}

func TestWakesUpOnTime(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		e := start(t, memory.New(memory.Options{}), &book{})
		defer stop(t, e)
		began := time.Now()
		for i, timeout := range []time.Duration{time.Hour, time.Minute, 24 * time.Hour, time.Second} {
			b := begin(txn.ID(fmt.Sprint("x", i)), txn.TCC)
			b.Spec.Timeout = timeout
			do(t, e, b.Spec.ID, b)
		}
		do(t, e, "x1", txn.Extend{Timeout: 2 * time.Minute})
		do(t, e, "x3", txn.Decide{Commit: true})
		var took []string
		for _, id := range []txn.ID{"x1", "x0", "x2"} {
			if s := wait(t, e, id, ended); s.Phase != txn.Aborted || s.Reason != "expired" {
				t.Errorf("%s is %s: %s, want it expired", id, s.Phase, s.Reason)
			}
			took = append(took, time.Since(began).String())
		}
		if want := "[2m0s 1h0m0s 24h0m0s]"; fmt.Sprint(took) != want {
			t.Errorf("woken after %v, want %s", took, want)
		}
	})
}

// TestDoAndWaitIsDoAndThenWait: one request, answered when the predicate holds, or at an end at which it does not.
func TestDoAndWaitIsDoAndThenWait(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		e := start(t, memory.New(memory.Options{}), callerFunc(func(context.Context, txn.Call) (txn.Outcome, []byte, string) {
			time.Sleep(time.Second)
			return txn.OK, nil, ""
		}))
		defer stop(t, e)
		began := time.Now()
		s, err := e.DoAndWait(t.Context(), "x", begin("x", txn.Saga, branch("", txn.Forward), branch("", txn.Forward)), ended)
		if took := time.Since(began); err != nil || s.Phase != txn.Committed || took != 2*time.Second {
			t.Errorf("%v, %v after %v; want committed after 2s", s.Phase, err, took)
		}
		s, err = e.DoAndWait(t.Context(), "x", begin("x", txn.Saga, branch("", txn.Forward), branch("", txn.Forward)),
			func(s txn.State) bool { return s.Phase == txn.Aborted })
		if !errors.Is(err, ErrEnded) || s.Phase != txn.Committed {
			t.Errorf("of an ended one: %v, %v; want committed and ErrEnded", s.Phase, err)
		}
		ctx, cancel := context.WithTimeout(t.Context(), 500*time.Millisecond)
		defer cancel()
		if _, err := e.DoAndWait(ctx, "y", begin("y", txn.Saga, branch("", txn.Forward)), ended); !errors.Is(err, context.DeadlineExceeded) {
			t.Errorf("before the end: %v, want the deadline", err)
		}
		if s := wait(t, e, "y", ended); s.Phase != txn.Committed {
			t.Errorf("it went on to %v, want committed", s.Phase)
		}
	})
}

// TestDoAndSeeShowsWhatDoReturns: open, refused, and after the end; and its answer waits for the journal while a peek
// does not.
func TestDoAndSeeShowsWhatDoReturns(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		store := &slowStore{Store: memory.New(memory.Options{})}
		e := start(t, store, &book{})
		defer stop(t, e)
		do(t, e, "x", begin("x", txn.Explicit))
		store.takes = time.Second
		began := time.Now()
		var peeked time.Duration
		peeks := make(chan int)
		go func() {
			time.Sleep(time.Millisecond)
			var branches int
			if !e.Peek("x", func(s txn.State) { branches = len(s.Branches) }) {
				t.Error("a peek does not find an open transaction")
			}
			peeked = time.Since(began)
			peeks <- branches
		}()
		var seen string
		err := e.DoAndSee(t.Context(), "x", txn.Enlist{Branch: branch("k", txn.Undo), Answered: txn.OK}, func(s txn.State) {
			seen = s.ByKey("k").ID
		})
		if took := time.Since(began); err != nil || seen != "0" || took != time.Second {
			t.Errorf("branch %q, %v after %v; want 0 after the append", seen, err, took)
		}
		if n := <-peeks; n != 1 || peeked != time.Millisecond {
			t.Errorf("a peek saw %d branches after %v, want 1 at once", n, peeked)
		}
		do(t, e, "x", txn.Decide{Commit: true})
		wait(t, e, "x", ended)
		phase := txn.Open
		if err := e.DoAndSee(t.Context(), "x", txn.Decide{Commit: true}, func(s txn.State) { phase = s.Phase }); err != nil || phase != txn.Committed {
			t.Errorf("of an ended one: %v, %v; want committed", phase, err)
		}
		if err := e.DoAndSee(t.Context(), "x", txn.Decide{}, func(txn.State) {}); !errors.Is(err, txn.ErrDecided) {
			t.Errorf("the other decision: %v, want ErrDecided", err)
		}
		if e.Peek("x", func(txn.State) {}) {
			t.Error("a peek finds what is not in memory")
		}
	})
}

// slowStore takes its time for each append.
type slowStore struct {
	*memory.Store
	takes time.Duration
}

func (s *slowStore) Append(ctx context.Context, es []txlog.Entry, sync bool) error {
	time.Sleep(s.takes)
	return s.Store.Append(ctx, es, sync)
}
