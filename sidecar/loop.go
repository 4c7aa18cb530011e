package sidecar

import (
	"context"
	"errors"
	"fmt"
	"net"

	"txmesh/interceptor/proxy"
)

// dialApp opens a connection to the application, unless it would be one to a port that forwards to it again.
func (s *Sidecar) dialApp(ctx context.Context, network, address string) (net.Conn, error) {
	conn, err := s.dial(ctx, network, address)
	if err != nil {
		return nil, err
	}
	return s.elsewhere(conn, s.ports.inbound)
}

// elsewhere closes a connection that leads back to a port by which applications call out, or to those given: the
// request would go round until something breaks. Other own ports end there: a service may call itself by its inbound
// port, and the API and the doors through its proxy. Only the connection itself knows where a name has led.
func (s *Sidecar) elsewhere(conn net.Conn, more ...net.Listener) (net.Conn, error) {
	for _, l := range s.forwarding(more) {
		if l != nil && leadsTo(conn, l.Addr()) {
			return nil, errors.Join(fmt.Errorf("dial %s: %w", conn.RemoteAddr(), proxy.ErrLoop), conn.Close())
		}
	}
	return conn, nil
}

func (s *Sidecar) forwarding(more []net.Listener) []net.Listener {
	all := append(more, s.ports.outbound)
	for _, l := range s.ports.upstreams {
		all = append(all, l)
	}
	return all
}

// leadsTo reports whether a connection arrives at a listener of this host. Towards an address of its own a host
// calls from that address, or within loopback.
func leadsTo(conn net.Conn, listener net.Addr) bool {
	to, ok1 := conn.RemoteAddr().(*net.TCPAddr)
	from, ok2 := conn.LocalAddr().(*net.TCPAddr)
	at, ok3 := listener.(*net.TCPAddr)
	if !ok1 || !ok2 || !ok3 || to.Port != at.Port {
		return false
	}
	if !at.IP.IsUnspecified() {
		return at.IP.Equal(to.IP)
	}
	return to.IP.IsLoopback() || to.IP.Equal(from.IP)
}
