package directory

import (
	"cmp"
	"fmt"
	"hash/fnv"
	"maps"
	"slices"
	"time"

	core "github.com/envoyproxy/go-control-plane/envoy/config/core/v3"
	endpoint "github.com/envoyproxy/go-control-plane/envoy/config/endpoint/v3"
	"google.golang.org/protobuf/types/known/structpb"
	"google.golang.org/protobuf/types/known/wrapperspb"
)

// View is the state of a Directory at one moment.
type View struct {
	Assignments map[string]*endpoint.ClusterLoadAssignment // service -> its endpoints
	Here        map[string]*endpoint.ClusterLoadAssignment // those that are connected to this replica, for others
	Takeovers   map[string]Takeover                        // by owner
	// Next is when the view changes by itself; zero: it does not.
	Next time.Time
}

// Takeover is the advice that one sidecar adopts the journal of another that has gone.
type Takeover struct{ Owner, Adopter, Reason string }

// Here is the source of a stream of this replica.
func Here(stream string) string { return herePrefix + stream }

const herePrefix = "here "

// View returns the state at a time.
func (d *Directory) View(now time.Time) View {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.trim(now)
	v := View{Assignments: map[string]*endpoint.ClusterLoadAssignment{}, Here: map[string]*endpoint.ClusterLoadAssignment{},
		Takeovers: map[string]Takeover{}}
	for service := range d.services {
		v.Assignments[service] = assignment(service)
	}
	for _, owner := range slices.Sorted(maps.Keys(d.members)) { // equal views are equal bytes, whichever replica has them
		m := d.members[owner]
		if m.gone.IsZero() || now.Sub(m.gone) < d.opt.Grace {
			add(v.Assignments, m.node)
		}
		for source, n := range m.sources {
			if len(source) > len(herePrefix) && source[:len(herePrefix)] == herePrefix && n.equal(m.node) {
				add(v.Here, m.node)
				break
			}
		}
		d.offer(&v, now, m)
		v.Next = sooner(v.Next, d.change(now, m))
	}
	return v
}

// change is when a member that has gone is next seen differently.
func (d *Directory) change(now time.Time, m *member) time.Time {
	if m.gone.IsZero() {
		return time.Time{}
	}
	var next time.Time
	for _, after := range []time.Duration{d.opt.Grace, d.opt.Lease, d.opt.Lease + d.opt.Offer} {
		if at := m.gone.Add(after); at.After(now) {
			next = sooner(next, at)
		}
	}
	return next
}

func sooner(a, b time.Time) time.Time {
	if a.IsZero() || !b.IsZero() && b.Before(a) {
		return b
	}
	return a
}

func assignment(service string) *endpoint.ClusterLoadAssignment {
	// gRPC's client wants a locality with a weight.
	return &endpoint.ClusterLoadAssignment{ClusterName: service, Endpoints: []*endpoint.LocalityLbEndpoints{{
		Locality: &core.Locality{}, LoadBalancingWeight: wrapperspb.UInt32(1)}}}
}

func add(to map[string]*endpoint.ClusterLoadAssignment, n Node) {
	a := to[n.Service]
	if a == nil {
		a = assignment(n.Service)
		to[n.Service] = a
	}
	address, health := n.Inbound, core.HealthStatus_HEALTHY
	if n.Standby || address == "" { // a peer, but not one to send requests to
		address, health = cmp.Or(n.Inbound, n.Peer), core.HealthStatus_DRAINING
	}
	host, port, err := splitAddress(address)
	if err != nil {
		panic(fmt.Sprintf("directory: address %q of %s that was checked", address, n.Owner))
	}
	a.Endpoints[0].LbEndpoints = append(a.Endpoints[0].LbEndpoints, &endpoint.LbEndpoint{
		HealthStatus: health,
		Metadata:     &core.Metadata{FilterMetadata: map[string]*structpb.Struct{MetadataKey: n.Metadata}},
		HostIdentifier: &endpoint.LbEndpoint_Endpoint{Endpoint: &endpoint.Endpoint{Address: &core.Address{
			Address: &core.Address_SocketAddress{SocketAddress: &core.SocketAddress{Address: host,
				PortSpecifier: &core.SocketAddress_PortValue{PortValue: port}}}}}},
	})
}

// offer advises a takeover of a member whose lease has run out, if somebody can adopt it.
func (d *Directory) offer(v *View, now time.Time, m *member) {
	age := now.Sub(m.gone)
	if m.gone.IsZero() || !m.node.shared() || age < d.opt.Lease || age >= d.opt.Lease+d.opt.Offer {
		return
	}
	adopter := d.adopter(m.node)
	if adopter == "" {
		return
	}
	v.Takeovers[m.node.Owner] = Takeover{Owner: m.node.Owner, Adopter: adopter,
		Reason: "not connected since " + m.gone.UTC().Format(time.RFC3339)}
}

// adopter chooses by rendezvous hashing: every replica chooses the same, and when one sidecar goes only its share moves.
// Sidecars of the same service come first, then stand-bys of any.
func (d *Directory) adopter(of Node) string {
	best, score := "", uint64(0)
	pick := func(fits func(Node) bool) {
		for owner, m := range d.members {
			if !m.gone.IsZero() || !m.node.shared() || !fits(m.node) {
				continue
			}
			if s := weight(of.Owner, owner); best == "" || s > score || s == score && owner < best {
				best, score = owner, s
			}
		}
	}
	pick(func(n Node) bool { return n.Service == of.Service && !n.Standby })
	if best == "" {
		pick(func(n Node) bool { return n.Standby })
	}
	return best
}

// weight is FNV-1a with a last mix: without it the last letters of an owner's id would hardly count.
func weight(owner, candidate string) uint64 {
	h := fnv.New64a()
	h.Write([]byte(owner + " " + candidate)) // never fails
	x := h.Sum64()
	x = (x ^ x>>33) * 0xff51afd7ed558ccd
	x = (x ^ x>>33) * 0xc4ceb9fe1a85ec53
	return x ^ x>>33
}
