// Package directory knows which sidecars there are: those whose streams live, here or at another replica, and for a
// while those whose streams have gone. From that it derives, for a moment in time, the endpoints of each service and
// who should adopt the journal of a sidecar that is gone. It has no clock, keeps nothing on disk, talks to nobody and
// never decides that a journal changes hands: the store's epoch does. Start at Directory.View.
package directory

import (
	"sync"
	"time"

	endpoint "github.com/envoyproxy/go-control-plane/envoy/config/endpoint/v3"
	"google.golang.org/protobuf/types/known/structpb"
)

// Options are the times of a Directory.
type Options struct {
	Grace time.Duration // a sidecar that has gone stays an endpoint for so long
	Lease time.Duration // after so long its journal is offered for adoption
	Offer time.Duration // and no longer than this
}

// Directory is safe for many goroutines. Each method is told the time, which must not go backwards.
type Directory struct {
	opt Options

	mu       sync.Mutex // guards all below
	members  map[string]*member
	gone     map[string]*member // those of the members whom time alone changes
	services map[string]*service
}

// member is one owner. It is here as long as some source says so.
type member struct {
	node       Node
	sources    map[string]Node // where it is connected: "here STREAM", or the name of a replica
	gone       time.Time       // since when there is none; zero: there is one
	acceptance *structpb.Struct
}

// service keeps what was made of its members until one of them is another: most of them are the same for days.
type service struct {
	members map[string]*member
	last    time.Time // when the last of them went

	all, here *endpoint.ClusterLoadAssignment // nil: to be made anew
	until     time.Time                       // when time alone makes all another; zero: never
}

// emptyMax is how long a service without any sidecar stays known, so that its callers see no endpoints rather than no
// service.
const emptyMax = time.Hour

// New returns a Directory without members.
func New(opt Options) *Directory {
	return &Directory{opt: opt, members: map[string]*member{}, gone: map[string]*member{}, services: map[string]*service{}}
}

// Join says that a sidecar is connected by a source.
func (d *Directory) Join(now time.Time, source string, n Node) {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.join(now, source, n)
}

func (d *Directory) join(now time.Time, source string, n Node) {
	m := d.members[n.Owner]
	if m == nil {
		m = &member{sources: map[string]Node{}}
		d.members[n.Owner] = m
	} else if m.node.Service != n.Service {
		if m.gone.IsZero() {
			d.services[m.node.Service].last = now
		}
		d.quit(m)
	}
	m.node, m.gone = n, time.Time{}
	m.sources[source] = n
	delete(d.gone, n.Owner)
	s := d.services[n.Service]
	if s == nil {
		s = &service{members: map[string]*member{}}
		d.services[n.Service] = s
	}
	s.members[n.Owner] = m
	s.outdate()
}

// quit takes a member out of its service.
func (d *Directory) quit(m *member) {
	s := d.services[m.node.Service]
	delete(s.members, m.node.Owner)
	s.outdate()
}

func (s *service) outdate() { s.all, s.here = nil, nil }

// Accept says how the sidecar of an owner has taken the policies, for other replicas. It is not to be changed after.
func (d *Directory) Accept(owner string, acceptance *structpb.Struct) {
	d.mu.Lock()
	defer d.mu.Unlock()
	if m := d.members[owner]; m != nil {
		m.acceptance = acceptance
		d.services[m.node.Service].here = nil
	}
}

// Leave says that an owner is no longer connected by a source.
func (d *Directory) Leave(now time.Time, source, owner string) {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.leave(now, source, owner)
}

func (d *Directory) leave(now time.Time, source, owner string) {
	m := d.members[owner]
	if m == nil {
		return
	}
	if _, ok := m.sources[source]; !ok {
		return
	}
	delete(m.sources, source)
	s := d.services[m.node.Service]
	if len(m.sources) == 0 {
		m.gone, s.last = now, now
		d.gone[owner] = m
	}
	s.outdate()
}

// Replace says which sidecars are connected by a source, all of them.
func (d *Directory) Replace(now time.Time, source string, nodes []Node) {
	d.mu.Lock()
	defer d.mu.Unlock()
	here := make(map[string]bool, len(nodes))
	for _, n := range nodes {
		here[n.Owner] = true
		// What a source says again is no news: another may have told of a later incarnation meanwhile.
		if m := d.members[n.Owner]; m == nil || !m.sources[source].equal(n) {
			d.join(now, source, n)
		}
	}
	for owner := range d.members {
		if !here[owner] {
			d.leave(now, source, owner)
		}
	}
}

// trim forgets what no longer matters.
func (d *Directory) trim(now time.Time) {
	for owner, m := range d.gone {
		if now.Sub(m.gone) >= max(d.opt.Grace, d.opt.Lease+d.opt.Offer) {
			delete(d.members, owner)
			delete(d.gone, owner)
			d.quit(m)
		}
	}
	for name, s := range d.services {
		if len(s.members) == 0 && now.Sub(s.last) >= emptyMax {
			delete(d.services, name)
		}
	}
}
