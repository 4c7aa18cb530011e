//go:build linux

package netns

import (
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"testing"
	"time"
)

// network is where the hosts live. It exists in their namespaces only, so that it is in nobody's way.
const network = "10.77.0.0/16"

// network6 are the same hosts by IPv6: the last four bytes are the address by IPv4.
const network6 = "fd77::/96"

// Net is hosts on one wire. Its methods are safe for many goroutines, except Host.
type Net struct {
	tb    testing.TB
	wire  *wire
	hosts []*Host
}

// New returns a net without hosts, whose wire draws from the seed what it loses and by how much it jitters. It ends with
// the test.
func New(tb testing.TB, seed uint64) *Net {
	tb.Helper()
	if os.Getuid() != 0 {
		tb.Skip("hosts of their own need root: run this test as root")
	}
	if _, err := os.Stat(tunPath); err != nil {
		tb.Skipf("hosts of their own need TUN devices: %v", err)
	}
	n := &Net{tb: tb, wire: newWire(seed)}
	tb.Cleanup(func() {
		if err := n.close(); err != nil {
			tb.Error(err)
		}
	})
	return n
}

func (n *Net) close() error {
	var errs []error
	for _, h := range n.hosts {
		errs = append(errs, h.close())
	}
	n.wire.close()
	return errors.Join(errs...)
}

// Host adds a host. The name is for messages.
func (n *Net) Host(name string) *Host {
	n.tb.Helper()
	h, err := newHost(name, n.address(), n.wire)
	if err != nil {
		n.tb.Fatalf("host %s: %v", name, err)
	}
	n.hosts = append(n.hosts, h)
	return h
}

// DualHost is Host with an address of IPv6 too. What is said of the wire between two hosts holds for both families.
func (n *Net) DualHost(name string) *Host {
	n.tb.Helper()
	h := n.Host(name)
	if err := h.Do(func() error { return up6(device, h.address6()) }); err != nil {
		n.tb.Fatalf("host %s: %v", name, err)
	}
	const inUseMax = 5 * time.Second
	for end := time.Now().Add(inUseMax); ; <-time.After(time.Millisecond) { // the kernel takes it into use when it gets to it
		c, err := h.ListenPacket(net.JoinHostPort(h.IP6(), "0"))
		if err == nil {
			err = c.Close()
		}
		if err == nil {
			return h
		}
		if time.Now().After(end) {
			n.tb.Fatalf("host %s: %v", name, err)
		}
	}
}

// address is the one of the next host.
func (n *Net) address() netip.Prefix {
	const hostsMax = 250
	if len(n.hosts) == hostsMax {
		n.tb.Fatalf("a net has at most %d hosts", hostsMax)
	}
	p := netip.MustParsePrefix(network)
	return netip.PrefixFrom(netip.MustParseAddr(fmt.Sprintf("10.77.0.%d", len(n.hosts)+1)), p.Bits())
}

// Send says what happens from now on to the packets from any of some hosts to any of others, in this direction only. The
// zero Fault is none. What is under way already still arrives.
func (n *Net) Send(from, to []*Host, f Fault) {
	for _, a := range from {
		for _, b := range to {
			n.wire.set(pair{a.address.Addr(), b.address.Addr()}, f)
		}
	}
}

// Between is Send in both directions.
func (n *Net) Between(a, b []*Host, f Fault) {
	n.Send(a, b, f)
	n.Send(b, a, f)
}

// Heal takes away all faults of the wire.
func (n *Net) Heal() { n.wire.heal() }

// Counts tells what became of the packets from one host to another so far.
func (n *Net) Counts(from, to *Host) Counts {
	return n.wire.counts(pair{from.address.Addr(), to.address.Addr()})
}
