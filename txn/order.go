package txn

import (
	"fmt"
	"slices"
)

// turns returns whose turn it is with an op: whether the branches that go before branch i are through. Undo runs the
// graph backwards. It is made once for all branches, because a transaction may have a thousand, and holds until one of
// them is through.
func (m *Machine) turns(op Op) (ready func(i int) bool) {
	todo := func(b *BranchState) bool { return m.waiting(b, op) }
	if op == Forward {
		todo = func(b *BranchState) bool { return !b.Left && b.Known[Forward].Outcome != OK }
	}
	bs, plan := m.s.Branches, &m.s.Spec.Plan
	switch {
	case op == Undo && plan.Chain, op == Commit && plan.Backward:
		last := lastIndexFunc(bs, todo)
		return func(i int) bool { return i >= last }
	case op == Forward && plan.Chain, op == Commit && plan.Chain:
		first := slices.IndexFunc(bs, todo)
		return func(i int) bool { return first < 0 || i <= first }
	case op == Commit: // confirms are free, held calls keep their order
		first := slices.IndexFunc(bs, func(b *BranchState) bool { return b.InOrder && todo(b) })
		return func(i int) bool { return first < 0 || i <= first || !bs[i].InOrder }
	}
	before := m.graph()
	var those set // that have op to do, or that must wait for one that has
	for i, b := range bs {
		switch {
		case !todo(b):
		case op == Forward:
			those.add(i)
		default:
			those.addAll(before[i])
		}
	}
	if op == Forward {
		return func(i int) bool { return !before[i].meets(those) }
	}
	return func(i int) bool { return !those.has(i) }
}

func lastIndexFunc(bs []*BranchState, f func(*BranchState) bool) int {
	for i, b := range slices.Backward(bs) {
		if f(b) {
			return i
		}
	}
	return -1
}

// graph returns for each branch those that it follows. Branches only come, and what they follow stays.
func (m *Machine) graph() []set {
	if len(m.before) == len(m.s.Branches) {
		return m.before
	}
	at := make(map[string]int, len(m.s.Branches))
	for i, b := range m.s.Branches {
		at[b.ID] = i
	}
	for _, b := range m.s.Branches[len(m.before):] {
		var s set
		for _, id := range b.After {
			if j, known := at[id]; known {
				s.add(j)
			}
		}
		m.before = append(m.before, s)
	}
	return m.before
}

func (m *Machine) waiting(b *BranchState, op Op) bool {
	o, needs := m.needs(b)
	return needs && o == op
}

// checkOrder refuses branches that are named twice, follow an unknown one, or follow each other in a circle.
func checkOrder(bs []Branch) error {
	at, keys := make(map[string]int, len(bs)), make(map[string]string, len(bs))
	for i, b := range bs {
		if other, twice := keys[b.Key]; twice && b.Key != "" {
			return fmt.Errorf("branches %s and %s have one key, %s: %w", other, b.ID, b.Key, ErrOrder)
		}
		if _, twice := at[b.ID]; twice {
			return fmt.Errorf("branch %s is named twice: %w", b.ID, ErrOrder)
		}
		at[b.ID], keys[b.Key] = i, b.ID
	}
	waits, behind := make([]int, len(bs)), make([][]int, len(bs)) // for how many, and who waits
	for i, b := range bs {
		for _, id := range b.After {
			j, known := at[id]
			if !known {
				return fmt.Errorf("branch %s follows %s: %w", b.ID, id, ErrNoBranch)
			}
			waits[i]++
			behind[j] = append(behind[j], i)
		}
	}
	var free []int
	for i := range bs {
		if waits[i] == 0 {
			free = append(free, i)
		}
	}
	for n := 0; n < len(free); n++ {
		for _, i := range behind[free[n]] {
			if waits[i]--; waits[i] == 0 {
				free = append(free, i)
			}
		}
	}
	if len(free) < len(bs) {
		return fmt.Errorf("branches follow each other in a circle: %w", ErrOrder)
	}
	return nil
}
