package directory

import (
	"fmt"
	"net"
	"regexp"
	"strconv"
	"strings"

	core "github.com/envoyproxy/go-control-plane/envoy/config/core/v3"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/structpb"

	"txmesh/policies"
)

// Node is what a sidecar says of itself.
type Node struct {
	Owner       string
	Incarnation string
	Service     string // namespace/name
	Inbound     string // host:port; a stand-by may have none
	Peer        string // host:port
	Home        string // where its barrier rows live: an owner, or ~namespace/service on a shared store
	Version     string
	Standby     bool

	Metadata *structpb.Struct // as it came; not to be changed
}

const (
	// MetadataKey is where endpoints carry the metadata of their sidecar.
	MetadataKey = "txmesh"
	// AcceptanceKey is where they carry, for other replicas, how their sidecar has taken the policies.
	AcceptanceKey = "txmesh.acceptance"
)

var (
	ownerForm   = regexp.MustCompile(`^[0-9A-Za-z]{1,64}$`)
	serviceForm = regexp.MustCompile(`^[a-z0-9]([-a-z0-9]{0,61}[a-z0-9])?/[a-z0-9]([-a-z0-9]{0,61}[a-z0-9])?$`)
)

// Of reads the node of a sidecar's first request. All that depends on it is checked here.
func Of(n *core.Node) (Node, error) {
	out, err := FromMetadata(n.GetMetadata())
	if err != nil {
		return Node{}, err
	}
	if n.GetId() != out.Owner+"/"+out.Incarnation {
		return Node{}, fmt.Errorf("node id %q is not its owner and incarnation, %s/%s", n.GetId(), out.Owner, out.Incarnation)
	}
	if n.GetCluster() != out.Service {
		return Node{}, fmt.Errorf("node cluster %q is not its service, %s", n.GetCluster(), out.Service)
	}
	return out, nil
}

// FromMetadata reads the metadata that a sidecar sends and endpoints carry.
func FromMetadata(s *structpb.Struct) (Node, error) {
	text := func(key string) string { return s.GetFields()[key].GetStringValue() }
	out := Node{Owner: text("owner"), Incarnation: text("incarnation"), Service: text("service"), Inbound: text("inbound"),
		Peer: text("peer"), Home: text("home"), Version: text("version"), Standby: s.GetFields()["standby"].GetBoolValue(), Metadata: s}
	switch {
	case !ownerForm.MatchString(out.Owner):
		return Node{}, fmt.Errorf("node metadata owner %q is not an owner's id", out.Owner)
	case out.Incarnation == "" || strings.ContainsAny(out.Incarnation, "/ "):
		return Node{}, fmt.Errorf("node metadata incarnation %q is not one", out.Incarnation)
	case !serviceForm.MatchString(out.Service):
		return Node{}, fmt.Errorf("node metadata service %q is not namespace/name", out.Service)
	case out.Home != "" && out.Home != out.Owner && out.Home != "~"+out.Service:
		return Node{}, fmt.Errorf("node metadata home %q is neither its owner, %s, nor its service's, ~%s", out.Home, out.Owner, out.Service)
	}
	if id := text("spiffe"); policies.ServiceOf(id) != "" && policies.ServiceOf(id) != out.Service {
		return Node{}, fmt.Errorf("node metadata spiffe %q is of service %s, but its service is %s: set service to that of the certificate", id, policies.ServiceOf(id), out.Service)
	}
	for _, a := range []struct{ key, value string }{{"inbound", out.Inbound}, {"peer", out.Peer}} {
		if _, _, err := splitAddress(a.value); a.value != "" && err != nil {
			return Node{}, fmt.Errorf("node metadata %s %q is not host:port", a.key, a.value)
		}
	}
	if out.Inbound == "" && out.Peer == "" {
		return Node{}, fmt.Errorf("node metadata of owner %s names neither inbound nor peer", out.Owner)
	}
	return out, nil
}

func splitAddress(a string) (host string, port uint32, err error) {
	host, p, err := net.SplitHostPort(a)
	if err != nil {
		return "", 0, err
	}
	n, err := strconv.ParseUint(p, 10, 16) // names of ports are each machine's own
	if err == nil && (host == "" || n == 0) {
		err = fmt.Errorf("address %s has no host or no port", a)
	}
	return host, uint32(n), err
}

func (n Node) equal(m Node) bool {
	return n.Owner == m.Owner && proto.Equal(n.Metadata, m.Metadata)
}

// shared reports whether its journal can be adopted: it lies on a shared store.
func (n Node) shared() bool { return strings.HasPrefix(n.Home, "~") }
