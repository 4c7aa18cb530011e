package txn

import (
	"fmt"
	"slices"
)

// ready reports whether the branches that go before op of branch i are through. Undo runs the graph backwards.
func (m *Machine) ready(i int, op Op) bool {
	for j := range m.s.Branches {
		if j == i {
			continue
		}
		c := m.s.Branches[j]
		switch op {
		case Forward:
			if m.follows(i, j) && !c.Left && c.Known[Forward].Outcome != OK {
				return false
			}
		case Undo:
			if m.follows(j, i) && m.waiting(c, Undo) {
				return false
			}
		case Commit:
			if m.commitFollows(i, j) && m.waiting(c, Commit) {
				return false
			}
		default:
			panic("txn: op without an order")
		}
	}
	return true
}

func (m *Machine) waiting(b *BranchState, op Op) bool {
	o, needs := m.needs(b)
	return needs && o == op
}

// follows reports whether branch i comes after branch j.
func (m *Machine) follows(i, j int) bool {
	if m.s.Spec.Plan.Chain {
		return j < i
	}
	return slices.Contains(m.s.Branches[i].After, m.s.Branches[j].ID)
}

// commitFollows reports whether the commit of branch i waits for that of j: confirms are free unless the plan orders
// them, held calls keep their order.
func (m *Machine) commitFollows(i, j int) bool {
	switch plan := &m.s.Spec.Plan; {
	case plan.Backward:
		return i < j
	case plan.Chain:
		return j < i
	}
	return j < i && m.s.Branches[i].InOrder && m.s.Branches[j].InOrder
}

// checkOrder refuses branches that are named twice, follow an unknown one, or follow each other in a circle.
func checkOrder(bs []Branch) error {
	at := make(map[string]int, len(bs))
	for i, b := range bs {
		if j := slices.IndexFunc(bs, func(c Branch) bool { return c.Key == b.Key }); b.Key != "" && j != i {
			return fmt.Errorf("branches %s and %s have one key, %s: %w", bs[j].ID, b.ID, b.Key, ErrOrder)
		}
		if _, twice := at[b.ID]; twice {
			return fmt.Errorf("branch %s is named twice: %w", b.ID, ErrOrder)
		}
		at[b.ID] = i
	}
	done := make([]bool, len(bs))
	for left := len(bs); left > 0; {
		before := left
		for i, b := range bs {
			if done[i] {
				continue
			}
			free := true
			for _, id := range b.After {
				j, known := at[id]
				if !known {
					return fmt.Errorf("branch %s follows %s: %w", b.ID, id, ErrNoBranch)
				}
				free = free && done[j]
			}
			if free {
				done[i], left = true, left-1
			}
		}
		if left == before {
			return fmt.Errorf("branches follow each other in a circle: %w", ErrOrder)
		}
	}
	return nil
}
