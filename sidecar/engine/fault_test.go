package engine

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"txmesh/txlog"
	"txmesh/txlog/memory"
	"txmesh/txlog/txlogtest"
	"txmesh/txn"
)

var errDisk = errors.New("input/output error")

// TestL6HungCallDelaysNobodyElse: it is answered unknown at its time-out, and made again.
func TestL6HungCallDelaysNobodyElse(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		tries := 0
		calls := &book{answer: func(ctx context.Context, c txn.Call) (txn.Outcome, []byte, string) {
			if c.Tx != "hung" {
				return txn.OK, nil, ""
			}
			if tries++; tries < 3 {
				<-ctx.Done()
				time.Sleep(500 * time.Millisecond)
				return txn.OK, nil, "too late to count"
			}
			return txn.OK, nil, ""
		}}
		var unknown atomic.Int32
		e := start(t, memory.New(memory.Options{}), calls, func(c *Config) {
			c.CallTimeout = 5 * time.Second
			c.Observer.Called = func(_ txn.Op, out txn.Outcome, took time.Duration) {
				if out == txn.Unknown && took == 5*time.Second {
					unknown.Add(1)
				}
			}
		})
		defer stop(t, e)
		began := time.Now()
		do(t, e, "hung", begin("hung", txn.Msg, branch("", txn.Commit)))
		do(t, e, "hung", txn.Decide{Commit: true})
		do(t, e, "well", begin("well", txn.Msg, branch("", txn.Commit)))
		do(t, e, "well", txn.Decide{Commit: true})
		wait(t, e, "well", ended)
		if took := time.Since(began); took != 0 {
			t.Errorf("the well one took %v beside a hung one", took)
		}
		wait(t, e, "hung", ended)
		if took := time.Since(began); took != 13*time.Second || unknown.Load() != 2 {
			t.Errorf("the hung one took %v with %d unknown answers, want 5s + 1s + 5s + 2s with 2", took, unknown.Load())
		}
	})
}

func TestL6PanickingCallerCountsAsUnknown(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		tries := 0
		e := start(t, memory.New(memory.Options{}), callerFunc(func(context.Context, txn.Call) (txn.Outcome, []byte, string) {
			if tries++; tries == 1 {
				panic("caller")
			}
			return txn.OK, nil, ""
		}))
		defer stop(t, e)
		do(t, e, "x", begin("x", txn.Msg, branch("", txn.Commit)))
		do(t, e, "x", txn.Decide{Commit: true})
		s := wait(t, e, "x", func(s txn.State) bool { return s.Branches[0].Known[txn.Commit].Attempt == 1 })
		if got, want := s.Branches[0].Known[txn.Commit].Cause, "the call panicked: caller"; got != want {
			t.Errorf("cause %q, want %q", got, want)
		}
		wait(t, e, "x", ended)
	})
}

// TestCallsBeyondTheLimitWait: they are made when others have come back, none is lost.
func TestCallsBeyondTheLimitWait(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var now, most atomic.Int32
		e := start(t, memory.New(memory.Options{}), callerFunc(func(context.Context, txn.Call) (txn.Outcome, []byte, string) {
			most.Store(max(most.Load(), now.Add(1)))
			time.Sleep(time.Second)
			now.Add(-1)
			return txn.OK, nil, ""
		}), func(c *Config) { c.CallsMax = 3 })
		defer stop(t, e)
		var bs []txn.Branch
		for range 10 {
			bs = append(bs, branch("", txn.Forward))
		}
		do(t, e, "x", begin("x", txn.SagaGraph, bs...))
		began := time.Now()
		wait(t, e, "x", ended)
		if took := time.Since(began); most.Load() != 3 || took != 4*time.Second {
			t.Errorf("%d calls at once in %v, want 3 in 4s", most.Load(), took)
		}
	})
}

