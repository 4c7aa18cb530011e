package sidecar

import (
	"context"
	"net"
	"net/netip"
	"sync/atomic"
	"time"
)

// namesEvery is how often the names of upstreams are looked up again.
const namesEvery = 5 * time.Second

// destinations knows the addresses of the upstreams, for connections of which only the address is known.
type destinations struct {
	upstreams []Upstream
	known     atomic.Pointer[map[netip.AddrPort]Upstream]
	lookUp    func(ctx context.Context, host string) ([]netip.Addr, error)
}

func newDestinations(upstreams []Upstream) *destinations {
	d := &destinations{upstreams: upstreams, lookUp: func(ctx context.Context, host string) ([]netip.Addr, error) {
		return net.DefaultResolver.LookupNetIP(ctx, "ip", host)
	}}
	d.known.Store(&map[netip.AddrPort]Upstream{})
	return d
}

// at returns the service at an address and its protocol as configured; empty: unknown.
func (d *destinations) at(a netip.AddrPort) (service, protocol string) {
	u := (*d.known.Load())[a]
	return u.Service, u.Protocol
}

// run looks the names up until ctx ends.
func (d *destinations) run(ctx context.Context) {
	tick := time.NewTicker(namesEvery)
	defer tick.Stop()
	for {
		d.refresh(ctx)
		select {
		case <-ctx.Done():
			return
		case <-tick.C:
		}
	}
}

// refresh looks every name up once. One that does not resolve keeps the addresses that it had.
func (d *destinations) refresh(ctx context.Context) {
	ctx, cancel := context.WithTimeout(ctx, namesEvery)
	defer cancel()
	old, found := *d.known.Load(), map[netip.AddrPort]Upstream{}
	for _, u := range d.upstreams {
		for _, to := range u.To {
			host, _, err := net.SplitHostPort(to)
			if err != nil {
				continue // it was checked
			}
			port := portOf(to)
			addrs, err := d.lookUp(ctx, host)
			if err != nil {
				for a, was := range old {
					if was.Service == u.Service && a.Port() == port {
						found[a] = was
					}
				}
			}
			for _, a := range addrs {
				found[netip.AddrPortFrom(a.Unmap(), port)] = u
			}
		}
	}
	d.known.Store(&found)
}
