package txn

import (
	"fmt"
	"reflect"
	"slices"
	"time"

	"github.com/google/go-cmp/cmp"
)

// world holds one machine together with what a driver would have on disk and on the wire, and checks the laws
// after every step from that side, not from the machine's.
type world struct {
	now     time.Time
	m       *Machine
	records []Record
	synced  int
	wake    time.Time
	flying  map[string]int // engine calls and intercepted forwards, by branch and op
}

func newWorld() *world {
	w := &world{now: time.Unix(1_700_000_000, 0).UTC()}
	w.restore()
	return w
}

func (w *world) restore() {
	w.m = Restore(slices.Clone(w.records))
	w.flying, w.wake = map[string]int{}, time.Time{}
}

// crash restarts the process; a power cut takes the records that no sync has covered.
func (w *world) crash(power bool) {
	if power {
		w.records = w.records[:w.synced]
	}
	w.restore()
}

func flightKey(branch string, op Op) string { return branch + "/" + op.String() }

// step feeds one event and returns the reaction, or the first law it breaks.
func (w *world) step(e Event) (Output, error, error) {
	before, flights, want := w.m.State(), slices.Clone(w.m.flying.all), w.m.want
	out, err := w.m.Step(w.now, e)
	if err != nil {
		after := w.m.State()
		if !reflect.DeepEqual(before, after) || !slices.Equal(flights, w.m.flying.all) || want != w.m.want ||
			!reflect.DeepEqual(out, Output{}) {
			return out, err, fmt.Errorf("refused event %T has an effect: %s", e, cmp.Diff(before, after))
		}
		return out, err, nil
	}
	w.fly(e)
	broken := w.check(before, out)
	w.records = append(w.records, out.Records...)
	if out.Sync {
		w.synced = len(w.records)
	}
	w.wake = out.Wake
	if broken == nil {
		broken = w.checkState(out)
	}
	return out, nil, broken
}

// fly keeps our own account of what may be running.
func (w *world) fly(e Event) {
	if r, ok := e.(Returned); ok {
		k := flightKey(r.Branch, r.Op)
		w.flying[k] = max(0, w.flying[k]-1)
	}
}

func (w *world) check(before State, out Output) error {
	if before.Phase.Done() && (len(out.Records) > 0 || len(out.Calls) > 0) {
		return fmt.Errorf("finished, and still %v %v", out.Records, out.Calls)
	}
	if !out.Wake.IsZero() && !out.Wake.After(w.now) {
		return fmt.Errorf("wake %v is not after now %v", out.Wake, w.now)
	}
	decided := before.Decided()
	for _, r := range out.Records {
		switch r := r.(type) {
		case Began, Enlisted, Left, Extended, Forced, Stopped:
			if !out.Sync {
				return fmt.Errorf("%T without sync", r)
			}
		case Decided:
			if decided {
				return fmt.Errorf("L3: decided twice")
			}
			if decided = true; !out.Sync {
				return fmt.Errorf("decided without sync")
			}
		case Settled:
			if err := w.checkSettled(r, out); err != nil {
				return err
			}
		}
	}
	return nil
}

func (w *world) checkSettled(r Settled, out Output) error {
	s := Fold(append(slices.Clone(w.records), out.Records...))
	if b := s.Find(r.Branch); r.Op == Forward && b != nil && b.KeepAnswer && !out.Sync {
		return fmt.Errorf("L13: answer of %s is read later and not synced", r.Branch)
	}
	before := Fold(w.records)
	if r.Branch != "" && before.Find(r.Branch) != nil && before.op(r.Branch, r.Op).Outcome != None {
		return fmt.Errorf("%s of %q settled twice", r.Op, r.Branch)
	}
	return nil
}

func (w *world) checkState(out Output) error {
	for key, n := range w.m.flying.of {
		if is := len(slices.DeleteFunc(slices.Clone(w.m.flying.all), func(f flight) bool { return f.branch != key.branch || f.op != key.op })); is != n {
			return fmt.Errorf("%d calls of %s %s fly, %d are counted", is, key.branch, key.op, n)
		}
	}
	folded, live := Fold(w.records), w.m.State()
	if !reflect.DeepEqual(folded, live) {
		return fmt.Errorf("L4: fold and live differ:\n%s", cmp.Diff(folded, live))
	}
	for _, c := range out.Calls {
		if err := w.checkCall(&folded, c, out.Sync); err != nil {
			return fmt.Errorf("call %s of branch %q: %w", c.Op, c.Branch, err)
		}
		w.flying[flightKey(c.Branch, c.Op)]++
	}
	if p := live.Phase; p == Committing || p == Aborting {
		if len(w.m.flying.all) == 0 && w.wake.IsZero() {
			return fmt.Errorf("L7: %s, nothing flies and nobody wakes it", p)
		}
	}
	return nil
}

func (w *world) checkCall(s *State, c Call, sync bool) error {
	if s.Phase.Done() {
		return fmt.Errorf("the transaction is %s", s.Phase)
	}
	if w.flying[flightKey(c.Branch, c.Op)] > 0 {
		return fmt.Errorf("it is flying already")
	}
	if c.Branch == "" {
		if c.Op == Tell && !s.Decided() || c.Op == Ask && s.Phase != Open {
			return fmt.Errorf("phase is %s", s.Phase)
		}
		return nil
	}
	b := s.Find(c.Branch)
	switch {
	case b == nil:
		return fmt.Errorf("L2: branch is not recorded")
	case b.Known[c.Op].Outcome != None:
		return fmt.Errorf("it is settled: %v", b.Known[c.Op])
	case b.Known[c.Op].Halted:
		return fmt.Errorf("L11: it waits for an operator")
	case w.now.Before(b.Known[c.Op].Until):
		return fmt.Errorf("it is early")
	case c.Op == Forward && (s.Phase != Open || !sync):
		return fmt.Errorf("L2: phase %s, sync %v", s.Phase, sync)
	case c.Op == Commit && (!s.Commit || !s.Decided() || !b.Stands):
		return fmt.Errorf("L5: commit %v, phase %s, stands %v", s.Commit, s.Phase, b.Stands)
	case c.Op == Undo && (!s.Decided() || !b.Undone):
		return fmt.Errorf("L5: phase %s, undone %v", s.Phase, b.Undone)
	case c.Op == Undo:
		return w.checkUndo(s, b)
	}
	return nil
}

func (w *world) checkUndo(s *State, b *BranchState) error {
	if w.m.flying.has(b.ID, Forward) {
		return fmt.Errorf("its forward call is in flight")
	}
	passed := false
	for i := range s.Branches {
		c := s.Branches[i]
		later := passed
		if !s.Spec.Plan.Chain {
			later = slices.Contains(c.After, b.ID)
		}
		passed = passed || c.ID == b.ID
		refused := c.Known[Forward].Outcome == Refused && !s.Spec.Plan.UndoRefused
		if later && c.Undone && c.Ops[Undo] != nil && c.Known[Undo].Outcome == None && !refused {
			return fmt.Errorf("branch %s follows it and is not undone", c.ID)
		}
	}
	return nil
}