// TestWhatHangsDelaysOnlyItsOwnLane: calls of one destination never answer, those of another pass at once, however many
// wait before them; and the hanging ones are made a few at a time, each within its own time.
func TestWhatHangsDelaysOnlyItsOwnLane(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var hanging atomic.Int32
		e := start(t, memory.New(memory.Options{}), callerFunc(func(ctx context.Context, c txn.Call) (txn.Outcome, []byte, string) {
			if string(c.Target) == "hangs" {
				hanging.Add(1)
				<-ctx.Done()
			}
			return txn.OK, nil, ""
		}), func(c *Config) {
			c.CallsMax, c.LaneMax, c.Lane = 5, 3, func(c txn.Call) string { return string(c.Target) }
		})
		defer stop(t, e)
		for i := range 20 {
			id := txn.ID(fmt.Sprint("slow", i))
			b := branch("", txn.Commit)
			b.Ops[txn.Commit], b.Retry.TryTimeout = []byte("hangs"), 3*time.Second
			do(t, e, id, begin(id, txn.Msg, b))
			do(t, e, id, txn.Decide{Commit: true})
		}
		began := time.Now()
		do(t, e, "quick", begin("quick", txn.Saga, branch("", txn.Forward)))
		wait(t, e, "quick", ended)
		if took, n := time.Since(began), hanging.Load(); took != 0 || n != 3 {
			t.Errorf("a call beside hanging ones took %v, and %d of those run, want 0s and 3", took, n)
		}
		time.Sleep(3 * time.Second)
		synctest.Wait()
		if n := hanging.Load(); n != 6 {
			t.Errorf("%d calls to the hanging lane after 3s, want 6", n)
		}
	})
}

// TestL1SlowAppendHoldsBackCallsAndGroups: while one append runs, everything else gathers for the next.
func TestL1SlowAppendHoldsBackCallsAndGroups(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		calls := &book{}
		s := txlogtest.Faulty(memory.New(memory.Options{}), txlogtest.Rule{On: txlogtest.OnAppend, From: 2, To: -1, Delay: 10 * time.Millisecond})
		e := start(t, s, calls)
		defer stop(t, e)
		before := s.Calls(txlogtest.OnAppend)
		began := time.Now()
		for i := range 100 {
			id := txn.ID(fmt.Sprint("x", i))
			go func() { do(t, e, id, begin(id, txn.Saga, branch("", txn.Forward))) }()
		}
		time.Sleep(9 * time.Millisecond)
		synctest.Wait()
		if calls.seen() != "" {
			t.Errorf("L1: calls before their records are durable: %s", calls.seen())
		}
		for i := range 100 {
			wait(t, e, txn.ID(fmt.Sprint("x", i)), ended)
		}
		appends, took := s.Calls(txlogtest.OnAppend)-before, time.Since(began)
		if appends > 4 || took > 40*time.Millisecond {
			t.Errorf("%d appends in %v for 100 transactions, want at most 4", appends, took)
		}
	})
}

// TestL14DoWaitsForEarlierAppends: an event without records of its own, and a refused one, speak of records that
// another event has made and that are not in the journal yet.
func TestL14DoWaitsForEarlierAppends(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		release := make(chan struct{})
		s := txlogtest.Faulty(memory.New(memory.Options{}), txlogtest.Rule{On: txlogtest.OnAppend, From: 3,
			Before: func(context.Context) { <-release }})
		e := start(t, s, &book{})
		defer stop(t, e)
		do(t, e, "x", begin("x", txn.TCC))
		e.Post("x", txn.Decide{Commit: true})
		replies := make(chan string, 5)
		ask := func(what string, f func() error) {
			go func() { replies <- fmt.Sprint(what, " ", f() == nil) }()
		}
		ask("commit", func() error { return second(e.Do(t.Context(), "x", txn.Decide{Commit: true})) })
		ask("abort", func() error { return second(e.Do(t.Context(), "x", txn.Decide{})) })
		ask("state", func() error { return second(e.State(t.Context(), "x")) })
		ask("wait", func() error { return second(e.Wait(t.Context(), "x", ended)) })
		time.Sleep(time.Minute)
		synctest.Wait()
		if len(replies) > 0 {
			t.Errorf("L14: answered %q before the decision was appended", <-replies)
		}
		close(release)
		synctest.Wait()
		got := []string{<-replies, <-replies, <-replies, <-replies}
		slices.Sort(got)
		if want := "[abort false commit true state true wait true]"; fmt.Sprint(got) != want {
			t.Errorf("replies %v, want %s", got, want)
		}
	})
}

