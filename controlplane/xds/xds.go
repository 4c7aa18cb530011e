// Package xds hands configuration to sidecars over delta ADS, and to gRPC's own clients over state-of-the-world ADS. It
// keeps one collection per type, the same for all who may see it, and knows of each stream what was sent, accepted and
// refused. It never decides what is handed out: the setters are told. Start at Server; caches.go has what is served,
// streams.go who is served, acceptance.go how it is taken.
package xds

import (
	"context"
	"crypto/rand"
	"fmt"
	"log/slog"
	"net"
	"sync"
	"sync/atomic"
	"time"

	core "github.com/envoyproxy/go-control-plane/envoy/config/core/v3"
	discovery "github.com/envoyproxy/go-control-plane/envoy/service/discovery/v3"
	"github.com/envoyproxy/go-control-plane/pkg/cache/v3"
	"github.com/envoyproxy/go-control-plane/pkg/resource/v3"
	"github.com/envoyproxy/go-control-plane/pkg/server/config"
	"github.com/envoyproxy/go-control-plane/pkg/server/delta/v3"
	"github.com/envoyproxy/go-control-plane/pkg/server/sotw/v3"
	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials"
	"google.golang.org/grpc/keepalive"
)

// Caller is whom a stream has proved to come from.
type Caller struct {
	Known   bool   // it has shown a certificate
	Service string // of a sidecar
	Replica bool   // it is another replica of the control plane
}

// Options is what a Server is made of. The hooks run on the streams' goroutines: they must not block.
type Options struct {
	Credentials  credentials.TransportCredentials
	Authenticate func(ctx context.Context) (Caller, error) // of a new stream; an error refuses it
	Joined       func(stream string, n *core.Node) error   // a sidecar has said who it is; an error refuses the stream
	Left         func(stream string, n *core.Node)         // called once for each stream that joined
	Changed      func(n *core.Node)                        // the Acceptance of a sidecar may be another
	Answered     func(policies, accepted bool)             // an ACK or NACK has come
	Refused      func(cause Cause)                         // a stream was refused
	Beat         time.Duration                             // between heartbeats
	Now          func() time.Time
	Log          *slog.Logger
}

// Cause is why a stream was refused.
type Cause string

// The causes, a closed set: it tags a metric.
const (
	CauseUnknown  Cause = "certificate" // none, or not one that names a service
	CauseMismatch Cause = "mismatch"    // the node is not what the certificate says
	CauseNode     Cause = "node"        // the node cannot be read
	CauseTypes    Cause = "types"       // more types than a stream may have
)

// Server serves both protocols. It is safe for many goroutines.
type Server struct {
	opt    Options
	grpc   *grpc.Server
	cancel context.CancelFunc
	caches caches

	mu       sync.Mutex // guards all below
	streams  map[string]*stream
	sidecars int               // how many of them have joined
	look     time.Time         // when one of them may have frozen; zero: none owes an answer
	sets     map[string]string // version of the policies' cache -> version of the set
	policies string            // version of the set in force
}

// What keeps the memory of a stream small, of which there are thousands; messages are small but for the first ones.
const (
	bufferBytes    = 4 << 10
	requestMax     = 4 << 20
	largeBytes     = 16 << 10 // of a response that waits for its turn
	largeAtOnce    = 16
	largeTurn      = time.Second // a client that does not read loses its turn
	keepaliveTime  = 30 * time.Second
	keepaliveReply = 10 * time.Second
	pingsMin       = 10 * time.Second
)

