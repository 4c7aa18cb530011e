package engine

import "txmesh/txn"

// lanes bound the calls that run at the same time, all together and towards each destination: what hangs there keeps
// its own lane waiting and no other. A lane lives as long as it has calls. Used by the loop alone.
type lanes struct {
	max, laneMax int
	name         func(txn.Call) string

	running int
	byName  map[string]*lane
	waiting []*lane // those with waiting calls, in the order in which they are served
}

type lane struct {
	name    string
	running int
	calls   []txn.Call // waiting
}

func newLanes(c Config) *lanes {
	return &lanes{max: c.CallsMax, laneMax: c.LaneMax, name: c.Lane, byName: map[string]*lane{}}
}

// add makes a call wait for its turn.
func (ls *lanes) add(c txn.Call) {
	name := ls.name(c)
	l := ls.byName[name]
	if l == nil {
		l = &lane{name: name}
		ls.byName[name] = l
	}
	if l.calls = append(l.calls, c); len(l.calls) == 1 {
		ls.waiting = append(ls.waiting, l)
	}
}

// next takes a call that may run now, from lane after lane in turn. The caller gives the lane back to done.
func (ls *lanes) next() (txn.Call, *lane, bool) {
	if ls.running >= ls.max {
		return txn.Call{}, nil, false
	}
	for i, l := range ls.waiting {
		if l.running >= ls.laneMax {
			continue
		}
		c := l.calls[0]
		l.calls = l.calls[1:]
		l.running++
		ls.running++
		ls.waiting = append(ls.waiting[:i], ls.waiting[i+1:]...)
		if len(l.calls) > 0 {
			ls.waiting = append(ls.waiting, l)
		}
		return c, l, true
	}
	return txn.Call{}, nil, false
}

// done says that a call of the lane has returned.
func (ls *lanes) done(l *lane) {
	ls.running--
	l.running--
	ls.forget(l)
}

// drop forgets all that waits.
func (ls *lanes) drop() {
	for _, l := range ls.waiting {
		l.calls = nil
		ls.forget(l)
	}
	ls.waiting = nil
}

func (ls *lanes) forget(l *lane) {
	if l.running == 0 && len(l.calls) == 0 {
		delete(ls.byName, l.name)
	}
}
