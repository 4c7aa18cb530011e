package load

import (
	"context"
	"errors"
	"fmt"
	"math"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/google/go-cmp/cmp"
)

// scripted is a server in the bubble: each call takes as long as the script says, and may fail.
type scripted struct {
	call  func(n int64) (time.Duration, error)
	calls *atomic.Int64
}

func (s scripted) Prepare() error { return nil }
func (s scripted) Close() error   { return nil }
func (s scripted) Call() error {
	took, err := s.call(s.calls.Add(1))
	time.Sleep(took)
	return err
}

// play runs o against the script, and returns how many calls the server saw.
func play(t *testing.T, o Options, call func(n int64) (time.Duration, error)) (*Result, int64) {
	t.Helper()
	var calls atomic.Int64
	o.Dial = func(context.Context, int) (Caller, error) { return scripted{call, &calls}, nil }
	o.Sleep = func(until time.Time) { time.Sleep(time.Until(until)) }
	r, err := Run(t.Context(), o)
	if err != nil {
		t.Fatal(err)
	}
	return r, calls.Load()
}

func near(got, want time.Duration) bool {
	return math.Abs(float64(got-want)) <= 0.002*float64(want) // three digits
}

// A server that answers in 1 ms stalls once for 200 ms. At 100 calls a second over one connection, 20 calls fall due
// while it stalls; the first waits for 200 ms, each other 9 ms less than the one before it, because the backlog is worked
// off at 1 ms a call.
func TestOpenLoopChargesAStallToAllWhoWaited(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		stall := func(n int64) (time.Duration, error) {
			if n == 50 {
				return 200 * time.Millisecond, nil
			}
			return time.Millisecond, nil
		}
		r, _ := play(t, Options{Conns: 1, Rate: 100, For: 10 * time.Second, Grace: time.Second}, stall)
		if r.Sent != 1000 || r.OK != 1000 {
			t.Fatalf("sent %d, right %d, want 1000 of 1000", r.Sent, r.OK)
		}
		var want []time.Duration
		for waited := 200 * time.Millisecond; waited > time.Millisecond; waited -= 9 * time.Millisecond {
			want = append(want, waited)
		}
		for i, w := range want { // the longest first
			if got := r.Latency.At(1 - float64(i)/1000); !near(got, w) {
				t.Errorf("the call that waited longest but %d: %v, want %v", i, got, w)
			}
		}
		if got := r.Latency.At(1 - float64(len(want))/1000); !near(got, time.Millisecond) {
			t.Errorf("the call before those: %v, want 1ms", got)
		}

		closed, _ := play(t, Options{Conns: 1, For: 10 * time.Second, Grace: time.Second}, stall)
		if got := closed.Latency.At(0.999); !near(got, time.Millisecond) {
			t.Errorf("a closed loop sees %v at p99.9, want 1ms: only one call met the stall", got)
		}
	})
}

func TestWhatNoConnectionWasFreeForIsCountedAsFailed(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		never := func(int64) (time.Duration, error) { return 30 * time.Second, nil }
		r, calls := play(t, Options{Conns: 2, Rate: 100, For: time.Second, Grace: time.Second}, never)
		want := map[string]int64{string(errNeverStarted): 98}
		if diff := cmp.Diff(want, r.Errors); diff != "" || r.OK != 2 || r.Sent != 100 || calls != 2 {
			t.Errorf("sent %d, right %d, calls %d, errors (-want +got):\n%s", r.Sent, r.OK, calls, diff)
		}
		if got, want := r.Latency.At(0.01), 1010*time.Millisecond; got < want {
			t.Errorf("shortest latency %v, want %v or more: the last that was due waited to the end", got, want)
		}
	})
}

