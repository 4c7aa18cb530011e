package peer

import (
	"context"
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
	namedFor   = 5 * time.Second // a name means the same
	unnamedFor = time.Second     // a name that did not resolve is not tried again
	namedMax   = 1024            // names that are remembered
)

// SetFleet replaces what the control plane knows: who is not among them is forgotten at once, unless it is configured.
// A fleet that is live is complete: nobody else is a sidecar. One from disk may lack who came since.
func (d *Directory) SetFleet(members []Member, live bool) {
	d.mu.Lock()
	defer d.mu.Unlock()
	for _, p := range d.fleet {
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
	if len(d.names) >= namedMax {
		clear(d.names)
	}
	d.names[endpoint] = n
	return n.home, n.known
}
