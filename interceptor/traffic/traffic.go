// Package traffic knows, of each destination that requests go to, its endpoints, how they have answered lately, what
// runs there and what waits. It says where a request may go next, whether it has to wait, and whether it may be sent
// again; TrafficPolicies say by which rules. It opens no connection, reads no message and starts no goroutine. Any
// forwarder can ask it: Cluster.Pick gives a Lease on an endpoint, Lease.Report hears how it went, Lease.Next moves a
// request on, Lease.Done gives everything back. Start at Cluster.Pick.
package traffic

import (
	"strings"
	"sync"
	"time"

	"txmesh/policies"
)

// Policies gives the policy set in force, nil for none. It may change between two calls: whatever runs goes on by the
// rules that it was picked by, and what comes then goes by the new ones.
type Policies interface {
	Current() *policies.Set
}

// Options is what the clusters of one sidecar have in common. The zero value works.
type Options struct {
	Policies Policies                    // nil: no policy names anything
	Now      func() time.Time            // nil: time.Now
	Observe  func(name string) *Observer // of a destination: a service, the host of a policy, or Application; nil: nobody listens
}

// Observer hears what is counted at one destination. All functions are set. They must not block.
type Observer struct {
	Picked  func(State)
	Ejected func()
	Retried func(granted bool)
	Refused func(first bool)
	Waiting func(n int)
}

// State is that of an endpoint when it is picked.
type State uint8

// Healthy is in use, Trial is back from an ejection and has one request to prove itself, Panic is ejected as are all
// others.
const (
	Healthy State = iota
	Trial
	Panic
)

// States lists all states.
func States() []State { return []State{Healthy, Trial, Panic} }

// String is the word of a state in metrics.
func (s State) String() string { return []string{"healthy", "trial", "panic"}[s] }

// hostsMax bounds the hosts that are remembered because a policy names them and an application has called them.
const hostsMax = 1000

// Clusters are the destinations of one sidecar, so that all its listeners share what is known of each. It is safe for
// many goroutines.
type Clusters struct {
	opts Options

	mu    sync.Mutex // guards the rest
	named map[string]*Cluster
	hosts map[string]*Cluster
}

// New returns no destinations yet.
func New(o Options) *Clusters {
	if o.Now == nil {
		o.Now = time.Now
	}
	return &Clusters{opts: o, named: map[string]*Cluster{}, hosts: map[string]*Cluster{}}
}

// Application is the name under which the application beside the sidecar is observed.
const Application = "application"

// Service is the cluster of a service that this sidecar calls. All who name the same service with the same endpoints
// share it; without endpoints, SetEndpoints brings them.
func (cs *Clusters) Service(service string, endpoints []string) *Cluster {
	cs.mu.Lock()
	defer cs.mu.Unlock()
	key := service + " " + strings.Join(endpoints, " ")
	c := cs.named[key]
	if c == nil {
		c = newCluster(cs.opts, service, "", service)
		c.SetEndpoints(endpoints)
		cs.named[key] = c
	}
	return c
}

// Own is the cluster of the application beside the sidecar. Of its policy only the limits of requests hold.
func (cs *Clusters) Own(service, endpoint string) *Cluster {
	cs.mu.Lock()
	defer cs.mu.Unlock()
	key := "own " + endpoint
	c := cs.named[key]
	if c == nil {
		c = newCluster(cs.opts, service, "", Application)
		c.own = true
		c.SetEndpoints([]string{endpoint})
		cs.named[key] = c
	}
	return c
}

// Host is the cluster of a host that is called by its own name; nil: no policy names it, and nothing is kept of it.
func (cs *Clusters) Host(endpoint string) *Cluster {
	if cs.opts.Policies == nil {
		return nil
	}
	set := cs.opts.Policies.Current()
	if set == nil || set.Traffic("", endpoint) == nil {
		return nil
	}
	name := set.Traffic("", endpoint).Host
	cs.mu.Lock()
	defer cs.mu.Unlock()
	c := cs.hosts[endpoint]
	if c == nil {
		if len(cs.hosts) >= hostsMax {
			cs.forget()
		}
		c = newCluster(cs.opts, "", endpoint, name)
		c.SetEndpoints([]string{endpoint})
		cs.hosts[endpoint] = c
	}
	return c
}

// forget drops the hosts where nothing runs.
func (cs *Clusters) forget() {
	for k, c := range cs.hosts {
		if c.idle() {
			delete(cs.hosts, k)
		}
	}
}