// TestL14FailedAppendIsUnknown: written or not, everybody is told, nothing is called, and the engine goes on with
// what the journal holds.
func TestL14FailedAppendIsUnknown(t *testing.T) {
	for _, written := range []bool{false, true} {
		t.Run(fmt.Sprint("written ", written), func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				calls := &book{}
				s := txlogtest.Faulty(memory.New(memory.Options{}), txlogtest.Rule{On: txlogtest.OnAppend, From: 3, Err: errDisk, Written: written})
				e := start(t, s, calls)
				defer stop(t, e)
				do(t, e, "other", begin("other", txn.TCC))
				waited := make(chan error, 1)
				go func() { waited <- second(e.Wait(t.Context(), "other", ended)) }()
				synctest.Wait()
				_, err := e.Do(t.Context(), "x", begin("x", txn.Saga, branch("", txn.Forward)))
				if !errors.Is(err, ErrUnavailable) || !errors.Is(err, errDisk) {
					t.Errorf("do: %v, want %v and %v", err, ErrUnavailable, errDisk)
				}
				if err := <-waited; !errors.Is(err, ErrUnavailable) {
					t.Errorf("wait: %v, want %v", err, ErrUnavailable)
				}
				if _, err := e.Do(t.Context(), "y", begin("y", txn.TCC)); !errors.Is(err, ErrUnavailable) {
					t.Errorf("do while it is down: %v, want %v", err, ErrUnavailable)
				}
				if err := e.Refusal(); !errors.Is(err, errDisk) {
					t.Errorf("refusal %v, want %v", err, errDisk)
				}
				if all, err := e.All(); !errors.Is(err, errDisk) {
					t.Errorf("all open ones: %v, %v; want %v, because they are not known", all, err, errDisk)
				}
				if calls.seen() != "" {
					t.Errorf("L1: called after a failed append: %s", calls.seen())
				}
				time.Sleep(150 * time.Millisecond)
				if err := e.Refusal(); err != nil {
					t.Errorf("still refuses after the reload: %v", err)
				}
				if all, err := e.All(); err != nil || len(all) == 0 || all[0].Spec.ID != "other" {
					t.Errorf("all open ones after the reload: %v, %v", all, err)
				}
				if s := do(t, e, "other", txn.Decide{}); s.Phase != txn.Aborted {
					t.Errorf("other transaction is %s, want aborted", s.Phase)
				}
				_, err = e.State(t.Context(), "x")
				if written != (err == nil) || !written && !errors.Is(err, txn.ErrUnknown) {
					t.Errorf("state of the failed begin: %v, written %v", err, written)
				}
			})
		})
	}
}

// TestReloadBacksOff until the journal can be read and appended to again.
func TestReloadBacksOff(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := txlogtest.Faulty(memory.New(memory.Options{}), txlogtest.Rule{On: txlogtest.OnAppend, From: 2, To: 5, Err: errDisk})
		e := start(t, s, &book{})
		defer stop(t, e)
		began := time.Now()
		_, err := e.Do(t.Context(), "x", begin("x", txn.TCC))
		for err != nil {
			time.Sleep(time.Millisecond)
			_, err = e.Do(t.Context(), "x", begin("x", txn.TCC))
		}
		if took := time.Since(began).Round(10 * time.Millisecond); took != 1500*time.Millisecond {
			t.Errorf("back after %v, want 100 + 200 + 400 + 800 ms", took)
		}
	})
}

func TestFencedOwnerStopsForGood(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := txlogtest.Faulty(memory.New(memory.Options{}), txlogtest.Rule{On: txlogtest.OnAppend, From: 2, Err: txlog.ErrFenced})
		e := start(t, s, &book{})
		defer stop(t, e)
		for range 3 {
			if _, err := e.Do(t.Context(), "x", begin("x", txn.TCC)); !errors.Is(err, txlog.ErrFenced) {
				t.Errorf("do: %v, want %v", err, txlog.ErrFenced)
			}
			time.Sleep(time.Hour)
		}
		if n := s.Calls(txlogtest.OnAppend); n != 2 {
			t.Errorf("%d appends, want none after the fenced one", n-2)
		}
	})
}

