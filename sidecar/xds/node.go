package xds

import (
	"fmt"
	"net"

	"google.golang.org/protobuf/types/known/anypb"
	"google.golang.org/protobuf/types/known/structpb"

	"txmesh/sidecar/xds/envoy"
)

// Node is what a sidecar says of itself, and what others get to know of it.
type Node struct {
	Owner       string
	Incarnation string // new with every start of the process
	Service     string // namespace/name
	Inbound     string // host:port as others call it; empty: it stands beside no application
	Peer        string // host:port of its peer port, as others call it
	Home        string // where its barrier's rows live; empty: with the owner
	Version     string // of the program
	Standby     bool
	TLS         bool   // the inbound port takes TLS of the mesh
	SPIFFE      string // id of its certificate; empty: it has none
}

// Fleet is all sidecars that the control plane knows.
type Fleet struct {
	Sidecars []Node
	Live     bool // from the control plane itself, not from disk
}

// wire is the node of the first request.
func (n Node) wire() *envoy.Node {
	text := structpb.NewStringValue
	fields := map[string]*structpb.Value{"owner": text(n.Owner), "incarnation": text(n.Incarnation), "service": text(n.Service),
		"inbound": text(n.Inbound), "peer": text(n.Peer), "home": text(n.Home), "version": text(n.Version),
		"standby": structpb.NewBoolValue(n.Standby), "tls": structpb.NewBoolValue(n.TLS), "spiffe": text(n.SPIFFE)}
	return &envoy.Node{Id: n.Owner + "/" + n.Incarnation, Cluster: n.Service, UserAgentName: "txmesh-sidecar",
		Metadata: &structpb.Struct{Fields: fields}}
}

// metadataName is where endpoints carry what their sidecars say of themselves.
const metadataName = "txmesh"

// nodesOf reads the sidecars of one service.
func nodesOf(r *anypb.Any) ([]Node, error) {
	var a envoy.ClusterLoadAssignment
	if err := unpack(r, typePeers, &a); err != nil {
		return nil, err
	}
	var nodes []Node
	for _, l := range a.GetEndpoints() {
		for _, e := range l.GetLbEndpoints() {
			m, ok := e.GetMetadata().GetFilterMetadata()[metadataName]
			if !ok {
				return nil, fmt.Errorf("endpoint %d has no metadata %q", len(nodes)+1, metadataName)
			}
			n, err := nodeOf(m)
			if err != nil {
				return nil, fmt.Errorf("endpoint %d: %w", len(nodes)+1, err)
			}
			nodes = append(nodes, n)
		}
	}
	return nodes, nil
}

func nodeOf(m *structpb.Struct) (Node, error) {
	text := func(k string) string { return m.GetFields()[k].GetStringValue() }
	n := Node{Owner: text("owner"), Incarnation: text("incarnation"), Service: text("service"), Inbound: text("inbound"),
		Peer: text("peer"), Home: text("home"), Version: text("version"), Standby: m.GetFields()["standby"].GetBoolValue(),
		TLS: m.GetFields()["tls"].GetBoolValue(), SPIFFE: text("spiffe")}
	if n.Owner == "" {
		return n, fmt.Errorf("owner is missing")
	}
	for _, a := range []struct{ field, address string }{{"peer", n.Peer}, {"inbound", n.Inbound}} {
		if a.field == "inbound" && a.address == "" {
			continue
		}
		if host, port, err := net.SplitHostPort(a.address); err != nil || host == "" || port == "" {
			return n, fmt.Errorf("%s %q of owner %s is not host:port", a.field, a.address, n.Owner)
		}
	}
	return n, nil
}
