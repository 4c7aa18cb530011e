package interceptor

import (
	"slices"
	"sync"
	"time"

	"txmesh/txn"
)

// serving is one inbound request that the application is working on, as far as transactions are concerned.
type serving struct {
	context Context
	op      txn.Op // Forward: its calls are branches. Any other: they never are
	branch  string // the branch served by an op that is not Forward
	keys    []string
	until   time.Time // zero while in flight; then how long late calls of it are still known
	calls   int       // outbound calls seen while it served an op that is not Forward
}

// joins finds the transaction of an outbound call by what ties it to an inbound request. Entries linger after
// their request, so that a call made later by the application is refused as too late, not passed as untagged.
type joins struct {
	mu     sync.Mutex // guards all fields, and serving.until and .calls
	byKey  map[string][]*serving
	gone   []*serving // lingering, oldest end first
	old    []*serving // from before a restart, oldest end first
	live   int        // in flight, Forward only
	linger time.Duration
}

func newJoins(linger time.Duration) *joins {
	return &joins{byKey: map[string][]*serving{}, linger: linger}
}

// enter registers a request that the application begins to serve.
func (j *joins) enter(now time.Time, s *serving) {
	j.mu.Lock()
	defer j.mu.Unlock()
	j.sweep(now)
	for _, k := range s.keys {
		j.byKey[k] = append(j.byKey[k], s)
	}
	if s.op == txn.Forward && s.until.IsZero() {
		j.live++
	}
}

// leave marks the request as answered.
func (j *joins) leave(now time.Time, s *serving) {
	j.mu.Lock()
	defer j.mu.Unlock()
	if !s.until.IsZero() {
		return
	}
	s.until = now.Add(j.linger)
	if s.op == txn.Forward {
		j.live--
	}
	j.gone = append(j.gone, s)
	j.sweep(now)
}

// remember registers a transaction of before a restart. Its request broke off, but the application may have survived
// and still work on it, at most until the deadline.
func (j *joins) remember(now time.Time, s *serving) {
	j.mu.Lock()
	defer j.mu.Unlock()
	s.until = now.Add(j.linger)
	if s.context.Expires.After(s.until) {
		s.until = s.context.Expires
	}
	for _, k := range s.keys {
		j.byKey[k] = append(j.byKey[k], s)
	}
	at, _ := slices.BinarySearchFunc(j.old, s, func(a, b *serving) int { return a.until.Compare(b.until) })
	j.old = slices.Insert(j.old, at, s)
}

func (j *joins) sweep(now time.Time) {
	for _, list := range [...]*[]*serving{&j.gone, &j.old} {
		for len(*list) > 0 && !now.Before((*list)[0].until) {
			j.drop((*list)[0])
			*list = (*list)[1:]
		}
	}
}

func (j *joins) drop(s *serving) {
	for _, k := range s.keys {
		rest := slices.DeleteFunc(j.byKey[k], func(o *serving) bool { return o == s })
		if len(rest) == 0 {
			delete(j.byKey, k)
		} else {
			j.byKey[k] = rest
		}
	}
}

// inFlight reports whether the application may be serving a request of a transaction right now.
func (j *joins) inFlight(now time.Time) bool {
	j.mu.Lock()
	defer j.mu.Unlock()
	return j.live > 0 || len(j.old) > 0 && now.Before(j.old[len(j.old)-1].until)
}

// joined is what a call belongs to.
type joined struct {
	context Context
	parents []string // branches that may have made the call, when the key does not tell them apart
	op      txn.Op
	branch  string
	nth     int // this is the nth call made while serving op, from 1
}

// find looks the keys up in order. Requests in flight go before lingering ones; two transactions under one key are
// ambiguous and never guessed at.
func (j *joins) find(now time.Time, keys []string) (found joined, ok, ambiguous bool) {
	j.mu.Lock()
	defer j.mu.Unlock()
	for _, k := range keys {
		all := j.byKey[k]
		live := slices.ContainsFunc(all, func(s *serving) bool { return s.until.IsZero() })
		var first *serving
		for _, s := range all {
			if live != s.until.IsZero() || !live && !now.Before(s.until) {
				continue
			}
			if first == nil {
				first = s
				found = joined{context: s.context, op: s.op, branch: s.branch}
			} else if s.context.ID != first.context.ID || s.op != first.op {
				return joined{}, false, true
			}
			if s.context.Parent != "" && !slices.Contains(found.parents, s.context.Parent) {
				found.parents = append(found.parents, s.context.Parent)
			}
		}
		if first != nil {
			first.calls++
			found.nth = first.calls
			return found, true, false
		}
	}
	return joined{}, false, false
}
