package sidecar

import (
	"net"
	"net/netip"
	"slices"
)

// networks reads the networks in CIDR notation; an address alone is a network of one.
func (p *problems) networks(key string, v any) []netip.Prefix {
	var out []netip.Prefix
	for _, s := range p.list1(key, v) {
		n, err := netip.ParsePrefix(s)
		if ip, single := netip.ParseAddr(s); single == nil && ip.Zone() == "" {
			n, err = ip.Prefix(ip.BitLen())
		}
		switch {
		case err != nil:
			p.add(key, s, "is not a network", "write it in CIDR notation, for example 10.0.0.0/8, or as one address")
		case n != n.Masked():
			p.add(key, s, "has bits beyond its length", "write "+n.Masked().String()+", or the address with its full length")
		default:
			out = append(out, n)
		}
	}
	return out
}

// trusts returns proxy.Options.Trusted for these networks; nil trusts nobody.
func trusts(gateways []netip.Prefix) func(net.Addr) bool {
	if len(gateways) == 0 {
		return nil
	}
	return func(remote net.Addr) bool {
		at, err := netip.ParseAddrPort(remote.String())
		ip := at.Addr().Unmap().WithZone("")
		return err == nil && slices.ContainsFunc(gateways, func(n netip.Prefix) bool { return n.Contains(ip) })
	}
}
