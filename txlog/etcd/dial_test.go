package etcd_test

import (
	"context"
	"net"
	"testing"

	"github.com/google/go-cmp/cmp"

	"txmesh/tests/databases"
	"txmesh/txlog/etcd"
)

// Dial alone opens connections: it leads from an address where nobody listens to the member.
func TestConnectionsAreDialledAsTold(t *testing.T) {
	t.Parallel()
	const nowhere = "127.0.0.1:1"
	cluster := databases.StartEtcd(t, 1)
	asked := make(chan string, 100)
	open(t, cluster, func(o *etcd.Options) {
		o.Endpoints = []string{nowhere}
		o.Dial = func(ctx context.Context, network, address string) (net.Conn, error) {
			asked <- network + " " + address
			return new(net.Dialer).DialContext(ctx, network, cluster.Endpoints()[0])
		}
	})
	if diff := cmp.Diff("tcp "+nowhere, <-asked); diff != "" {
		t.Errorf("dialled (-want +got):\n%s", diff)
	}
}
