package traffic

import (
	"slices"
	"time"

	"txmesh/policies"
)

// Outcome is what an exchange says of its endpoint.
type Outcome uint8

// Unjudged says nothing: the client went away, or the endpoint's sidecar refused more than it can take. OK is an answer,
// Failed an endpoint that could not be reached, broke off, was too slow or answered 5xx or UNAVAILABLE.
const (
	Unjudged Outcome = iota
	OK
	Failed
)

// Lease is an endpoint that a request was given. One goroutine uses it. The zero value is no lease: it can be reported,
// moved and given back without effect.
type Lease struct {
	c       *Cluster
	e       *endpoint
	rule    *policies.Traffic
	route   *policies.TrafficRoute
	ask     Ask
	trial   bool // the one request by which the endpoint is tried
	judged  bool
	fixed   bool
	repeats int
	waited  time.Duration
}

// Held reports whether there is an endpoint to give back.
func (l *Lease) Held() bool { return l.c != nil }

// Endpoint is where the request goes now, host:port.
func (l *Lease) Endpoint() string { return l.e.address }

// Connect is how long it may still take to get a connection; 0: as long as the forwarder likes.
func (l *Lease) Connect() time.Duration {
	if l.c == nil || l.rule.Policy == "" {
		return 0
	}
	return max(l.rule.Connect-l.waited, time.Millisecond)
}

// Idle is how long a connection may be kept; 0: as long as the forwarder likes.
func (l *Lease) Idle() time.Duration {
	if l.c == nil || l.c.own {
		return 0
	}
	return l.rule.Idle
}

// Conns is how many connections to one endpoint there may be; 0: as many as the forwarder likes.
func (l *Lease) Conns() int {
	if l.c == nil || l.c.own {
		return 0
	}
	return l.rule.Connections.Max
}

// Governed reports whether a TrafficPolicy says how often the request may be sent again.
func (l *Lease) Governed() bool { return l.c != nil && !l.c.own && l.rule.Policy != "" }

// Request is how long the whole exchange may take; 0: as long as it likes.
func (l *Lease) Request() time.Duration {
	if l.c == nil || l.c.own {
		return 0
	}
	return l.route.Request
}

// PerTry is how long one endpoint may take to begin its answer; 0: as long as it likes.
func (l *Lease) PerTry() time.Duration {
	if l.c == nil || l.c.own || l.fixed {
		return 0
	}
	return l.route.Retries.PerTry
}

// Fix makes the request stay where it is: it belongs to a transaction, and no proxy repeats a call that does. The home
// of a branch is settled by its endpoint before it leaves, so that it cannot even be moved.
func (l *Lease) Fix() { l.fixed = true }

// Report says how the endpoint behaved, the first time it is called for it.
func (l *Lease) Report(o Outcome) {
	if l.c == nil || l.judged || l.rule.Breaker == nil || l.c.own || o == Unjudged {
		return
	}
	l.judged = true
	c := l.c
	c.mu.Lock()
	defer c.mu.Unlock()
	b := c.rule.Breaker // as it is now
	switch {
	case b == nil, !slices.Contains(c.endpoints, l.e): // taken out meanwhile
	case o == OK:
		c.succeeded(l.e, l.trial)
	default:
		c.failedAt(l.e, b, l.trial)
	}
	l.trial = false // it is over
}

// May reports whether the policy allows to repeat the request for this reason at all.
func (l *Lease) May(why policies.RetryOn) bool {
	if l.c == nil || l.c.own || l.fixed {
		return false
	}
	r := &l.route.Retries
	return r.On&why != 0 && l.repeats < r.Attempts && (why.Harmless() || policies.Idempotent(l.ask.Method))
}

// Next moves the request to another endpoint, where it may be sent again: if the policy, its budget and the limits of
// the endpoints allow it. The caller must be able to send the same bytes. Report comes before.
func (l *Lease) Next(why policies.RetryOn) bool {
	if !l.May(why) {
		return false
	}
	c := l.c
	c.mu.Lock()
	e := l.other()
	granted := e != nil && c.withdraw()
	if granted {
		l.leave()
		l.take(e)
		l.repeats++
		c.dispatch() // somebody may wait for the place it has left
	}
	c.mu.Unlock()
	if c.observe != nil && e != nil {
		c.observe.Retried(granted)
	}
	return granted
}

// Elsewhere is Next for a request that its endpoint has certainly not processed.
func (l *Lease) Elsewhere() bool { return l.Next(policies.ConnectFailure) }

// other is the next endpoint in turn that can be used, an ejected one if all others are; the same one if it is alone.
func (l *Lease) other() *endpoint {
	c := l.c
	n := len(c.endpoints)
	each := l.route.Retries.Attempts == policies.EachEndpoint
	if each && l.repeats >= n-1 || n == 0 {
		return nil
	}
	at := slices.Index(c.endpoints, l.e)
	if n == 1 && at == 0 {
		return l.e
	}
	count := n
	if at >= 0 {
		count--
	}
	next, usable := c.scan(at+1, count, l.ask, false)
	if !usable {
		next, _ = c.scan(at+1, count, l.ask, true)
	}
	if next < 0 {
		return nil
	}
	return c.endpoints[next]
}

// take puts the request on an endpoint. The cluster's mutex is held.
func (l *Lease) take(e *endpoint) {
	c, state := l.c, l.c.state(e)
	l.e, l.trial, l.judged = e, state == Trial, false
	e.trying = e.trying || l.trial
	e.running++
	c.running++
	if c.observe != nil {
		c.observe.Picked(state)
	}
}

// leave takes the request off its endpoint. The cluster's mutex is held.
func (l *Lease) leave() {
	l.e.running--
	l.c.running--
	if l.trial {
		l.e.trying = false
	}
}

// Done gives the endpoint back. It may be called again, and does nothing then.
func (l *Lease) Done() {
	c := l.c
	if c == nil {
		return
	}
	c.mu.Lock()
	l.leave()
	c.dispatch()
	c.mu.Unlock()
	l.c = nil
}
