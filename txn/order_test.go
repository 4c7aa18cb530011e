package txn

import (
	"fmt"
	"math/rand/v2"
	"slices"
	"testing"
	"time"
)

// isReady is what turns says, for one branch and by the letter: the branches that go before its op are through.
func (m *Machine) isReady(i int, op Op) bool {
	bs, plan := m.s.Branches, &m.s.Spec.Plan
	follows := func(i, j int) bool {
		if plan.Chain {
			return j < i
		}
		return slices.Contains(bs[i].After, bs[j].ID)
	}
	for j, c := range bs {
		waits := false
		switch {
		case j == i:
		case op == Forward:
			waits = follows(i, j) && !c.Left && c.Known[Forward].Outcome != OK
		case op == Undo:
			waits = follows(j, i) && m.waiting(c, Undo)
		case plan.Backward:
			waits = i < j && m.waiting(c, Commit)
		default:
			waits = j < i && (plan.Chain || bs[i].InOrder && c.InOrder) && m.waiting(c, Commit)
		}
		if waits {
			return false
		}
	}
	return true
}

func TestTurnsAreWhatTheyMean(t *testing.T) {
	r := rand.New(rand.NewPCG(1, 2))
	for range 3000 {
		m := anyMachine(r)
		for _, op := range []Op{Forward, Commit, Undo} {
			ready := m.turns(op)
			for i, b := range m.s.Branches {
				if got, want := ready(i), m.isReady(i, op); got != want {
					t.Fatalf("%s of branch %s is ready: %t, want %t, chain %t, backward %t: %+v", op, b.ID, got, want,
						m.s.Spec.Plan.Chain, m.s.Spec.Plan.Backward, m.s.Branches)
				}
			}
		}
	}
}

// anyMachine has up to 150 branches, in any state, each after any of those before it.
func anyMachine(r *rand.Rand) *Machine {
	m := Restore(nil)
	m.s.Begun, m.s.Phase = true, Committing
	m.s.Spec.Plan = Plan{Chain: r.IntN(4) == 0, Backward: r.IntN(4) == 0, Drives: r.IntN(2) == 0}
	asked := r.IntN(150) // the graph is made in two goes, as when branches come later
	for i := range 1 + r.IntN(150) {
		b := &BranchState{Branch: Branch{ID: fmt.Sprint(i), InOrder: r.IntN(2) == 0}, Left: r.IntN(8) == 0}
		for j := range i {
			if r.IntN(8) == 0 {
				b.After = append(b.After, fmt.Sprint(j))
			}
		}
		if r.IntN(8) == 0 {
			b.After = append(b.After, "of another journal")
		}
		b.Stands = r.IntN(2) == 0
		b.Undone = !b.Stands
		for _, op := range []Op{Forward, Commit, Undo} {
			b.Ops[op] = []byte{}
			b.Known[op].Outcome = []Outcome{None, OK, OK, Refused}[r.IntN(4)]
		}
		m.s.Branches = append(m.s.Branches, b)
		if i == asked {
			m.graph()
		}
	}
	return m
}

// BenchmarkThousandBranches ends a transaction of as many branches as max-branches allows.
func BenchmarkThousandBranches(b *testing.B) {
	const n = 1000
	for _, commit := range []bool{true, false} {
		b.Run(map[bool]string{true: "commit", false: "abort"}[commit], func(b *testing.B) {
			b.ReportAllocs()
			for b.Loop() {
				m, now := Restore(nil), time.Unix(1, 0).UTC()
				step := func(e Event) []Call {
					out, err := m.Step(now, e)
					if err != nil {
						b.Fatal(err)
					}
					return out.Calls
				}
				step(Begin{Spec: Spec{ID: "x", Mode: Intercepted, Plan: Intercepted.Plan()}})
				for i := range n {
					id := fmt.Sprint(i)
					step(Enlist{Branch: Branch{ID: id, Ops: [NumOps][]byte{Undo: []byte("u"), Commit: []byte("c")}}, Calling: true})
					step(Returned{Branch: id, Op: Forward, Outcome: OK})
				}
				for calls := step(Decide{Commit: commit}); len(calls) > 0; {
					var next []Call
					for _, c := range calls {
						next = append(next, step(Returned{Branch: c.Branch, Op: c.Op, Outcome: OK})...)
					}
					calls = next
				}
				if !m.Phase().Done() {
					b.Fatalf("ended %s", m.Phase())
				}
			}
		})
	}
}
