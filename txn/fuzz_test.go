package txn

import (
	"fmt"
	"math/rand/v2"
	"slices"
	"testing"
	"time"
)

// modesInOrder makes the table of modes addressable by a byte.
func modesInOrder() []Mode {
	return []Mode{Saga, SagaGraph, TCC, XA, Msg, Workflow, LRA, Intercepted, Explicit}
}

// script turns bytes into events. Any bytes are a script.
type script struct{ rest []byte }

func (s *script) next(n int) int {
	if len(s.rest) == 0 {
		return 0
	}
	b := s.rest[0]
	s.rest = s.rest[1:]
	return int(b) % n
}

func (s *script) id() string { return []string{"0", "1", "2", "3", "", "9"}[s.next(6)] }

func (s *script) target(op Op) []byte {
	if s.next(3) == 0 {
		return nil
	}
	return []byte(op.String())
}

func (s *script) branch(id string) Branch {
	b := Branch{ID: id, Unanswered: Resolve(s.next(3)), KeepAnswer: s.next(2) == 0, InOrder: s.next(2) == 0}
	for op := range NumOps {
		b.Ops[op] = s.target(op)
	}
	if s.next(3) == 0 {
		b.Home = "h"
	}
	if s.next(3) == 0 {
		b.After = []string{s.id()}
	}
	if s.next(3) == 0 {
		b.Key = []string{"k", "l"}[s.next(2)]
	}
	b.Timeout = time.Duration(s.next(3)) * time.Second
	b.Retry.StuckAfter = time.Duration(s.next(3)) * time.Second
	return b
}

func (s *script) begin() Begin {
	mode := modesInOrder()[s.next(9)]
	spec := Spec{ID: "x", Mode: mode, Plan: Modes()[mode], Ask: s.target(Ask), Tell: s.target(Tell)}
	spec.Timeout = time.Duration(s.next(4)) * 5 * time.Second
	spec.Plan.ForwardLimit, spec.Plan.SettleLimit = s.next(3), s.next(3)
	if s.next(4) == 0 {
		spec.Plan.UndoRefused = !spec.Plan.UndoRefused
	}
	spec.Plan.Backward = s.next(4) == 0
	if spec.Plan.Drives || mode == Msg || s.next(4) == 0 {
		for range s.next(4) {
			spec.Branches = append(spec.Branches, s.branch(""))
		}
	}
	b := Begin{Spec: spec}
	if s.next(4) == 0 {
		b.Decide = &Decide{Commit: s.next(2) == 0, Reason: "at once", Delay: s.delay()}
	}
	if len(spec.Branches) > 0 && s.next(4) == 0 {
		b.Known = []Settled{{Branch: "0", Op: Op(s.next(6)), Outcome: OK}}
	}
	return b
}

func (s *script) event(w *world) Event {
	switch s.next(14) {
	case 0:
		return s.begin()
	case 1, 2:
		return Enlist{s.branch(""), s.next(2) == 0, Outcome(s.next(3)), []byte("r"), s.call()}
	case 3:
		return Enlist{s.branch(s.id()), s.next(2) == 0, None, nil, s.call()}
	case 4:
		return Leave{s.id()}
	case 5:
		return Extend{time.Duration(s.next(5)) * time.Second}
	case 6:
		return Decide{Commit: s.next(2) == 0, Reason: "said", Delay: s.delay()}
	case 7:
		return Force{s.id(), Op(s.next(7)), Act(s.next(3)), "ops", ""}
	case 8:
		return Returned{s.id(), Op(s.next(7)), Outcome(s.next(5)), []byte("r"), "wild", s.call()}
	case 9:
		w.crash(s.next(2) == 0)
		return Wake{}
	case 10:
		w.now = w.now.Add(time.Duration(s.next(16)) * 250 * time.Millisecond)
		return Wake{}
	case 11:
		return Hasten{}
	case 12:
		return s.stop()
	default:
		return s.answer(w)
	}
}

// stop comes rarely, so that most scripts go on.
func (s *script) stop() Event {
	if s.next(4) > 0 {
		return Wake{}
	}
	return Stop{"ops", "enough"}
}

func (s *script) delay() time.Duration { return time.Duration(max(0, s.next(6)-3)) * time.Second }

// call names a forward call, or does not.
func (s *script) call() string { return []string{"", "", "c1", "c2"}[s.next(4)] }

