// Package directory knows which sidecars there are: those whose streams live, here or at another replica, and for a
// while those whose streams have gone. From that it derives, for a moment in time, the endpoints of each service and
// who should adopt the journal of a sidecar that is gone. It has no clock, keeps nothing on disk, talks to nobody and
// never decides that a journal changes hands: the store's epoch does. Start at Directory.View.
package directory

import (
	"sync"
	"time"
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
	services map[string]time.Time // when each last had a member
}

// member is one owner. It is here as long as some source says so.
type member struct {
	node    Node
	sources map[string]Node // where it is connected: "here STREAM", or the name of a replica
	gone    time.Time       // since when there is none; zero: there is one
}

// emptyMax is how long a service without any sidecar stays known, so that its callers see no endpoints rather than no
// service.
const emptyMax = time.Hour

// New returns a Directory without members.
func New(opt Options) *Directory {
	return &Directory{opt: opt, members: map[string]*member{}, services: map[string]time.Time{}}
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
	}
	m.node, m.gone = n, time.Time{}
	m.sources[source] = n
	d.services[n.Service] = now
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
	if len(m.sources) == 0 {
		m.gone = now
		d.services[m.node.Service] = now
	}
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
	for owner, m := range d.members {
		if !m.gone.IsZero() && now.Sub(m.gone) >= max(d.opt.Grace, d.opt.Lease+d.opt.Offer) {
			delete(d.members, owner)
		}
	}
	for _, m := range d.members {
		if m.gone.IsZero() {
			d.services[m.node.Service] = now
		}
	}
	for service, last := range d.services {
		if now.Sub(last) >= emptyMax {
			delete(d.services, service)
		}
	}
}
