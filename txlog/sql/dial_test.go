package sql_test

import (
	"context"
	"net"
	"net/url"
	"testing"

	"github.com/google/go-cmp/cmp"

	shared "txmesh/txlog/sql"
)

// Dial alone opens connections: it leads from an address where nobody listens to the database.
func TestConnectionsAreDialledAsTold(t *testing.T) {
	const nowhere = "127.0.0.1:1"
	for _, k := range kinds {
		t.Run(k.name, func(t *testing.T) {
			u, err := url.Parse(k.place(t, &set))
			if err != nil {
				t.Fatal(err)
			}
			server := u.Host
			u.Host = nowhere
			asked := make(chan string, 100)
			s := claim(t, open(t, shared.Options{DSN: u.String(), Dial: func(ctx context.Context, network, address string) (net.Conn, error) {
				asked <- network + " " + address
				return new(net.Dialer).DialContext(ctx, network, server)
			}}), "AAAAAAAAAAAAA")
			if err := s.Append(t.Context(), one("a"), true); err != nil {
				t.Error(err)
			}
			if diff := cmp.Diff("tcp "+nowhere, <-asked); diff != "" {
				t.Errorf("dialled (-want +got):\n%s", diff)
			}
		})
	}
}
