package xds

import (
	"context"
	"strconv"

	core "github.com/envoyproxy/go-control-plane/envoy/config/core/v3"
	discovery "github.com/envoyproxy/go-control-plane/envoy/service/discovery/v3"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
)

// typesMax is how many types a stream may name. The server's channel of responses has room for two of each of ten: with
// more, a client that does not read would block everybody's updates.
const typesMax = 10

// ReplicaCluster is the cluster of the node of another replica. It is no service's name; where there are certificates
// they say who is one.
const ReplicaCluster = "controlplane"

// stream is one open stream. Its fields are guarded by Server.mu.
type stream struct {
	delta  bool
	caller Caller
	node   *core.Node // as the first request had it, with our scope; nil: none has come
	joined bool       // it is a sidecar's
	frozen bool       // and was told of as such
	types  map[string]*answer
	acceptance
}

// observer is what the Server learns from the library. Its methods run on the streams' goroutines; only the first
// request of a stream has a node, and that of the delta protocol is filled in after we have seen it.
type observer Server

func deltaID(id int64) string { return "delta " + strconv.FormatInt(id, 10) }
func sotwID(id int64) string  { return "sotw " + strconv.FormatInt(id, 10) }

// OnDeltaStreamOpen implements delta.Callbacks.
func (o *observer) OnDeltaStreamOpen(ctx context.Context, id int64, _ string) error {
	return (*Server)(o).open(ctx, deltaID(id), true)
}

// OnStreamOpen implements sotw.Callbacks.
func (o *observer) OnStreamOpen(ctx context.Context, id int64, _ string) error {
	return (*Server)(o).open(ctx, sotwID(id), false)
}

func (s *Server) open(ctx context.Context, id string, delta bool) error {
	caller, err := s.opt.Authenticate(ctx)
	if err != nil {
		return s.refuse(CauseUnknown, codes.Unauthenticated, "%v", err)
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	s.streams[id] = &stream{delta: delta, caller: caller, types: map[string]*answer{}}
	return nil
}

func (s *Server) refuse(cause Cause, code codes.Code, format string, args ...any) error {
	err := status.Errorf(code, format, args...)
	s.opt.Refused(cause)
	s.opt.Log.Warn("stream refused", "cause", string(cause), "error", status.Convert(err).Message())
	return err
}

// OnDeltaStreamClosed implements delta.Callbacks.
func (o *observer) OnDeltaStreamClosed(id int64, _ *core.Node) { (*Server)(o).close(deltaID(id)) }

// OnStreamClosed implements sotw.Callbacks.
func (o *observer) OnStreamClosed(id int64, _ *core.Node) { (*Server)(o).close(sotwID(id)) }

func (s *Server) close(id string) {
	s.mu.Lock()
	x := s.streams[id]
	delete(s.streams, id)
	joined := x != nil && x.joined
	if joined {
		s.sidecars--
	}
	s.mu.Unlock()
	if joined {
		s.opt.Left(id, x.node)
	}
}

// OnStreamDeltaRequest implements delta.Callbacks.
func (o *observer) OnStreamDeltaRequest(id int64, r *discovery.DeltaDiscoveryRequest) error {
	s := (*Server)(o)
	node, err := s.claim(deltaID(id), r.GetNode(), r.GetTypeUrl())
	if err != nil {
		return err
	}
	r.Node = node
	s.answered(deltaID(id), r.GetTypeUrl(), r.GetResponseNonce(), r.GetErrorDetail())
	return nil
}

// OnStreamRequest implements sotw.Callbacks.
func (o *observer) OnStreamRequest(id int64, r *discovery.DiscoveryRequest) error {
	s := (*Server)(o)
	node, err := s.claim(sotwID(id), r.GetNode(), r.GetTypeUrl())
	if err != nil {
		return err
	}
	r.Node = node
	if r.GetErrorDetail() != nil && r.GetVersionInfo() == "" {
		// Without a version the cache would send the same again, for ever.
		r.VersionInfo = s.caches.prefix
	}
	s.answered(sotwID(id), r.GetTypeUrl(), r.GetResponseNonce(), r.GetErrorDetail())
	return nil
}

// claim checks who a stream is, once, and returns the node that all its requests have from then on.
func (s *Server) claim(id string, node *core.Node, typ string) (*core.Node, error) {
	s.mu.Lock()
	x := s.streams[id]
	first := x.node == nil
	if _, ok := x.types[typ]; !ok {
		x.types[typ] = &answer{}
	}
	types := len(x.types)
	s.mu.Unlock()
	switch {
	case types > typesMax:
		return nil, s.refuse(CauseTypes, codes.InvalidArgument, "stream asks for more than %d types", typesMax)
	case first && node == nil:
		return nil, s.refuse(CauseNode, codes.InvalidArgument, "the first request of the stream has no node")
	case first:
		return node, s.identify(id, x, node)
	case node != nil && (node.GetId() != x.node.GetId() || node.GetCluster() != x.node.GetCluster()):
		return nil, s.refuse(CauseNode, codes.InvalidArgument, "node %s of cluster %s became %s of %s within a stream",
			x.node.GetId(), x.node.GetCluster(), node.GetId(), node.GetCluster())
	}
	return x.node, nil
}

// identify compares the first node with the certificate. Sidecars speak delta; who speaks the other protocol is an
// application's own client, which is nobody's endpoint and may leave its cluster empty.
func (s *Server) identify(id string, x *stream, node *core.Node) error {
	cluster := node.GetCluster()
	replica := x.caller.Replica || !x.caller.Known && cluster == ReplicaCluster
	sidecar := x.delta && !replica
	if x.caller.Known && !replica && cluster != x.caller.Service && (sidecar || cluster != "") {
		return s.refuse(CauseMismatch, codes.PermissionDenied, "node says that it is of %s, its certificate is of %s", cluster, x.caller.Service)
	}
	node.UserAgentName = scopeAnonymous
	switch {
	case replica:
		node.UserAgentName = scopeReplica
	case x.caller.Known:
		node.UserAgentName = scopeMember
	}
	s.mu.Lock()
	x.node, x.joined = node, sidecar
	if sidecar {
		s.sidecars++
	}
	s.mu.Unlock()
	if !sidecar {
		return nil
	}
	if err := s.opt.Joined(id, node); err != nil {
		s.mu.Lock()
		x.joined = false
		s.sidecars--
		s.mu.Unlock()
		return s.refuse(CauseNode, codes.InvalidArgument, "%v", err)
	}
	return nil
}
