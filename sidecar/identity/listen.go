package identity

import (
	"context"
	"crypto/tls"
	"errors"
	"io"
	"net"
	"net/netip"
	"sync"
	"sync/atomic"
	"time"

	"txmesh/interceptor/socket"
)

// Mode says what a listener takes.
type Mode uint8

const (
	// Strict takes TLS with a certificate of the mesh, and nothing else.
	Strict Mode = iota
	// StrictOutside is Strict, but plain connections from this host are taken as well.
	StrictOutside
	// Permissive takes plain connections and TLS with a certificate.
	Permissive
	// Optional takes plain connections, and TLS with or without a certificate.
	Optional
)

// lingerTime is how long a refused client is read, so that a reset does not overtake the alert that tells it why.
const lingerTime = 500 * time.Millisecond

// handshakeMax bounds a handshake from its first byte on.
const handshakeMax = 10 * time.Second

// clientHello is the first byte of a TLS connection; no request of HTTP begins with it.
const clientHello = 0x16

var errPlain = errors.New("the first byte is not one of TLS")

// Listener makes TLS of the connections that l accepts. Handshakes run where the connection is first read or written,
// so that a slow one holds up nobody else. Protocols are what it offers by ALPN; without any it leaves that open.
func (i *Identity) Listener(l net.Listener, mode Mode, protocols ...string) net.Listener {
	return &listener{l, i, mode, protocols}
}

type listener struct {
	net.Listener
	i         *Identity
	mode      Mode
	protocols []string
}

// Accept returns a connection that Caller understands.
func (l *listener) Accept() (net.Conn, error) {
	raw, err := l.Listener.Accept()
	if err != nil {
		return nil, err
	}
	return &serverConn{Conn: socket.Quick(raw), i: l.i, mode: l.mode, protocols: l.protocols}, nil
}

// serverConn is an accepted connection: TLS or plain, as its first byte says.
type serverConn struct {
	net.Conn  // as accepted
	i         *Identity
	mode      Mode
	protocols []string
	once      sync.Once
	in        net.Conn                 // what goes in and out once opened
	secure    atomic.Pointer[tls.Conn] // in, if it is TLS and its handshake succeeded
	bare      *capped
	caller    string // read only where secure is set
	err       error
	abrupt    atomic.Bool
}

// open reads the first byte and shakes hands.
func (c *serverConn) open() error {
	c.once.Do(func() {
		if c.err = c.peek(); c.err != nil {
			c.linger()
		}
	})
	return c.err
}

func (c *serverConn) peek() error {
	first := make([]byte, 1)
	if _, err := io.ReadFull(c.Conn, first); err != nil {
		return err
	}
	c.bare = &capped{Conn: c.Conn, first: first}
	if first[0] != clientHello {
		if c.mode == Strict || c.mode == StrictOutside && !local(c.RemoteAddr(), c.LocalAddr()) {
			return c.refusedPlain()
		}
		c.in = c.bare
		return nil
	}
	t := tls.Server(c.bare, &tls.Config{MinVersion: tls.VersionTLS13, GetConfigForClient: c.config})
	ctx, cancel := context.WithTimeout(context.Background(), handshakeMax)
	defer cancel()
	if err := t.HandshakeContext(ctx); err != nil {
		return c.i.refused("server", c.RemoteAddr(), err)
	}
	c.in, c.caller = t, caller(t)
	c.secure.Store(t)
	return nil
}

func (c *serverConn) config(*tls.ClientHelloInfo) (*tls.Config, error) {
	m, err := c.i.get()
	if err != nil {
		return nil, err
	}
	config := m.wants
	if c.mode == Optional {
		config = m.takes
	}
	if len(c.protocols) > 0 {
		config = config.Clone()
		config.NextProtos = c.protocols
	}
	return config, nil
}

// refusedPlain tells a client that speaks HTTP what is wanted of it.
func (c *serverConn) refusedPlain() error {
	const text = "this port of the mesh wants TLS with a certificate: set identity at the caller\n"
	// A client that went away cannot be told.
	_, _ = io.WriteString(c.Conn, "HTTP/1.1 400 Bad Request\r\ncontent-type: text/plain\r\nconnection: close\r\n\r\n"+text)
	return c.i.refused("server", c.RemoteAddr(), &Refusal{By: Self, Reason: Plain, Err: errPlain})
}

// linger reads on until the client has understood and closes, for a moment.
func (c *serverConn) linger() {
	if half, ok := c.Conn.(interface{ CloseWrite() error }); ok && half.CloseWrite() != nil {
		return
	}
	if c.Conn.SetReadDeadline(time.Now().Add(lingerTime)) == nil {
		// It ends by the deadline at the latest; there is nothing to learn.
		_, _ = io.Copy(io.Discard, io.LimitReader(c.Conn, 1<<20))
	}
}

// local reports whether a connection comes from this host: from loopback, or to an address from itself.
func local(remote, own net.Addr) bool {
	from, err := netip.ParseAddrPort(remote.String())
	if err != nil {
		return false
	}
	to, err := netip.ParseAddrPort(own.String())
	return from.Addr().Unmap().IsLoopback() || err == nil && from.Addr() == to.Addr()
}

// Read opens the connection first.
func (c *serverConn) Read(p []byte) (int, error) {
	if err := c.open(); err != nil {
		return 0, err
	}
	return c.in.Read(p)
}

// Write opens the connection first.
func (c *serverConn) Write(p []byte) (int, error) {
	if err := c.open(); err != nil {
		return 0, err
	}
	return c.in.Write(p)
}

// CloseWrite says that nothing more comes.
func (c *serverConn) CloseWrite() error {
	if t := c.secure.Load(); t != nil {
		if err := t.CloseWrite(); err != nil {
			return err
		}
	}
	half, ok := c.Conn.(interface{ CloseWrite() error })
	if !ok {
		return errors.ErrUnsupported
	}
	return half.CloseWrite()
}

// SetLinger with 0 makes Close break the connection, so that what was sent cannot be taken for all.
func (c *serverConn) SetLinger(sec int) error {
	c.abrupt.Store(sec == 0)
	s, ok := c.Conn.(interface{ SetLinger(sec int) error })
	if !ok {
		return errors.ErrUnsupported
	}
	return s.SetLinger(sec)
}

// Close says farewell where that means that nothing is missing, and closes the connection.
func (c *serverConn) Close() error {
	t := c.secure.Load()
	if t == nil || c.abrupt.Load() {
		return c.Conn.Close()
	}
	c.bare.closing.Store(true)
	return t.Close()
}

// Caller is the SPIFFE id that the client proved; empty before the first byte, and for who proved none.
func (c *serverConn) Caller() string {
	if c.secure.Load() == nil {
		return ""
	}
	return c.caller
}

type connKey struct{}

// WithConn is a ConnContext of net/http: it lets handlers ask for Caller.
func WithConn(ctx context.Context, c net.Conn) context.Context {
	if s, ok := c.(*serverConn); ok {
		return context.WithValue(ctx, connKey{}, s)
	}
	return ctx
}

// Caller is the SPIFFE id of the client whose request has this context; empty: it proved none.
func Caller(ctx context.Context) string {
	if s, ok := ctx.Value(connKey{}).(*serverConn); ok {
		return s.Caller()
	}
	return ""
}
