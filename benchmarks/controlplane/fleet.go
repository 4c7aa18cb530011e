package main

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"sync"
	"time"

	core "github.com/envoyproxy/go-control-plane/envoy/config/core/v3"
	discovery "github.com/envoyproxy/go-control-plane/envoy/service/discovery/v3"
	"github.com/envoyproxy/go-control-plane/pkg/resource/v3"
	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials"
	"google.golang.org/protobuf/types/known/structpb"
)

// fleet is all simulated sidecars.
type fleet struct {
	all  []*sidecar
	stop context.CancelFunc

	mu      sync.Mutex // guards the sidecars' counts, changed, answered and failed
	changed *sync.Cond
	lastAck time.Time // of policies
	failed  error
}

// sidecar is one stream that answers everything.
type sidecar struct {
	conn     *grpc.ClientConn
	policies int            // documents that have come
	peers    map[string]int // how many each service has
	mark     []byte         // of the newest version of the policy that changes
}

// connectAtOnce keeps the queue of the kernel from overflowing.
const connectAtOnce = 32

func (p *plane) fleet(ctx context.Context, o options) (*fleet, error) {
	ctx, stop := context.WithCancel(ctx)
	f := &fleet{all: make([]*sidecar, o.sidecars), stop: stop}
	f.changed = sync.NewCond(&f.mu)
	configs := make([]credentials.TransportCredentials, o.services)
	for n := range configs {
		c, err := p.join(ctx, service(n))
		if err != nil {
			return nil, err
		}
		configs[n] = credentials.NewTLS(c)
	}
	turns := make(chan struct{}, connectAtOnce)
	var joining sync.WaitGroup
	errs := make([]error, o.sidecars)
	for n := range f.all {
		turns <- struct{}{}
		joining.Go(func() {
			defer func() { <-turns }()
			f.all[n], errs[n] = f.open(ctx, p.ready.Listen, configs[n%o.services], node(n, service(n%o.services)))
		})
	}
	joining.Wait()
	return f, errors.Join(errs...)
}

// known is how many peers a sidecar knows.
func (s *sidecar) known() (n int) {
	for _, of := range s.peers {
		n += of
	}
	return n
}

const ownerPrefix = "BENCH"

func node(n int, service string) *core.Node {
	owner := fmt.Sprintf("%s%08d", ownerPrefix, n)
	inbound := fmt.Sprintf("10.%d.%d.%d:15806", n>>16&255, n>>8&255, n&255)
	text := structpb.NewStringValue
	return &core.Node{Id: owner + "/01HZX5N3V7T4Q8", Cluster: service, Metadata: &structpb.Struct{Fields: map[string]*structpb.Value{
		"owner": text(owner), "incarnation": text("01HZX5N3V7T4Q8"), "service": text(service), "inbound": text(inbound), "peer": text(inbound),
		"home": text(owner), "version": text("benchmark"), "standby": structpb.NewBoolValue(false)}}}
}

func (f *fleet) open(ctx context.Context, address string, creds credentials.TransportCredentials, n *core.Node) (*sidecar, error) {
	conn, err := grpc.NewClient("passthrough:///"+address, grpc.WithTransportCredentials(creds), grpc.WithReadBufferSize(4<<10),
		grpc.WithWriteBufferSize(4<<10), grpc.WithDefaultCallOptions(grpc.MaxCallRecvMsgSize(64<<20)))
	if err != nil {
		return nil, err
	}
	stream, err := discovery.NewAggregatedDiscoveryServiceClient(conn).DeltaAggregatedResources(ctx)
	if err != nil {
		return nil, errors.Join(fmt.Errorf("open a stream: %w", err), conn.Close())
	}
	for _, typ := range []string{resource.ExtensionConfigType, resource.EndpointType, resource.SecretType, resource.RuntimeType} {
		if err := stream.Send(&discovery.DeltaDiscoveryRequest{Node: n, TypeUrl: typ, ResourceNamesSubscribe: []string{"*"}}); err != nil {
			return nil, errors.Join(fmt.Errorf("subscribe: %w", err), conn.Close())
		}
		n = nil
	}
	s := &sidecar{conn: conn, peers: map[string]int{}}
	go f.answer(ctx, s, stream)
	return s, nil
}

// answer acknowledges whatever comes until the stream ends.
func (f *fleet) answer(ctx context.Context, s *sidecar, stream discovery.AggregatedDiscoveryService_DeltaAggregatedResourcesClient) {
	for {
		res, err := stream.Recv()
		if err == nil {
			err = stream.Send(&discovery.DeltaDiscoveryRequest{TypeUrl: res.GetTypeUrl(), ResponseNonce: res.GetNonce()})
		}
		f.mu.Lock()
		if err != nil {
			if ctx.Err() == nil {
				f.failed = fmt.Errorf("a stream ended: %w", err)
			}
			f.changed.Broadcast()
			f.mu.Unlock()
			return
		}
		f.note(s, res)
		f.mu.Unlock()
	}
}

// note is called with mu held.
func (f *fleet) note(s *sidecar, res *discovery.DeltaDiscoveryResponse) {
	switch res.GetTypeUrl() {
	case resource.EndpointType:
		for _, r := range res.GetResources() {
			s.peers[r.GetName()] = bytes.Count(r.GetResource().GetValue(), []byte(ownerPrefix)) / 2 // as owner and as home
		}
	case resource.ExtensionConfigType:
		s.policies += len(res.GetResources())
		for _, r := range res.GetResources() {
			if r.GetName() != "bench/p-0" {
				continue
			}
			_, rest, _ := bytes.Cut(r.GetResource().GetValue(), []byte("# "))
			s.mark, _, _ = bytes.Cut(rest, []byte("\n"))
		}
		f.lastAck = time.Now()
	}
	f.changed.Broadcast()
}

// wait returns when every sidecar is as wanted.
func (f *fleet) wait(ctx context.Context, most time.Duration, what string, wanted func(*sidecar) bool) error {
	ctx, cancel := context.WithTimeout(ctx, most)
	defer cancel()
	defer context.AfterFunc(ctx, f.changed.Broadcast)()
	f.mu.Lock()
	defer f.mu.Unlock()
	for next := 0; ; {
		if f.failed != nil {
			return f.failed
		}
		for next < len(f.all) && wanted(f.all[next]) {
			next++
		}
		if next == len(f.all) {
			return nil
		}
		if ctx.Err() != nil {
			return fmt.Errorf("%s: %d sidecars and perhaps more have not got it within %v", what, len(f.all)-next, most)
		}
		f.changed.Wait()
	}
}

func (f *fleet) last() time.Time {
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.lastAck
}

func (f *fleet) close() {
	f.stop()
	for _, s := range f.all {
		_ = s.conn.Close() // the process ends
	}
}
