package takeover

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"txmesh/txlog"
	"txmesh/txlog/memory"
	"txmesh/txn"

	"github.com/google/go-cmp/cmp"
)

// fleet is sidecars around one engine, each a Keeper whose journals are run by nobody but noted.
type fleet struct {
	t     *testing.T
	store memory.Shared
	side  map[string]*side
}

// side is one sidecar. It is a txlog.Leases that can be cut off.
type side struct {
	memory.Shared
	f    *fleet
	id   string
	k    *Keeper
	kill context.CancelFunc
	over chan struct{} // closed when Run has returned

	mu   sync.Mutex // guards what follows
	runs map[string]txlog.Owner
	idle map[string]bool
	slow time.Duration // how long an engine takes to stop
	cut  bool
	log  []string
}

var errCut = errors.New("no way to the store")

func newFleet(t *testing.T) *fleet {
	return &fleet{t: t, store: memory.NewShared(memory.Options{}), side: map[string]*side{}}
}

func (f *fleet) start(id string) *side {
	f.t.Helper()
	s := &side{Shared: f.store, f: f, id: id, over: make(chan struct{}), runs: map[string]txlog.Owner{}, idle: map[string]bool{}}
	f.side[id] = s
	var err error
	s.k, err = New(Options{Config: Config{Self: txlog.Holder{Sidecar: id, Service: "s", Peer: id + ":1"}}, Leases: s,
		Adopt: s.adopt, Drop: s.drop, Idle: s.isIdle, Offer: f.offer})
	if err != nil {
		f.t.Fatal(err)
	}
	own, err := s.k.Start(f.t.Context())
	if err != nil {
		f.t.Fatal(err)
	}
	s.runs[id] = own.Owner
	ctx, cancel := context.WithCancel(f.t.Context())
	s.kill = cancel
	go func() { defer close(s.over); s.k.Run(ctx) }()
	return s
}

// die ends a sidecar as a crash does.
func (s *side) die() {
	s.kill()
	<-s.over
}

func (s *side) adopt(_ context.Context, o txlog.Owner, service string) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	if before, twice := s.runs[o.ID]; twice {
		s.f.t.Errorf("%s adopts %v, and its engine of %v runs", s.id, o, before)
	}
	if service != "s" {
		s.f.t.Errorf("%s adopts %v for service %q", s.id, o, service)
	}
	s.runs[o.ID] = o
	s.log = append(s.log, "adopt "+o.ID)
	return nil
}

func (s *side) drop(owner string, why error) {
	s.mu.Lock()
	slow := s.slow
	s.mu.Unlock()
	time.Sleep(slow)
	s.mu.Lock()
	defer s.mu.Unlock()
	delete(s.runs, owner)
	_, text, _ := strings.Cut(why.Error(), ": ")
	s.log = append(s.log, "drop "+owner+": "+text)
}

func (s *side) isIdle(owner string) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.idle[owner]
}

func (f *fleet) offer(_ context.Context, heir txlog.Holder, o txlog.Owner) error {
	f.side[heir.Sidecar].k.Offered(o)
	return nil
}

// isCut reports whether the store cannot be reached.
func (s *side) isCut() bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.cut
}

// set changes a field that is guarded.
func (s *side) set(change func()) {
	s.mu.Lock()
	defer s.mu.Unlock()
	change()
}

func (s *side) Renew(ctx context.Context, o txlog.Owner) error {
	if s.isCut() {
		<-ctx.Done()
		return errCut
	}
	return s.Shared.Renew(ctx, o)
}

func (s *side) Leases(ctx context.Context, service string) ([]txlog.Lease, error) {
	if s.isCut() {
		return nil, errCut
	}
	return s.Shared.Leases(ctx, service)
}

func (s *side) Release(ctx context.Context, o txlog.Owner) error {
	s.mu.Lock()
	if at, runs := s.runs[o.ID]; runs && at == o {
		s.f.t.Errorf("%s releases %v, and its engine runs", s.id, o)
	}
	s.log = append(s.log, "release "+o.ID)
	s.mu.Unlock()
	return s.Shared.Release(ctx, o)
}

