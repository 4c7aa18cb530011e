package traffic

import (
	"container/list"
	"context"
	"errors"
	"slices"
	"sync"
	"time"

	"txmesh/policies"
)

// What Pick says instead of a lease. Nothing was sent then.
var (
	ErrFull       = errors.New("as many requests as are allowed are running and waiting")
	ErrWaited     = errors.New("no turn came in time")
	ErrNoEndpoint = errors.New("no endpoint is known")
	ErrBusy       = errors.New("its turn comes later") // TryPick alone says so
)

// firstPendingMin is how many ops may wait at least, whatever a policy says of new work.
const firstPendingMin = 100

// Cluster is one destination. It is safe for many goroutines.
type Cluster struct {
	opts          Options
	service, host string
	own           bool      // the application beside the sidecar
	observe       *Observer // nil: nobody listens
	none          *policies.Traffic

	mu        sync.Mutex        // guards the rest
	set       *policies.Set     // that rule was taken from
	rule      *policies.Traffic // never nil
	endpoints []*endpoint
	running   int
	turn      int       // index of the endpoint that is the next in turn
	draws     uint64    // counts choices, for the other one
	tokens    float64   // repeats that the budget allows now
	refilled  time.Time // when it was last counted by time
	first     list.List // of *waiter: ops
	rest      list.List // of *waiter: new work; both in the order in which they came
}

// waiter is a request that has no endpoint yet.
type waiter struct {
	ask   Ask
	lease Lease         // granted; guarded by the cluster's mu
	ready chan struct{} // closed when it is
}

func newCluster(o Options, service, host, name string) *Cluster {
	none := policies.NoTraffic()
	c := &Cluster{opts: o, service: service, host: host, none: none, rule: none, tokens: float64(none.Budget.MinPerSecond)}
	if o.Observe != nil {
		c.observe = o.Observe(name)
	}
	return c
}

// Ask is a request that looks for an endpoint.
type Ask struct {
	Method, Path string // of the request: they find the route of the policy
	// First is for an op of a transaction, as the Gate has verified it: it goes before new work.
	First bool
	// Alone says that the request has a connection of its own while it runs.
	Alone bool
}

// SetEndpoints replaces the endpoints, host:port each. What is known of those that stay is kept; requests that run at
// others end there.
func (c *Cluster) SetEndpoints(addresses []string) {
	c.mu.Lock()
	defer c.mu.Unlock()
	same := slices.EqualFunc(c.endpoints, addresses, func(e *endpoint, a string) bool { return e.address == a })
	if same {
		return
	}
	var next []*endpoint
	for _, a := range addresses {
		i := slices.IndexFunc(c.endpoints, func(e *endpoint) bool { return e.address == a })
		if i >= 0 {
			next = append(next, c.endpoints[i])
		} else {
			next = append(next, &endpoint{address: a})
		}
	}
	c.endpoints = next
	c.bringBack()
	c.dispatch()
}

// Pick chooses an endpoint, and waits in order where the limits of the policy are reached. The lease must be given back
// by Done. It does not allocate unless it waits.
func (c *Cluster) Pick(ctx context.Context, a Ask) (Lease, error) {
	c.mu.Lock()
	l, err := c.now(a)
	if !errors.Is(err, ErrBusy) {
		c.mu.Unlock()
		return l, err
	}
	w := &waiter{ask: a, ready: make(chan struct{})}
	place := c.queue(a).PushBack(w)
	c.waiting()
	patience, began := c.rule.Connect, c.opts.Now()
	c.mu.Unlock()
	return c.wait(ctx, w, place, patience, began)
}

// TryPick is Pick for who must not block: where Pick would wait, it says ErrBusy.
func (c *Cluster) TryPick(a Ask) (Lease, error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.now(a)
}

// now grants or refuses a request, or says that it has to wait.
func (c *Cluster) now(a Ask) (Lease, error) {
	c.follow()
	if len(c.endpoints) == 0 {
		c.refused(a)
		return Lease{}, ErrNoEndpoint
	}
	if c.queue(a).Len() == 0 && (a.First || c.first.Len() == 0) {
		if l, ok := c.grant(a); ok {
			return l, nil
		}
	}
	if c.queue(a).Len() >= c.pendingMax(a) {
		c.refused(a)
		return Lease{}, ErrFull
	}
	return Lease{}, ErrBusy
}

