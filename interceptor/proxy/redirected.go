package proxy

import (
	"context"
	"fmt"
	"net"

	"txmesh/interceptor"
)

// Destined is a connection of which it is known where its client wanted to go.
type Destined interface {
	net.Conn
	// Destination is the service, empty if it is unknown, and the endpoint, host:port.
	Destination() (service, endpoint string)
}

// Redirected is a proxy for connections that were taken from their way: whatever their requests name as host, they go
// where the connection was going. It is safe for many goroutines.
type Redirected struct{ srv *server }

// NewRedirected returns a proxy for connections that are Destined. It opens no connection.
func NewRedirected(o Options) (*Redirected, error) {
	o, err := o.checked()
	if err != nil {
		return nil, fmt.Errorf("proxy of redirected connections: %w", err)
	}
	return &Redirected{newServer(o, nowhere{})}, nil
}

// Serve accepts connections until Shutdown, which makes it return nil. It closes the listener.
func (p *Redirected) Serve(l net.Listener) error { return p.srv.serve(l) }

// Shutdown is that of Inbound.
func (p *Redirected) Shutdown(ctx context.Context) error { return p.srv.shutdown(ctx) }

// nowhere routes connections that are not Destined.
type nowhere struct{}

func (nowhere) route(*request) (target, *Error) {
	return target{}, refuse(faultHost, "the connection has no destination")
}

func (n nowhere) routeTo(string) (target, *Error)   { return n.route(nil) }
func (n nowhere) connectTo(string) (target, *Error) { return n.route(nil) }

// routerOf returns what routes the requests of a connection.
func (s *server) routerOf(conn net.Conn) router {
	d, ok := conn.(Destined)
	if _, redirects := s.router.(nowhere); !ok || !redirects {
		return s.router
	}
	service, endpoint := d.Destination()
	f := &fixed{port: interceptor.Port{Direction: interceptor.Outbound, Service: service, Endpoint: endpoint}}
	if service == "" {
		f.cluster = s.opts.Traffic.Host(endpoint)
	} else {
		f.cluster = s.opts.Traffic.Service(service, []string{endpoint})
	}
	return f
}
