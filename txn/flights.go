package txn

import (
	"slices"
	"time"
)

// flight is a call that may be running now. It is volatile: after a restart its answer is simply unknown.
type flight struct {
	branch string
	op     Op
	until  time.Time // zero: until Returned
	call   string    // Enlist.Call
}

type branchOp struct {
	branch string
	op     Op
}

// flights are the calls that may be running now, the oldest first.
type flights struct {
	all []flight
	of  map[branchOp]int // how many there are: each branch is looked up with each step
}

func (s *flights) add(f flight) {
	s.all = append(s.all, f)
	if s.of == nil {
		s.of = map[branchOp]int{}
	}
	s.of[branchOp{f.branch, f.op}]++
}

func (s *flights) has(branch string, op Op) bool { return s.of[branchOp{branch, op}] > 0 }

// remove takes one out: of that name, or the oldest where none is given.
func (s *flights) remove(branch string, op Op, call string) (f flight, removed bool) {
	i := slices.IndexFunc(s.all, func(f flight) bool { return f.branch == branch && f.op == op && (call == "" || f.call == call) })
	if i < 0 {
		return flight{}, false
	}
	f = s.all[i]
	s.all = slices.Delete(s.all, i, i+1)
	s.forget(f)
	return f, true
}

func (s *flights) removeFunc(over func(flight) bool) {
	s.all = slices.DeleteFunc(s.all, func(f flight) bool {
		is := over(f)
		if is {
			s.forget(f)
		}
		return is
	})
}

func (s *flights) forget(f flight) {
	key := branchOp{f.branch, f.op}
	if s.of[key]--; s.of[key] <= 0 {
		delete(s.of, key)
	}
}