// New returns a Server that hands out nothing yet: policies wait for SetPolicies, and what clients hold already is not
// taken from them before Settle.
func New(opt Options) *Server {
	ctx, cancel := context.WithCancel(context.Background())
	s := &Server{opt: opt, cancel: cancel, caches: newCaches(rand.Text()[:8]+".", opt.Log), streams: map[string]*stream{}, sets: map[string]string{}}
	turns := make(chan struct{}, largeAtOnce)
	s.grpc = grpc.NewServer(grpc.Creds(opt.Credentials), grpc.MaxRecvMsgSize(requestMax),
		grpc.ReadBufferSize(0), grpc.WriteBufferSize(bufferBytes), grpc.ForceServerCodecV2(codec{}),
		grpc.KeepaliveParams(keepalive.ServerParameters{Time: keepaliveTime, Timeout: keepaliveReply}),
		grpc.KeepaliveEnforcementPolicy(keepalive.EnforcementPolicy{MinTime: pingsMin, PermitWithoutStream: true}),
		grpc.StreamInterceptor(func(srv any, ss grpc.ServerStream, _ *grpc.StreamServerInfo, next grpc.StreamHandler) error {
			return next(srv, &inTurn{ServerStream: ss, turns: turns})
		}))
	discovery.RegisterAggregatedDiscoveryServiceServer(s.grpc, newADS(ctx, s.caches.mux(), (*observer)(s)))
	return s
}

// ads is the two protocols behind the one service.
type ads struct {
	discovery.UnimplementedAggregatedDiscoveryServiceServer
	delta delta.Server
	sotw  sotw.Server
}

func newADS(ctx context.Context, c cache.Cache, o *observer) ads {
	explicit := config.DeactivateLegacyWildcard()
	return ads{delta: delta.NewServer(ctx, c, o, explicit), sotw: sotw.NewServer(ctx, c, o, explicit, sotw.WithOrderedADS())}
}

// DeltaAggregatedResources implements the service.
func (a ads) DeltaAggregatedResources(s discovery.AggregatedDiscoveryService_DeltaAggregatedResourcesServer) error {
	return a.delta.DeltaStreamHandler(s, resource.AnyType)
}

// StreamAggregatedResources implements the service.
func (a ads) StreamAggregatedResources(s discovery.AggregatedDiscoveryService_StreamAggregatedResourcesServer) error {
	return a.sotw.StreamHandler(s, resource.AnyType)
}

// Serve answers connections until Close.
func (s *Server) Serve(l net.Listener) error {
	if err := s.grpc.Serve(l); err != nil {
		return fmt.Errorf("serve xDS: %w", err)
	}
	return nil
}

// Close ends all streams.
func (s *Server) Close() {
	s.cancel()
	s.grpc.Stop()
}

// inTurn bounds how many large responses are under way at once: when thousands of streams are due for one, the encoded
// bytes would be many times what is handed out. The transport takes a response whole and sends it as the client reads,
// so a turn ends when the client has said something since, which is its answer, or after largeTurn.
type inTurn struct {
	grpc.ServerStream
	turns chan struct{}
	over  atomic.Pointer[func()] // ends the turn of the last large response
}

// SendMsg implements grpc.ServerStream.
func (t *inTurn) SendMsg(m any) error {
	if r, ok := m.(*discovery.DeltaDiscoveryResponse); !ok || !large(r) {
		return t.ServerStream.SendMsg(m)
	}
	t.end()
	select {
	case t.turns <- struct{}{}:
	case <-t.Context().Done():
		return t.Context().Err()
	}
	over := sync.OnceFunc(func() { <-t.turns })
	t.over.Store(&over)
	time.AfterFunc(largeTurn, over)
	return t.ServerStream.SendMsg(m)
}

// RecvMsg implements grpc.ServerStream.
func (t *inTurn) RecvMsg(m any) error {
	err := t.ServerStream.RecvMsg(m)
	t.end()
	return err
}

func (t *inTurn) end() {
	if over := t.over.Swap(nil); over != nil {
		(*over)()
	}
}

func large(r *discovery.DeltaDiscoveryResponse) bool {
	n := 0
	for _, x := range r.GetResources() {
		n += len(x.GetResource().GetValue())
	}
	return n > largeBytes
}
