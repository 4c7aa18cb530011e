package directory

import (
	"cmp"
	"fmt"
	"hash/fnv"
	"maps"
	"slices"
	"strings"
	"time"

	core "github.com/envoyproxy/go-control-plane/envoy/config/core/v3"
	endpoint "github.com/envoyproxy/go-control-plane/envoy/config/endpoint/v3"
	"google.golang.org/protobuf/types/known/structpb"
	"google.golang.org/protobuf/types/known/wrapperspb"
)

// View is the state of a Directory at one moment. What is the same as before is the same message, which is not to be
// changed.
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
	v := View{Assignments: make(map[string]*endpoint.ClusterLoadAssignment, len(d.services)),
		Here: map[string]*endpoint.ClusterLoadAssignment{}, Takeovers: map[string]Takeover{}}
	for name, s := range d.services {
		d.refresh(now, name, s)
		v.Assignments[name] = s.all
		if len(endpointsOf(s.here)) > 0 {
			v.Here[name] = s.here
		}
		if len(s.members) == 0 {
			v.Next = sooner(v.Next, s.last.Add(emptyMax))
		}
	}
	for _, m := range d.gone {
		d.offer(&v, now, m)
		v.Next = sooner(v.Next, d.change(now, m))
	}
	return v
}

// refresh makes anew what is no longer right of a service.
func (d *Directory) refresh(now time.Time, name string, s *service) {
	if !s.until.IsZero() && !now.Before(s.until) {
		s.all = nil
	}
	if s.all != nil && s.here != nil {
		return
	}
	owners := slices.Sorted(maps.Keys(s.members)) // equal views are equal bytes, whichever replica has them
	if s.all == nil {
		s.all, s.until = assignment(name), time.Time{}
		for _, owner := range owners {
			m := s.members[owner]
			end := m.gone.Add(d.opt.Grace)
			switch {
			case m.gone.IsZero():
			case !now.Before(end):
				continue
			default:
				s.until = sooner(s.until, end)
			}
			add(s.all, m.node, nil)
		}
	}
	if s.here == nil {
		s.here = assignment(name)
		for _, owner := range owners {
			if m := s.members[owner]; m.here() {
				add(s.here, m.node, m.acceptance)
			}
		}
	}
}

// here reports whether a stream of this replica has told what is known of the member.
func (m *member) here() bool {
	for source, n := range m.sources {
		if strings.HasPrefix(source, herePrefix) && n.equal(m.node) {
			return true
		}
	}
	return false
}

// change is when a member that has gone is next seen differently.
func (d *Directory) change(now time.Time, m *member) time.Time {
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

func endpointsOf(a *endpoint.ClusterLoadAssignment) []*endpoint.LbEndpoint {
	return a.GetEndpoints()[0].GetLbEndpoints()
}

func add(a *endpoint.ClusterLoadAssignment, n Node, acceptance *structpb.Struct) {
	address, health := n.Inbound, core.HealthStatus_HEALTHY
	if n.Standby || address == "" { // a peer, but not one to send requests to
		address, health = cmp.Or(n.Inbound, n.Peer), core.HealthStatus_DRAINING
	}
	host, port, err := splitAddress(address)
	if err != nil {
		panic(fmt.Sprintf("directory: address %q of %s that was checked", address, n.Owner))
	}
	meta := map[string]*structpb.Struct{MetadataKey: n.Metadata}
	if acceptance != nil {
		meta[AcceptanceKey] = acceptance
	}
	a.Endpoints[0].LbEndpoints = append(a.Endpoints[0].LbEndpoints, &endpoint.LbEndpoint{
		HealthStatus: health,
		Metadata:     &core.Metadata{FilterMetadata: meta},
		HostIdentifier: &endpoint.LbEndpoint_Endpoint{Endpoint: &endpoint.Endpoint{Address: &core.Address{
			Address: &core.Address_SocketAddress{SocketAddress: &core.SocketAddress{Address: host,
				PortSpecifier: &core.SocketAddress_PortValue{PortValue: port}}}}}},
	})
}

// offer advises a takeover of a member whose lease has run out, if somebody can adopt it.
func (d *Directory) offer(v *View, now time.Time, m *member) {
	age := now.Sub(m.gone)
	if !m.node.shared() || age < d.opt.Lease || age >= d.opt.Lease+d.opt.Offer {
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
