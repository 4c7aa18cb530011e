package engine

import (
	"container/heap"
	"time"
)

// alarms is a heap of the live transactions that want to be woken, at most one alarm for each.
type alarms []*live

func (a alarms) Len() int { return len(a) }

func (a alarms) Less(i, j int) bool {
	return a[i].at.Before(a[j].at) || a[i].at.Equal(a[j].at) && a[i].id < a[j].id
}

func (a alarms) Swap(i, j int) {
	a[i], a[j] = a[j], a[i]
	a[i].alarm, a[j].alarm = i, j
}

// Push implements heap.Interface.
func (a *alarms) Push(x any) {
	t := x.(*live)
	t.alarm = len(*a)
	*a = append(*a, t)
}

// Pop implements heap.Interface.
func (a *alarms) Pop() any {
	n := len(*a) - 1
	t := (*a)[n]
	(*a)[n], *a = nil, (*a)[:n]
	t.alarm = -1
	return t
}

// set moves, adds or, with the zero time, removes the alarm of t.
func (a *alarms) set(t *live, at time.Time) {
	t.at = at
	switch {
	case at.IsZero() && t.alarm >= 0:
		heap.Remove(a, t.alarm)
	case at.IsZero():
	case t.alarm >= 0:
		heap.Fix(a, t.alarm)
	default:
		heap.Push(a, t)
	}
}
