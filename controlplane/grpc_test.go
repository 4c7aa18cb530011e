package controlplane

import (
	"context"
	"fmt"
	"maps"
	"net"
	"slices"
	"testing"
	"time"

	"github.com/envoyproxy/go-control-plane/pkg/resource/v3"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/health"
	healthpb "google.golang.org/grpc/health/grpc_health_v1"
	"google.golang.org/grpc/peer"
	"google.golang.org/grpc/status"
	"google.golang.org/grpc/xds"
)

// backend is a real gRPC server, as an application behind a sidecar is.
func backend(t *testing.T) string {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	s := grpc.NewServer()
	healthpb.RegisterHealthServer(s, health.NewServer())
	go func() { _ = s.Serve(l) }() // until Stop
	t.Cleanup(s.Stop)
	return l.Addr().String()
}

// xdsClient is gRPC's own client of xDS, which knows nothing of us.
func xdsClient(t *testing.T, p *plane, service string) healthpb.HealthClient {
	t.Helper()
	bootstrap := fmt.Sprintf(`{"xds_servers": [{"server_uri": %q, "channel_creds": [{"type": "insecure"}], "server_features": ["xds_v3"]}],
		"node": {"id": "app-of-%s"}}`, p.Listen, t.Name())
	resolver, err := xds.NewXDSResolverWithConfigForTesting([]byte(bootstrap))
	if err != nil {
		t.Fatal(err)
	}
	conn, err := grpc.NewClient("xds:///"+service, grpc.WithTransportCredentials(insecure.NewCredentials()), grpc.WithResolvers(resolver))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = conn.Close() }) // every call has its answer
	return healthpb.NewHealthClient(conn)
}

// hits makes calls and counts who answered.
func hits(t *testing.T, c healthpb.HealthClient, calls int) map[string]int {
	t.Helper()
	out := map[string]int{}
	for range calls {
		ctx, cancel := context.WithTimeout(t.Context(), 5*time.Second)
		var from peer.Peer
		_, err := c.Check(ctx, &healthpb.HealthCheckRequest{}, grpc.Peer(&from), grpc.WaitForReady(true))
		cancel()
		if err != nil {
			t.Fatalf("call: %v", err)
		}
		out[from.Addr.String()]++
	}
	return out
}

func keysOf(m map[string]int) []string { return slices.Sorted(maps.Keys(m)) }

func TestClientsOfGRPCBalanceOverTheSidecars(t *testing.T) {
	p := start(t, inSecure)
	one, two, standby := backend(t), backend(t), backend(t)
	a, b := p.sidecar("A", "bank/accounts", one, nil), p.sidecar("B", "bank/accounts", two, nil)
	c := p.sidecar("C", "bank/accounts", standby, map[string]any{"standby": true})
	a.Subscribe(resource.EndpointType, "*")
	b.Subscribe(resource.EndpointType, "*")
	c.Subscribe(resource.EndpointType, "*")
	untilOwners(t, a, "bank/accounts", "A", "B", "C")

	client := xdsClient(t, p, "bank/accounts")
	both := []string{one, two}
	slices.Sort(both)
	until(t, "both are connected", func() bool { return len(hits(t, client, 4)) == 2 })
	if got := hits(t, client, 100); !slices.Equal(keysOf(got), both) || got[one] < 40 || got[two] < 40 {
		t.Errorf("100 calls went to %v, want both of %v alike and never the stand-by", got, both)
	}
	b.Close()
	until(t, "the one that left is dropped", func() bool { return slices.Equal(keysOf(hits(t, client, 4)), []string{one}) })
	if got := hits(t, client, 50); got[one] != 50 {
		t.Errorf("50 calls went to %v, want all to %s", got, one)
	}
	back := p.sidecar("B", "bank/accounts", two, nil)
	back.Subscribe(resource.EndpointType, "*")
	until(t, "the one that came back is used", func() bool { return len(hits(t, client, 4)) == 2 })

	a.Close()
	back.Close()
	until(t, "a service without sidecars fails at once", func() bool {
		_, err := client.Check(t.Context(), &healthpb.HealthCheckRequest{})
		return status.Code(err) == codes.Unavailable
	})
}

func TestClientOfGRPCThatComesFirstFindsTheServiceLater(t *testing.T) {
	p := start(t, inSecure)
	client := xdsClient(t, p, "bank/later")
	answer := make(chan error, 1)
	go func() {
		ctx, cancel := context.WithTimeout(t.Context(), 10*time.Second) // less than its patience with names that nobody knows
		defer cancel()
		_, err := client.Check(ctx, &healthpb.HealthCheckRequest{}, grpc.WaitForReady(true))
		answer <- err
	}()
	until(t, "the client has asked", func() bool { _, others := p.plane.xds.Streams(); return others == 1 })
	p.sidecar("A", "bank/later", backend(t), nil).Subscribe(resource.EndpointType, "*")
	if err := <-answer; err != nil {
		t.Error(err)
	}
}