func TestStartNamesWhyItFails(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		closed := memory.New(memory.Options{})
		_ = closed.Close() // cannot fail
		broken := txlogtest.Faulty(memory.New(memory.Options{}), txlogtest.Rule{On: txlogtest.OnAppend, Err: errDisk})
		for _, tt := range []struct {
			store txlog.Journal
			want  error
		}{{closed, txlog.ErrClosed}, {broken, errDisk}} {
			e, err := New(Config{Store: tt.store, Caller: &book{}})
			if err != nil {
				t.Fatal(err)
			}
			if _, err := e.Do(t.Context(), "x", begin("x", txn.TCC)); !errors.Is(err, ErrClosed) {
				t.Errorf("do before start: %v, want %v", err, ErrClosed)
			}
			if err := e.Start(t.Context()); !errors.Is(err, tt.want) {
				t.Errorf("start: %v, want %v", err, tt.want)
			}
		}
		if _, err := New(Config{}); err == nil {
			t.Error("New takes a Config without a store")
		}
	})
}

// TestStaleAnswers: calls that left before a reload may answer after it. Only "done" is a fact then.
func TestStaleAnswers(t *testing.T) {
	for _, stale := range []txn.Outcome{txn.OK, txn.Refused, txn.Unknown} {
		t.Run(stale.String(), func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				answers := make(chan txn.Outcome)
				var n atomic.Int32
				caller := callerFunc(func(ctx context.Context, c txn.Call) (txn.Outcome, []byte, string) {
					if n.Add(1) == 1 {
						return <-answers, nil, "stale"
					}
					time.Sleep(2 * time.Second)
					return txn.OK, nil, ""
				})
				s := txlogtest.Faulty(memory.New(memory.Options{}), txlogtest.Rule{On: txlogtest.OnAppend, To: -1, Err: errDisk,
					If: func(es []txlog.Entry) bool { return len(es) > 0 && es[0].Tx == "bad" }})
				e := start(t, s, caller)
				defer stop(t, e)
				do(t, e, "x", begin("x", txn.Msg, branch("", txn.Commit)))
				do(t, e, "x", txn.Decide{Commit: true})
				if _, err := e.Do(t.Context(), "bad", begin("bad", txn.TCC)); err == nil {
					t.Fatal("the append did not fail")
				}
				time.Sleep(200 * time.Millisecond)
				if n.Load() != 2 {
					t.Fatalf("%d calls, want the reloaded machine's as well", n.Load())
				}
				answers <- stale
				synctest.Wait()
				_, err := e.Wait(timeout(t, time.Second), "x", ended)
				if done := err == nil; done != (stale == txn.OK) {
					t.Errorf("ended by a stale answer: %v, want %v", done, stale == txn.OK)
				}
				wait(t, e, "x", ended)
				if n.Load() != 2 {
					t.Errorf("%d calls, want 2: a stale answer must not stand for the new call's", n.Load())
				}
			})
		})
	}
}

func timeout(t *testing.T, d time.Duration) context.Context {
	ctx, cancel := context.WithTimeout(t.Context(), d)
	t.Cleanup(cancel)
	return ctx
}

// TestCloseWithWorkOpen lets nobody hang, and the next engine on the same journal goes on.
func TestCloseWithWorkOpen(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := memory.New(memory.Options{})
		e := start(t, s, callerFunc(func(ctx context.Context, c txn.Call) (txn.Outcome, []byte, string) {
			<-ctx.Done()
			return txn.Unknown, nil, "cancelled"
		}))
		do(t, e, "x", begin("x", txn.Saga, branch("", txn.Forward)))
		waited := make(chan error, 1)
		go func() { waited <- second(e.Wait(t.Context(), "x", ended)) }()
		synctest.Wait()
		stop(t, e)
		if err := <-waited; !errors.Is(err, ErrClosed) {
			t.Errorf("wait: %v, want %v", err, ErrClosed)
		}
		if _, err := e.State(t.Context(), "x"); !errors.Is(err, ErrClosed) {
			t.Errorf("state: %v, want %v", err, ErrClosed)
		}
		calls := &book{}
		e = start(t, s, calls)
		defer stop(t, e)
		if st := wait(t, e, "x", ended); st.Phase != txn.Committed || calls.seen() != "x forward 0" {
			t.Errorf("%s after %q, want committed after x forward 0", st.Phase, calls.seen())
		}
	})
}