// appends tries to append as an owner.
func (s *side) appends(o txlog.Owner) error {
	e := txlog.Entry{Tx: txn.ID(o.ID + "." + fmt.Sprint(o.Epoch)), Record: txn.Began{Spec: txn.Spec{ID: "x"}}}
	return s.As(o).Append(context.Background(), []txlog.Entry{e}, true)
}

func (s *side) now() (log []string, runs map[string]txlog.Owner) {
	s.mu.Lock()
	defer s.mu.Unlock()
	runs = map[string]txlog.Owner{}
	for id, o := range s.runs {
		runs[id] = o
	}
	return slices.Clone(s.log), runs
}

func (s *side) wantLog(want ...string) {
	s.f.t.Helper()
	if log, _ := s.now(); !cmp.Equal(log, want) {
		s.f.t.Errorf("%s did\n%s", s.id, cmp.Diff(log, want))
	}
}

func (f *fleet) end() {
	for _, s := range f.side {
		s.die()
	}
}

func TestAJournalOfTheDeadIsAdopted(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f := newFleet(t)
		a, b, c := f.start("a"), f.start("b"), f.start("c")
		defer f.end()
		time.Sleep(5 * time.Second)
		a.die()
		before := a.runs["a"]
		time.Sleep(2500 * time.Millisecond)
		b.wantLog()
		c.wantLog()
		time.Sleep(2 * time.Second) // a lapses after 3 s, seen within half a second
		c.wantLog("adopt a")        // c ranks first
		b.wantLog()
		_, runs := c.now()
		if err := a.appends(before); !errors.Is(err, txlog.ErrFenced) {
			t.Errorf("an append of the dead after its journal was adopted: %v, want it fenced", err)
		}
		if err := c.appends(runs["a"]); err != nil {
			t.Errorf("append of the adopter: %v", err)
		}
		if live, known := b.k.Live("a"); live || !known {
			t.Errorf("Live(a) = %v, %v, want false, true", live, known)
		}
		if live, known := b.k.Live("c"); !live || !known {
			t.Errorf("Live(c) = %v, %v, want true, true", live, known)
		}
	})
}

func TestWhoComesBackTakesItsJournalAtOnce(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f := newFleet(t)
		a, c := f.start("a"), f.start("c")
		defer f.end()
		time.Sleep(time.Second)
		a.die()
		a.k.Fenced(a.runs["a"])
		time.Sleep(5 * time.Second)
		a.wantLog() // the dead do nothing
		c.wantLog("adopt a")
		again := f.start("a")
		time.Sleep(time.Second)
		c.wantLog("adopt a", "drop a: another owner holds a newer epoch")
		if !again.k.Holds("a") || c.k.Holds("a") {
			t.Errorf("a holds its journal: %v, c does: %v", again.k.Holds("a"), c.k.Holds("a"))
		}
	})
}

// faster is an adopter that claims whenever somebody has read a lease, three times.
type faster struct {
	memory.Shared
	times int
}

func (f *faster) Lease(ctx context.Context, owner string) (txlog.Lease, error) {
	l, err := f.Shared.Lease(ctx, owner)
	if f.times++; f.times <= 3 {
		if _, err := f.Claim(ctx, owner, l.Owner.Epoch, txlog.Holder{Sidecar: "b", Service: "s"}); err != nil {
			return l, err
		}
	}
	return l, err
}

func TestAStartTriesUntilItHasItsJournal(t *testing.T) {
	leases := &faster{Shared: memory.NewShared(memory.Options{})}
	k, err := New(Options{Config: Config{Self: txlog.Holder{Sidecar: "a", Service: "s"}}, Leases: leases,
		Adopt: func(context.Context, txlog.Owner, string) error { return nil }, Drop: func(string, error) {}})
	if err != nil {
		t.Fatal(err)
	}
	l, err := k.Start(t.Context())
	if err != nil || leases.times != 4 || l.Holder.Sidecar != "a" {
		t.Errorf("Start = %+v, %v after %d tries, want the journal after 4", l, err, leases.times)
	}
}

