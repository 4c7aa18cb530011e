// Package replica follows the other replicas of the control plane: by the protocol that sidecars speak, it learns which
// sidecars each of them has. What it learns it passes on, and it hands out nothing. Start at Follow.
package replica

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"time"

	core "github.com/envoyproxy/go-control-plane/envoy/config/core/v3"
	endpoint "github.com/envoyproxy/go-control-plane/envoy/config/endpoint/v3"
	discovery "github.com/envoyproxy/go-control-plane/envoy/service/discovery/v3"
	"github.com/envoyproxy/go-control-plane/pkg/resource/v3"
	rpc "google.golang.org/genproto/googleapis/rpc/status"
	"google.golang.org/grpc"
	"google.golang.org/grpc/backoff"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials"
	"google.golang.org/grpc/keepalive"
)

// Follower is one other replica.
type Follower struct {
	Address string                                               // host:port
	Node    *core.Node                                           // by which the other replica knows this one
	Creds   func() (credentials.TransportCredentials, error)     // for each connection
	Changed func(all map[string]*endpoint.ClusterLoadAssignment) // what the other replica has, all of it
	State   func(err error)                                      // the connection: nil, it stands
}

const (
	pauseMin   = 50 * time.Millisecond
	pauseMax   = 5 * time.Second
	connectMax = 3 * time.Second
	messageMax = 64 << 20
)

// Follow keeps a stream to the other replica until ctx ends. When the stream breaks, what was learned stays for hold, so
// that its sidecars have time to come to us; then the replica has nothing.
func (f Follower) Follow(ctx context.Context, hold time.Duration) {
	var broken time.Time
	for pause := pauseMin; ; pause = min(2*pause, pauseMax) {
		err := f.stream(ctx, func() { pause, broken = pauseMin, time.Time{} })
		if ctx.Err() != nil {
			return
		}
		f.State(err)
		now := time.Now()
		if broken.IsZero() {
			broken = now
		}
		if now.Sub(broken) >= hold {
			f.Changed(nil)
		}
		select {
		case <-ctx.Done():
			return
		case <-time.After(time.Duration((0.5 + 0.5*rand.Float64()) * float64(pause))):
		}
	}
}

// stream runs one stream. It always returns an error.
func (f Follower) stream(ctx context.Context, stands func()) error {
	creds, err := f.Creds()
	if err != nil {
		return err
	}
	conn, err := grpc.NewClient("passthrough:///"+f.Address, grpc.WithTransportCredentials(creds),
		grpc.WithConnectParams(grpc.ConnectParams{Backoff: backoff.DefaultConfig, MinConnectTimeout: connectMax}),
		grpc.WithDefaultCallOptions(grpc.MaxCallRecvMsgSize(messageMax)),
		grpc.WithKeepaliveParams(keepalive.ClientParameters{Time: 30 * time.Second, Timeout: 10 * time.Second}))
	if err != nil {
		return fmt.Errorf("replica %s: %w", f.Address, err)
	}
	defer func() { _ = conn.Close() }() // the stream has ended
	s, err := discovery.NewAggregatedDiscoveryServiceClient(conn).DeltaAggregatedResources(ctx)
	if err != nil {
		return fmt.Errorf("replica %s: %w", f.Address, err)
	}
	first := &discovery.DeltaDiscoveryRequest{Node: f.Node, TypeUrl: resource.EndpointType, ResourceNamesSubscribe: []string{"*"}}
	if err := s.Send(first); err != nil {
		return fmt.Errorf("replica %s: %w", f.Address, err)
	}
	all := map[string]*endpoint.ClusterLoadAssignment{}
	for {
		res, err := s.Recv()
		if err != nil {
			return fmt.Errorf("replica %s: %w", f.Address, err)
		}
		stands()
		f.State(nil)
		nack := apply(all, res)
		f.Changed(all)
		ack := &discovery.DeltaDiscoveryRequest{TypeUrl: resource.EndpointType, ResponseNonce: res.GetNonce()}
		if nack != nil {
			ack.ErrorDetail = status(nack)
		}
		if err := s.Send(ack); err != nil {
			return fmt.Errorf("replica %s: %w", f.Address, err)
		}
	}
}

// apply takes in what is sound of a response.
func apply(all map[string]*endpoint.ClusterLoadAssignment, res *discovery.DeltaDiscoveryResponse) error {
	var wrong []error
	for _, r := range res.GetResources() {
		a := &endpoint.ClusterLoadAssignment{}
		if err := r.GetResource().UnmarshalTo(a); err != nil {
			wrong = append(wrong, fmt.Errorf("%s: %w", r.GetName(), err))
			continue
		}
		all[r.GetName()] = a
	}
	for _, name := range res.GetRemovedResources() {
		delete(all, name)
	}
	return errors.Join(wrong...)
}

func status(err error) *rpc.Status {
	return &rpc.Status{Code: int32(codes.InvalidArgument), Message: err.Error()}
}
