package identity

import (
	"context"
	"crypto/tls"
	"fmt"
	"net"
	"sync"
	"sync/atomic"
	"syscall"
	"time"

	"github.com/spiffe/go-spiffe/v2/svid/x509svid"

	"txmesh/interceptor/socket"
)

// closeMax bounds how long the farewell of TLS may wait for a client that reads nothing.
const closeMax = 100 * time.Millisecond

// Dial opens a TLS connection to a sidecar of the mesh.
func (i *Identity) Dial(ctx context.Context, network, address string) (net.Conn, error) {
	raw, err := i.opt.Dialer.DialContext(ctx, network, address)
	if err != nil {
		return nil, err
	}
	return i.Client(ctx, raw)
}

// Client makes TLS of a connection to a sidecar of the mesh, whose certificate must be of the trust domain. With
// TLS 1.3 the other side's refusal arrives after the handshake: then Read returns it. It closes raw when it fails.
// Protocols are what it asks for by ALPN.
func (i *Identity) Client(ctx context.Context, raw net.Conn, protocols ...string) (net.Conn, error) {
	m, err := i.get()
	if err == nil {
		err = i.Ready()
	}
	if err != nil {
		raw.Close() // nothing was sent
		return nil, fmt.Errorf("tls to %s: %w", raw.RemoteAddr(), err)
	}
	config := m.client
	if len(protocols) > 0 {
		config = config.Clone()
		config.NextProtos = protocols
	}
	bare := &capped{Conn: socket.Quick(raw)}
	c := &clientConn{Conn: tls.Client(bare, config), bare: bare, i: i}
	if err := c.HandshakeContext(ctx); err != nil {
		raw.Close() // the handshake has told the other side
		return nil, i.refused("client", raw.RemoteAddr(), err)
	}
	return c, nil
}

// capped is a connection whose last words may be cut short.
type capped struct {
	net.Conn
	first   []byte // read before anything else
	closing atomic.Bool
}

func (c *capped) Read(p []byte) (int, error) {
	if len(c.first) > 0 {
		n := copy(p, c.first)
		c.first = c.first[n:]
		return n, nil
	}
	return c.Conn.Read(p)
}

// SetWriteDeadline shortens the deadline that crypto/tls sets for its farewell.
func (c *capped) SetWriteDeadline(t time.Time) error {
	if soon := time.Now().Add(closeMax); c.closing.Load() && t.After(soon) {
		t = soon
	}
	return c.Conn.SetWriteDeadline(t)
}

// clientConn is a TLS connection that was opened here.
type clientConn struct {
	*tls.Conn
	bare *capped
	i    *Identity
	told sync.Once
}

// Read explains the alert by which the other side refuses this one.
func (c *clientConn) Read(p []byte) (int, error) {
	n, err := c.Conn.Read(p)
	if err == nil {
		return n, nil
	}
	if r := refusalOf(err); r.By == Other {
		c.told.Do(func() { err = c.i.refused("client", c.RemoteAddr(), err) })
	}
	return n, err
}

// SyscallConn lets the socket be asked whether it is still open.
func (c *clientConn) SyscallConn() (syscall.RawConn, error) {
	sc, ok := c.bare.Conn.(syscall.Conn)
	if !ok {
		return nil, fmt.Errorf("tls over %T: no socket", c.bare.Conn)
	}
	return sc.SyscallConn()
}

// Close says farewell and closes the connection.
func (c *clientConn) Close() error {
	c.bare.closing.Store(true)
	return c.Conn.Close()
}

// Callee is the SPIFFE id of the other side of a connection that Dial or Client returned; empty for any other.
func Callee(c net.Conn) string {
	if t, ok := c.(*clientConn); ok {
		return caller(t.Conn)
	}
	return ""
}

// caller is the SPIFFE id that the other side proved; empty: none.
func caller(c *tls.Conn) string {
	s := c.ConnectionState()
	if len(s.PeerCertificates) == 0 {
		return ""
	}
	id, err := x509svid.IDFromCert(s.PeerCertificates[0])
	if err != nil {
		return "" // not let in
	}
	return id.String()
}