func TestWhoIsCutOffGoesOnUntilItIsFenced(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f := newFleet(t)
		a, c := f.start("a"), f.start("c")
		defer f.end()
		time.Sleep(time.Second)
		a.set(func() { a.cut = true })
		time.Sleep(1500 * time.Millisecond)
		if a.k.Unsure() {
			t.Error("unsure before the lease time is over")
		}
		time.Sleep(3500 * time.Millisecond)
		if !a.k.Unsure() || !a.k.Holds("a") {
			t.Errorf("cut off for 5 s: unsure %v, holds %v, want both", a.k.Unsure(), a.k.Holds("a"))
		}
		a.wantLog()
		c.wantLog("adopt a")
		_, runs := a.now()
		if err := a.appends(runs["a"]); !errors.Is(err, txlog.ErrFenced) {
			t.Errorf("append of who was taken for dead: %v, want it fenced", err)
		}
		a.k.Fenced(runs["a"])
		synctest.Wait()
		a.wantLog("drop a: another owner holds a newer epoch")
		a.set(func() { a.cut = false })
		time.Sleep(5 * time.Second)
		if a.k.Holds("a") {
			t.Error("a has taken its journal from a live adopter at once")
		}
		c.set(func() { c.idle["a"] = true })
		time.Sleep(8 * time.Second)
		c.wantLog("adopt a", "drop a: nothing is open in the adopted journal", "release a")
		a.wantLog("drop a: another owner holds a newer epoch", "adopt a")
	})
}

func TestHandOverIsFasterThanALease(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f := newFleet(t)
		a, b, c := f.start("a"), f.start("b"), f.start("c")
		defer f.end()
		time.Sleep(2 * time.Second)
		a.set(func() { a.slow = 5 * time.Second })
		start := time.Now()
		if err := a.k.HandOver(t.Context()); err != nil {
			t.Fatal(err)
		}
		if took := time.Since(start); took != a.slow {
			t.Errorf("hand-over took %v, and the engine %v", took, a.slow)
		}
		a.wantLog("drop a: this sidecar leaves", "release a")
		synctest.Wait()
		b.wantLog()
		c.wantLog("adopt a")
		ctx, cancel := context.WithTimeout(t.Context(), time.Second)
		defer cancel()
		c.set(func() { c.slow = time.Minute })
		if err := c.k.HandOver(ctx); !errors.Is(err, context.DeadlineExceeded) {
			t.Errorf("hand-over of who does not stop: %v, want the end of its context", err)
		}
		time.Sleep(time.Minute)
	})
}

func TestLookupRemembersForAMoment(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f := newFleet(t)
		a := f.start("a")
		defer f.end()
		f.start("c")
		epoch := func() uint64 {
			t.Helper()
			l, err := a.k.Lookup(t.Context(), "c")
			if err != nil {
				t.Fatal(err)
			}
			return l.Owner.Epoch
		}
		if _, err := a.k.Lookup(t.Context(), "nobody"); !errors.Is(err, txlog.ErrNotFound) {
			t.Errorf("lookup of nobody: %v, want that it is not found", err)
		}
		first := epoch()
		f.side["c"].die()
		f.start("c")
		if got := epoch(); got != first {
			t.Errorf("epoch %d at once after %d: nothing is remembered", got, first)
		}
		a.k.Forget("c")
		second := epoch()
		if second <= first {
			t.Errorf("epoch %d after %d was forgotten", second, first)
		}
		f.side["c"].die()
		f.start("c")
		time.Sleep(time.Second)
		if got := epoch(); got <= second {
			t.Errorf("epoch %d a second after %d", got, second)
		}
	})
}
