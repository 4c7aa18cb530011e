package traffic

import (
	"time"

	"txmesh/policies"
)

// health is whether an endpoint is given requests.
type health uint8

const (
	in      health = iota
	out            // ejected, until the time is over
	onTrial        // back with one request at a time, until that has succeeded
)

// endpoint is one place where a destination listens. Its cluster's mutex guards it.
type endpoint struct {
	address string
	running int

	health   health
	errors   int       // failures, one after the other
	failed   time.Time // the last of them
	until    time.Time // of the ejection
	ejection time.Duration
	back     time.Time // when it was taken in again
	trying   bool      // its one request is running
}

// usable reports whether an endpoint may be picked, and ends its ejection in time. now is called for those out alone.
func (c *Cluster) usable(e *endpoint) bool {
	if e.health == out && !c.opts.Now().Before(e.until) {
		e.health, e.trying = onTrial, false
	}
	return e.health == in || e.health == onTrial && !e.trying
}

func (c *Cluster) hasRoom(e *endpoint, a Ask) bool {
	most := c.rule.Connections.Max
	return !a.Alone || c.own || most == 0 || e.running < most
}

// choose takes the less busy of two endpoints, one of which has its turn while the other is drawn; or by turns alone.
// Those that are ejected are passed over unless all are. nil: all that may be used have no room.
func (c *Cluster) choose(a Ask) *endpoint {
	n := len(c.endpoints)
	at, usable := c.scan(c.turn, n, a, false)
	if !usable {
		at, _ = c.scan(c.turn, n, a, true)
	}
	if at < 0 {
		return nil
	}
	c.turn = at + 1
	e := c.endpoints[at]
	if n > 1 && usable && c.rule.Balance == policies.LeastOutstanding {
		c.draws++
		other, _ := c.scan(at+1+int(mix(c.draws)%uint64(n-1)), n, a, false)
		if o := c.endpoints[other]; o.running < e.running {
			e = o
		}
	}
	return e
}

// state is how an endpoint is before it is given to a request.
func (c *Cluster) state(e *endpoint) State {
	switch {
	case !c.usable(e):
		return Panic
	case e.health == onTrial:
		return Trial
	}
	return Healthy
}

// scan looks at so many endpoints from one on and returns the index of the first that can be used and has room, -1 for
// none. usable: there was one that could be used at all. With all, ejected ones can be.
func (c *Cluster) scan(from, count int, a Ask, all bool) (found int, usable bool) {
	for i := range count {
		at := (from + i) % len(c.endpoints)
		e := c.endpoints[at]
		if !all && !c.usable(e) {
			continue
		}
		usable = true
		if c.hasRoom(e, a) {
			return at, true
		}
	}
	return -1, usable
}

// mix draws a number from a counter (splitmix64).
func mix(x uint64) uint64 {
	x += 0x9e3779b97f4a7c15
	x = (x ^ x>>30) * 0xbf58476d1ce4e5b9
	x = (x ^ x>>27) * 0x94d049bb133111eb
	return x ^ x>>31
}

// succeeded forgets what an endpoint did wrong; the length of its ejections only when it has been back for as long.
func (c *Cluster) succeeded(e *endpoint, trial bool) {
	switch {
	case e.health == onTrial && trial:
		e.health, e.errors, e.trying, e.back = in, 0, false, c.opts.Now()
	case e.health == in:
		e.errors = 0
		if e.ejection > 0 && c.opts.Now().Sub(e.back) >= e.ejection {
			e.ejection = 0
		}
	}
}

// failedAt counts a failure, which may eject.
func (c *Cluster) failedAt(e *endpoint, b *policies.Breaker, trial bool) {
	now := c.opts.Now()
	switch {
	case e.health == onTrial && trial:
		c.eject(e, b, now)
	case e.health == in:
		if now.Sub(e.failed) >= b.Interval {
			e.errors = 0
		}
		e.errors++
		e.failed = now
		if e.errors >= b.Errors && c.mayEject(b) {
			c.eject(e, b, now)
		}
	}
}

// mayEject keeps to the share: those on trial count as ejected.
func (c *Cluster) mayEject(b *policies.Breaker) bool {
	return 100*(c.ejected()+1) <= b.MaxEjected*len(c.endpoints)
}

func (c *Cluster) ejected() int {
	n := 0
	for _, e := range c.endpoints {
		if e.health != in {
			n++
		}
	}
	return n
}

func (c *Cluster) eject(e *endpoint, b *policies.Breaker, now time.Time) {
	e.ejection = min(max(b.EjectFor, 2*e.ejection), policies.EjectGrowth*b.EjectFor)
	e.health, e.until, e.errors, e.trying = out, now.Add(e.ejection), 0, false
	if c.observe != nil {
		c.observe.Ejected()
	}
}

// bringBack takes in again what a new policy, or fewer endpoints, does not allow to be out: those first that would be
// back first.
func (c *Cluster) bringBack() {
	b := c.rule.Breaker
	for n := c.ejected(); n > 0 && (b == nil || 100*n > b.MaxEjected*len(c.endpoints)); n-- {
		var next *endpoint
		for _, e := range c.endpoints {
			if e.health != in && (next == nil || e.until.Before(next.until)) {
				next = e
			}
		}
		next.health, next.errors, next.back = in, 0, c.opts.Now()
	}
}
