package peer

import (
	"context"
	"maps"
	"net"
	"slices"
	"time"
)

// Member is a sidecar that the control plane knows.
type Member struct {
	Address  string // host:port of its peer port
	Identity Identity
}

// named is what the name of a host turned out to mean.
type named struct {
	home  string
	known bool
	until time.Time
}

const (
	namedFor   = 5 * time.Second  // a name means the same
	unnamedFor = time.Second      // a name that did not resolve is not tried again
	namedMax   = 1024             // names that are remembered
	goneFor    = 10 * time.Minute // the endpoint of a sidecar that left is not taken for one without
)

// gone is a sidecar that the control plane no longer knows. It may be dead, or merely cut off from the control plane.
type gone struct {
	Member
	until time.Time
}

// SetFleet replaces what the control plane knows: who is not among them is forgotten at once, unless it is configured.
// Only that a sidecar listened on its endpoint is remembered for a while.
// A fleet that is live is complete: nobody else is a sidecar. One from disk may lack who came since.
func (d *Directory) SetFleet(members []Member, live bool) {
	d.mu.Lock()
	defer d.mu.Unlock()
	now := d.opt.Now()
	for _, p := range d.fleet {
		if l := d.learned[p]; l.Identity.Inbound != "" {
			d.gone[l.Identity.Inbound] = gone{Member{p, l.Identity}, now.Add(goneFor)}
		}
		delete(d.learned, p)
	}
	d.fleet = nil
	for _, m := range members {
		if m.Identity.Owner == d.self.Owner || slices.Contains(d.opt.Peers, m.Address) {
			continue // those who are configured are asked
		}
		if _, twice := d.learned[m.Address]; !twice {
			d.fleet = append(d.fleet, m.Address)
		}
		l := learned{Identity: m.Identity}
		if m.Identity.Inbound != "" {
			l.Aliases = []string{m.Identity.Inbound}
		}
		d.learned[m.Address] = l
	}
	d.live = d.live || live
	d.names = map[string]named{}
	d.index()
	maps.DeleteFunc(d.gone, func(endpoint string, g gone) bool { return d.inbounds[endpoint] != "" || !now.Before(g.until) })
	close(d.moved)
	d.moved = make(chan struct{})
}

// peers lists the configured peers and those that the control plane knows.
func (d *Directory) peers() []string { return slices.Concat(d.opt.Peers, d.fleet) }

// owner is lookUp of something that exists, because somebody named it: the control plane may not have told yet.
func (d *Directory) owner(ctx context.Context, find func() (string, bool)) (string, bool) {
	v, ok := d.lookUp(ctx, true, find)
	if ok || !d.opt.Fleet {
		return v, ok
	}
	ctx, cancel := context.WithTimeout(ctx, roundMax)
	defer cancel()
	for {
		d.mu.Lock()
		v, ok = find()
		moved := d.moved
		d.mu.Unlock()
		if ok {
			return v, true
		}
		select {
		case <-moved:
		case <-ctx.Done():
			return v, false
		}
	}
}

// homeOfGone asks a sidecar that the control plane no longer knows whether it still listens there. While it does not
// answer, nobody knows who listens: a branch without a barrier would not be safe.
func (d *Directory) homeOfGone(endpoint string, g gone) (home string, known bool) {
	d.mu.Lock()
	n, ok := d.names[endpoint]
	d.mu.Unlock()
	if ok && d.opt.Now().Before(n.until) {
		return n.home, n.known
	}
	ctx, cancel := context.WithTimeout(context.Background(), roundMax)
	defer cancel()
	id, err := d.opt.Ask(ctx, g.Address)
	n = named{until: d.opt.Now().Add(unnamedFor)}
	if err == nil && id.Owner == g.Identity.Owner && id.Inbound == endpoint {
		n = named{home: id.home(), known: true, until: d.opt.Now().Add(namedFor)}
	}
	d.mu.Lock()
	defer d.mu.Unlock()
	d.rememberName(endpoint, n)
	return n.home, n.known
}

// rememberName is called with mu held.
func (d *Directory) rememberName(endpoint string, n named) {
	if len(d.names) >= namedMax {
		clear(d.names)
	}
	d.names[endpoint] = n
}

// homeByName finds the sidecar behind the name of a host: the control plane knows addresses alone.
func (d *Directory) homeByName(endpoint string) (home string, known bool) {
	host, port, err := net.SplitHostPort(endpoint)
	if err != nil || net.ParseIP(host) != nil {
		return "", true
	}
	d.mu.Lock()
	n, ok := d.names[endpoint]
	d.mu.Unlock()
	if ok && d.opt.Now().Before(n.until) {
		return n.home, n.known
	}
	ctx, cancel := context.WithTimeout(context.Background(), roundMax)
	defer cancel()
	addresses, err := d.opt.Names(ctx, host)
	n = named{known: err == nil, until: d.opt.Now().Add(namedFor)}
	if err != nil {
		n.until = d.opt.Now().Add(unnamedFor)
	}
	d.mu.Lock()
	defer d.mu.Unlock()
	for _, a := range addresses {
		if at, ok := d.inbounds[net.JoinHostPort(a, port)]; ok {
			n.home = at
			break // the call goes to the home that is chosen here
		}
	}
	d.rememberName(endpoint, n)
	return n.home, n.known
}