// answer replies to something that really is in flight.
func (s *script) answer(w *world) Event {
	if len(w.m.flying.all) == 0 {
		return Wake{}
	}
	f := w.m.flying.all[s.next(len(w.m.flying.all))]
	return Returned{f.branch, f.op, Outcome(1 + s.next(4)), []byte("r"), "answered", f.call}
}

// FuzzStep plays any sequence of events; world.step checks the laws after each. Then the faults stop, and the
// transaction must end, or be stuck, or wait for a decision that nobody made (L7).
func FuzzStep(f *testing.F) {
	f.Add([]byte{})
	for m := range byte(9) {
		f.Add([]byte{0, m, 1, 1, 1, 0, 0, 1, 2, 1, 1, 1, 11, 0, 1, 6, 0, 11, 0, 2, 10, 9, 11, 0, 0, 9, 1, 11, 1, 1, 6, 1})
		f.Add([]byte{0, m, 1, 1, 2, 0, 0, 0, 3, 0, 1, 0, 1, 1, 1, 1, 1, 0, 1, 1, 1, 1, 0, 11, 0, 0, 11, 1, 1, 6, 1, 9, 0})
	}
	f.Fuzz(play)
}

// TestStepKeepsTheLaws plays random events, the same every time.
func TestStepKeepsTheLaws(t *testing.T) {
	rng := rand.New(rand.NewPCG(1, 2))
	for range 3000 {
		bytes := make([]byte, rng.IntN(300))
		for i := range bytes {
			bytes[i] = byte(rng.Uint32())
		}
		play(t, bytes)
	}
}

func play(t *testing.T, bytes []byte) {
	w, s := newWorld(), &script{rest: bytes[:min(len(bytes), 400)]}
	feed(t, w, s.begin())
	for len(s.rest) > 0 {
		feed(t, w, s.event(w))
	}
	drain(t, w)
}

func feed(t *testing.T, w *world, e Event) {
	t.Helper()
	if _, _, broken := w.step(e); broken != nil {
		t.Fatalf("%#v: %v\nrecords %+v", e, broken, w.records)
	}
}

// drain answers everything ok and wakes it on time.
func drain(t *testing.T, w *world) {
	for range 300 {
		s := w.m.State()
		switch {
		case s.Phase.Done():
			return
		case len(w.m.flying.all) > 0:
			f := w.m.flying.all[0]
			feed(t, w, Returned{f.branch, f.op, OK, nil, "", f.call})
		case !w.wake.IsZero():
			w.now = w.wake
			feed(t, w, Wake{})
		case s.Phase == Stuck:
			checkStuck(t, s)
			return
		case s.Phase == Open && (!s.Begun || s.Expires.IsZero() && !s.Spec.Plan.Drives && w.m.want == nil):
			return // waits for its initiator
		default:
			t.Fatalf("L7: %s for ever: %s\nrecords %+v", s.Phase, told(s), w.records)
		}
	}
	t.Fatalf("L7: does not end: %s", told(w.m.State()))
}

func checkStuck(t *testing.T, s State) {
	t.Helper()
	halted := slices.ContainsFunc(s.Branches, func(b *BranchState) bool {
		return slices.ContainsFunc(b.Known[:], func(o OpState) bool { return o.Halted })
	})
	if !halted {
		t.Fatalf("L7: stuck without a halted op: %s", told(s))
	}
}

// told is a state with what is behind its pointers.
func told(s State) string {
	branches := make([]BranchState, len(s.Branches))
	for i, b := range s.Branches {
		branches[i] = *b
	}
	s.Branches = nil
	return fmt.Sprintf("%+v with branches %+v", s, branches)
}

// BenchmarkStep decides a saga of three branches, from Begin to the end.
func BenchmarkStep(b *testing.B) {
	now := time.Unix(1_700_000_000, 0).UTC()
	s := Spec{ID: "x", Mode: Saga, Plan: Modes()[Saga], Timeout: time.Minute}
	for _, id := range []string{"0", "1", "2"} {
		br := Branch{ID: id}
		br.Ops[Forward], br.Ops[Undo] = []byte("f"), []byte("u")
		s.Branches = append(s.Branches, br)
	}
	b.ReportAllocs()
	for b.Loop() {
		m := Restore(nil)
		if _, err := m.Step(now, Begin{Spec: s}); err != nil {
			b.Fatal(err)
		}
		for i := range s.Branches {
			if _, err := m.Step(now, Returned{Branch: s.Branches[i].ID, Op: Forward, Outcome: OK}); err != nil {
				b.Fatal(err)
			}
		}
		if m.Phase() != Committed {
			b.Fatal(m.Phase())
		}
	}
}
