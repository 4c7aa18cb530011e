package controlplane

import (
	"context"
	"crypto/rand"
	"encoding/hex"
	"errors"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"time"

	core "github.com/envoyproxy/go-control-plane/envoy/config/core/v3"
	endpoint "github.com/envoyproxy/go-control-plane/envoy/config/endpoint/v3"
	"google.golang.org/grpc/credentials"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/peer"
	"google.golang.org/protobuf/types/known/structpb"

	"txmesh/controlplane/directory"
	"txmesh/controlplane/keep"
	"txmesh/controlplane/replica"
	"txmesh/controlplane/xds"
)

// connected is a sidecar with a stream to this replica, the newest of its streams.
type connected struct {
	stream string
	node   directory.Node
}

// other is another replica as this one sees it.
type other struct {
	connected bool
	err       error
	nodes     []directory.Node
	states    map[string]*structpb.Struct // acceptance by owner
}

// authenticate says who opens a stream. Without TLS everybody is nobody.
func (c *ControlPlane) authenticate(ctx context.Context) (xds.Caller, error) {
	if c.cfg.Insecure {
		return xds.Caller{}, nil
	}
	p, ok := peer.FromContext(ctx)
	if !ok {
		return xds.Caller{}, errors.New("the stream comes from nowhere")
	}
	info, ok := p.AuthInfo.(credentials.TLSInfo)
	if !ok {
		return xds.Caller{}, fmt.Errorf("the connection of %v has no TLS", p.Addr)
	}
	service, other, err := c.authority.Caller(&info.State)
	if err != nil {
		return xds.Caller{}, fmt.Errorf("stream of %v: %w; get a certificate with POST /v1/certificates first", p.Addr, err)
	}
	return xds.Caller{Known: true, Service: service, Replica: other}, nil
}

func (c *ControlPlane) joined(stream string, n *core.Node) error {
	node, err := directory.Of(n)
	if err != nil {
		return err
	}
	c.mu.Lock()
	was, again := c.here[node.Owner]
	c.here[node.Owner] = connected{stream: stream, node: node}
	c.mu.Unlock()
	if again && was.node.Incarnation != node.Incarnation && was.node.Inbound != node.Inbound {
		c.log.Error("two sidecars have the same owner id: their stores are copies of one, end one of them and empty its data-dir",
			"owner", node.Owner, "one", was.node.Inbound, "other", node.Inbound)
	}
	c.directory.Join(time.Now(), directory.Here(stream), node)
	c.log.Info("sidecar connected", "owner", node.Owner, "service", node.Service, "inbound", node.Inbound)
	c.outdate(n)
	return nil
}

func (c *ControlPlane) left(stream string, n *core.Node) {
	owner, _, _ := strings.Cut(n.GetId(), "/")
	c.mu.Lock()
	if c.here[owner].stream == stream {
		delete(c.here, owner)
	}
	c.mu.Unlock()
	c.directory.Leave(time.Now(), directory.Here(stream), owner)
	c.log.Info("sidecar gone", "owner", owner)
	c.outdate(n)
}

// follow learns from the other replicas which sidecars they have.
func (c *ControlPlane) follow(ctx context.Context, running *sync.WaitGroup) {
	for _, address := range c.cfg.Replicas {
		f := replica.Follower{Address: address, Node: &core.Node{Id: c.cfg.Name, Cluster: xds.ReplicaCluster},
			Creds:   func() (credentials.TransportCredentials, error) { return c.clientCredentials(address) },
			Changed: func(all map[string]*endpoint.ClusterLoadAssignment) { c.heard(address, all) },
			State:   func(err error) { c.setOther(address, err) }}
		running.Go(func() { f.Follow(ctx, c.cfg.Grace) })
	}
}

func (c *ControlPlane) clientCredentials(address string) (credentials.TransportCredentials, error) {
	if c.cfg.Insecure {
		return insecure.NewCredentials(), nil
	}
	host, _, err := net.SplitHostPort(address)
	if err != nil {
		return nil, fmt.Errorf("replicas: %w", err)
	}
	config, err := c.authority.ClientTLS(host)
	if err != nil {
		return nil, err
	}
	return credentials.NewTLS(config), nil
}

// heard takes in all sidecars that another replica has.
func (c *ControlPlane) heard(address string, all map[string]*endpoint.ClusterLoadAssignment) {
	var nodes []directory.Node
	states := map[string]*structpb.Struct{}
	for _, a := range all {
		for _, l := range a.GetEndpoints() {
			for _, e := range l.GetLbEndpoints() {
				meta := e.GetMetadata().GetFilterMetadata()
				n, err := directory.FromMetadata(meta[directory.MetadataKey])
				if err != nil {
					c.log.Warn("sidecar of another replica not understood", "replica", address, "error", err)
					continue
				}
				nodes, states[n.Owner] = append(nodes, n), meta[directory.AcceptanceKey]
			}
		}
	}
	c.mu.Lock()
	o := c.others[address]
	o.nodes, o.states, c.recount = nodes, states, true
	c.mu.Unlock()
	c.directory.Replace(time.Now(), address, nodes)
	c.wake()
}

func (c *ControlPlane) setOther(address string, err error) {
	c.mu.Lock()
	o := c.others[address]
	was := o.connected
	o.connected, o.err = err == nil, err
	c.recount = c.recount || o.connected != was
	c.mu.Unlock()
	switch {
	case err == nil && !was:
		c.log.Info("replica connected", "replica", address)
	case err != nil && was:
		c.log.Warn("replica lost", "replica", address, "error", err)
	}
}

// token returns the token of the status; it is made unless there is one.
func (c *ControlPlane) token() (string, error) {
	c.tokenFile = c.cfg.TokenFile
	if c.tokenFile == "" {
		c.tokenFile = filepath.Join(c.cfg.DataDir, "api-token")
		raw := make([]byte, 32)
		rand.Read(raw) // never fails
		if _, err := keep.Once(c.tokenFile, []byte(hex.EncodeToString(raw)+"\n")); err != nil {
			return "", err
		}
	}
	return readSecret(c.tokenFile)
}

const secretLengthMin = 16

func readSecret(path string) (string, error) {
	data, err := os.ReadFile(path)
	if err != nil {
		return "", err
	}
	text := strings.TrimSpace(string(data))
	if len(text) < secretLengthMin {
		return "", fmt.Errorf("%s holds fewer than %d characters: make one with `openssl rand -hex 32`", path, secretLengthMin)
	}
	return text, nil
}
