package txn

import (
	"testing"
	"time"
)

// A branch that says what the plan says is journaled without it, and is tried as before.
func TestABranchDoesNotRepeatThePlan(t *testing.T) {
	plan := Intercepted.Plan()
	own := plan.Retry
	own.StuckAfter += time.Minute
	for name, retry := range map[string]Retry{"the plan's": plan.Retry, "its own": own, "none": {}} {
		t.Run(name, func(t *testing.T) {
			m := Restore(nil)
			now := time.Unix(1, 0).UTC()
			if _, err := m.Step(now, Begin{Spec: Spec{ID: "x", Mode: Intercepted, Plan: plan}}); err != nil {
				t.Fatal(err)
			}
			out, err := m.Step(now, Enlist{Branch: Branch{Ops: [NumOps][]byte{Undo: []byte("u")}, Retry: retry}, Calling: true})
			if err != nil {
				t.Fatal(err)
			}
			journaled, want := out.Records[0].(Enlisted).Branch, retry
			if retry == plan.Retry {
				want = Retry{}
			}
			if journaled.Retry != want {
				t.Errorf("journaled with %+v, want %+v", journaled.Retry, want)
			}
			tried := retry
			if retry == (Retry{}) {
				tried = plan.Retry
			}
			if got := m.retry(m.s.Find(journaled.ID)); got != tried {
				t.Errorf("tried by %+v, want %+v", got, tried)
			}
		})
	}
}

// The branches that were answered before it, each once, whoever names them.
func TestABranchFollowsWhatWasAnswered(t *testing.T) {
	m := Restore(nil)
	now := time.Unix(1, 0).UTC()
	step := func(e Event) Output {
		t.Helper()
		out, err := m.Step(now, e)
		if err != nil {
			t.Fatal(err)
		}
		return out
	}
	step(Begin{Spec: Spec{ID: "x", Mode: Intercepted, Plan: Intercepted.Plan()}})
	for _, id := range []string{"a", "b", "c"} {
		step(Enlist{Branch: Branch{ID: id}, Calling: true})
	}
	for _, id := range []string{"a", "b"} {
		step(Returned{Branch: id, Op: Forward, Outcome: OK})
	}
	after := step(Enlist{Branch: Branch{ID: "d", After: []string{"c", "a"}}, Calling: true}).Records[0].(Enlisted).Branch.After
	if len(after) != 3 || after[0] != "c" || after[1] != "a" || after[2] != "b" {
		t.Errorf("d follows %v, want c and a, which it names, and b, which was answered", after)
	}
}