func TestCountedIsSent(t *testing.T) {
	for _, rate := range []float64{0, 500} {
		t.Run(fmt.Sprintf("rate %g", rate), func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				r, calls := play(t, Options{Conns: 7, Rate: rate, Warm: time.Second, For: 2 * time.Second, Grace: time.Second}, func(n int64) (time.Duration, error) {
					if n%10 == 0 {
						return time.Millisecond, Failure("every tenth")
					}
					return 3 * time.Millisecond, nil
				})
				var failed int64
				for _, n := range r.Errors {
					failed += n
				}
				if r.Warm+r.Sent != calls || r.OK+failed != r.Sent || r.Latency.Count() != r.Sent || r.Warm == 0 || failed == 0 {
					t.Errorf("server saw %d; warm-up %d, sent %d, right %d, failed %d, latencies %d", calls, r.Warm, r.Sent, r.OK, failed, r.Latency.Count())
				}
				if rate > 0 && (r.Warm != 500 || r.Sent != 1000) {
					t.Errorf("warm-up %d, sent %d, want 500 and 1000 at %g a second", r.Warm, r.Sent, rate)
				}
			})
		})
	}
}

func TestWarmUpIsNotCounted(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		slow := func(n int64) (time.Duration, error) {
			if n <= 10 {
				return 100 * time.Millisecond, errors.New("cold")
			}
			return time.Millisecond, nil
		}
		var window []time.Time
		began := time.Now()
		r, _ := play(t, Options{Conns: 1, Warm: time.Second, For: time.Second, Grace: time.Second,
			Window: func(bool) { window = append(window, time.Now()) }}, slow)
		if len(r.Errors) > 0 || !near(r.Latency.Max(), time.Millisecond) {
			t.Errorf("errors %v, longest %v, want none of the warm-up", r.Errors, r.Latency.Max())
		}
		if diff := cmp.Diff([]time.Time{began.Add(time.Second), began.Add(2 * time.Second)}, window); diff != "" {
			t.Errorf("the counted time (-want +got):\n%s", diff)
		}
	})
}

func TestEndOfContextEndsTheRun(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		ctx, cancel := context.WithTimeout(t.Context(), time.Second)
		defer cancel()
		_, err := Run(ctx, Options{Conns: 2, Rate: 10, For: time.Hour, Sleep: func(at time.Time) { time.Sleep(time.Until(at)) },
			Dial: func(context.Context, int) (Caller, error) {
				return scripted{func(int64) (time.Duration, error) { return time.Millisecond, nil }, &atomic.Int64{}}, nil
			}})
		if !errors.Is(err, context.DeadlineExceeded) {
			t.Errorf("run = %v, want the error of its context", err)
		}
	})
}

func TestMergedHistogramIsThatOfAllValues(t *testing.T) {
	parts := []*Histogram{NewHistogram(), NewHistogram(), NewHistogram()}
	whole, merged := NewHistogram(), NewHistogram()
	for i := range 100_000 {
		d := time.Duration(i*i) * time.Nanosecond // to 10 s
		parts[i%3].Record(d)
		whole.Record(d)
	}
	for _, p := range parts {
		merged.Merge(p)
	}
	if diff := cmp.Diff(whole.Curve(), merged.Curve()); diff != "" || merged.Count() != 100_000 {
		t.Errorf("merged %d (-whole +merged):\n%s", merged.Count(), diff)
	}
	for share, want := range map[float64]time.Duration{0.5: 2500 * time.Millisecond, 0.99: 9801 * time.Millisecond} {
		if got := merged.At(share); !near(got, want) {
			t.Errorf("at %g: %v, want %v", share, got, want)
		}
	}
	merged.Record(time.Hour)
	if got := merged.Max(); !near(got, longest) {
		t.Errorf("longest %v, want %v: nothing is lost above it", got, longest)
	}
}

func TestHistogramKeepsShortTimes(t *testing.T) {
	h := NewHistogram()
	h.Record(5 * time.Microsecond)
	if got := h.At(1); got < 4900*time.Nanosecond || got > 5100*time.Nanosecond {
		t.Errorf("5us is kept as %v", got)
	}
}