func (c *Cluster) wait(ctx context.Context, w *waiter, place *list.Element, patience time.Duration, began time.Time) (Lease, error) {
	timer := time.NewTimer(patience)
	defer timer.Stop()
	err := ErrWaited
	select {
	case <-w.ready:
	case <-timer.C:
	case <-ctx.Done():
		err = context.Cause(ctx)
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	if w.lease.c == nil {
		c.queue(w.ask).Remove(place)
		c.waiting()
		c.refused(w.ask)
		return Lease{}, err
	}
	w.lease.waited = c.opts.Now().Sub(began)
	return w.lease, nil
}

func (c *Cluster) queue(a Ask) *list.List {
	if a.First {
		return &c.first
	}
	return &c.rest
}

func (c *Cluster) pendingMax(a Ask) int {
	if a.First {
		return max(c.rule.Connections.MaxPending, firstPendingMin)
	}
	return c.rule.Connections.MaxPending
}

func (c *Cluster) waiting() {
	if c.observe != nil {
		c.observe.Waiting(c.first.Len() + c.rest.Len())
	}
}

func (c *Cluster) refused(a Ask) {
	if c.observe != nil {
		c.observe.Refused(a.First)
	}
}

// limit is how many requests may run. At the application a tenth, one at least, is kept free for ops, so that an undo
// never waits for new work.
func (c *Cluster) limit(first bool) int {
	most := c.rule.Connections.MaxRequests
	if !c.own || most == 0 {
		return most
	}
	ofNew := max(1, most-max(1, most/10))
	if first {
		return max(most, ofNew+1)
	}
	return ofNew
}

// grant gives a request an endpoint if the limits allow it now.
func (c *Cluster) grant(a Ask) (Lease, bool) {
	if most := c.limit(a.First); most > 0 && c.running >= most {
		return Lease{}, false
	}
	e := c.choose(a)
	if e == nil {
		return Lease{}, false
	}
	l := Lease{c: c, rule: c.rule, route: c.rule.Route(a.Method, a.Path), ask: a}
	l.take(e)
	c.deposit()
	return l, true
}

// dispatch serves those who wait, ops first, as far as the limits allow it.
func (c *Cluster) dispatch() {
	if c.first.Len() == 0 && c.rest.Len() == 0 {
		return
	}
	for _, q := range []*list.List{&c.first, &c.rest} {
		for place := q.Front(); place != nil; place = q.Front() {
			w := place.Value.(*waiter)
			l, ok := c.grant(w.ask)
			if !ok {
				break
			}
			w.lease = l
			q.Remove(place)
			close(w.ready)
		}
	}
	c.waiting()
}

// follow takes over the policies in force.
func (c *Cluster) follow() {
	if c.opts.Policies == nil {
		return
	}
	set := c.opts.Policies.Current()
	if set == c.set {
		return
	}
	c.set, c.rule = set, c.none
	if set != nil {
		if t := set.Traffic(c.service, c.host); t != nil {
			c.rule = t
		}
	}
	c.tokens = min(c.tokens, c.tokensMax())
	c.bringBack()
	c.dispatch()
}

// idle reports whether nothing runs and nothing waits.
func (c *Cluster) idle() bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.running == 0 && c.first.Len() == 0 && c.rest.Len() == 0
}

// tokensMax is how many repeats may come at once after a quiet time.
func (c *Cluster) tokensMax() float64 { return max(10, float64(c.rule.Budget.MinPerSecond)) }

// deposit adds the share of one request to the budget.
func (c *Cluster) deposit() {
	c.tokens = min(c.tokensMax(), c.tokens+float64(c.rule.Budget.Percent)/100)
}

// withdraw takes one repeat out of the budget.
func (c *Cluster) withdraw() bool {
	now := c.opts.Now()
	if c.refilled.IsZero() {
		c.refilled = now
	}
	c.tokens = min(c.tokensMax(), c.tokens+now.Sub(c.refilled).Seconds()*float64(c.rule.Budget.MinPerSecond))
	c.refilled = now
	if c.tokens < 1 {
		return false
	}
	c.tokens--
	return true
}
