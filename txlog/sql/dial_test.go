package sql_test

import (
	"context"
	"errors"
	"net"
	"net/url"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"txmesh/txlog"
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

// A database that hangs up in the middle of the greeting is one that starts or ends: whoever opens the store may try again.
func TestHangingUpIsNoAnswer(t *testing.T) {
	for name, said := range map[string]string{"postgres": "", "mysql": "\x4a\x00\x00"} {
		t.Run(name, func(t *testing.T) {
			hangUp := func(context.Context, string, string) (net.Conn, error) {
				client, server := net.Pipe()
				go func() {
					_, _ = server.Write([]byte(said)) // the client may have gone
					_ = server.Close()
				}()
				return client, nil
			}
			_, err := shared.Open(t.Context(), shared.Options{DSN: name + "://user@127.0.0.1/db", Dial: hangUp, Timeout: 300 * time.Millisecond})
			if !errors.Is(err, txlog.ErrUnavailable) {
				t.Errorf("open: %v, want ErrUnavailable", err)
			}
		})
	}
}
