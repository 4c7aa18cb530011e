// Package port lets one port speak gRPC and HTTP/1.1, with TLS or without: a connection belongs to one of the two by
// what the client negotiates, or by its first bytes. It never reads a request. Start at Split.
package port

import (
	"bufio"
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"net"
	"sync"
	"time"

	"google.golang.org/grpc/credentials"
)

// handshakeMax bounds the time until a connection shows what it is.
const handshakeMax = 10 * time.Second

// handshakesMax bounds how many connections do so at once; the rest wait in the queue of the kernel.
const handshakesMax = 256

// Protocols is what a TLS configuration for Split offers. Clients of gRPC offer h2 alone; whoever offers http/1.1 as
// well gets that.
func Protocols() []string { return []string{"http/1.1", "h2"} }

// Port is a listener that was split in two.
type Port struct {
	listener   net.Listener
	config     *tls.Config // nil: plain text
	grpc, http *half
	slots      chan struct{}
	stop       chan struct{}
	once       sync.Once
	open       sync.WaitGroup
}

// Split takes the listener over. Run must be called, and Close.
func Split(l net.Listener, config *tls.Config) *Port {
	p := &Port{listener: l, config: config, slots: make(chan struct{}, handshakesMax), stop: make(chan struct{})}
	p.grpc, p.http = &half{p, make(chan net.Conn)}, &half{p, make(chan net.Conn)}
	return p
}

// GRPC is the listener for a gRPC server with Credentials.
func (p *Port) GRPC() net.Listener { return p.grpc }

// HTTP is the listener for an HTTP server. Its connections are TLS's where the port's are.
func (p *Port) HTTP() net.Listener { return p.http }

// Run takes connections until Close.
func (p *Port) Run() error {
	defer p.open.Wait()
	defer p.once.Do(func() { close(p.stop) })
	for {
		p.slots <- struct{}{}
		c, err := p.listener.Accept()
		if err != nil {
			<-p.slots
			if errors.Is(err, net.ErrClosed) {
				return nil
			}
			if ne, ok := errors.AsType[net.Error](err); ok && ne.Timeout() {
				continue
			}
			return fmt.Errorf("accept: %w", err)
		}
		p.open.Go(func() {
			to, conn, err := p.know(c)
			<-p.slots
			if err != nil {
				c.Close() // it was not known to be anybody's
				return
			}
			select {
			case to.conns <- conn:
			case <-p.stop:
				conn.Close() // nobody has seen it
			}
		})
	}
}

// Close ends the listening; connections stay.
func (p *Port) Close() error {
	p.once.Do(func() { close(p.stop) })
	return p.listener.Close()
}

// know finds out whose a connection is.
func (p *Port) know(c net.Conn) (*half, net.Conn, error) {
	if err := c.SetDeadline(time.Now().Add(handshakeMax)); err != nil {
		return nil, nil, err
	}
	to := p.http
	var conn net.Conn
	if p.config != nil {
		t := tls.Server(c, p.config)
		if err := t.Handshake(); err != nil { //nolint:noctx // the deadline bounds it
			return nil, nil, err
		}
		if t.ConnectionState().NegotiatedProtocol == "h2" {
			to = p.grpc
		}
		conn = t
	} else {
		r := bufio.NewReaderSize(c, len(preface))
		first, err := r.Peek(len(preface))
		if err != nil {
			return nil, nil, err
		}
		if string(first) == preface {
			to = p.grpc
		}
		conn = &peeked{Conn: c, r: r}
	}
	return to, conn, c.SetDeadline(time.Time{})
}

// preface begins every connection of HTTP/2, and no request of HTTP/1.1 is as short.
const preface = "PRI * HTTP/2.0\r\n"

// peeked is a connection whose first bytes have been looked at.
type peeked struct {
	net.Conn
	r *bufio.Reader
}

func (p *peeked) Read(b []byte) (int, error) {
	if p.r == nil {
		return p.Conn.Read(b)
	}
	n, err := p.r.Read(b)
	if p.r.Buffered() == 0 {
		p.r = nil
	}
	return n, err
}

// half is what one of the two servers listens to.
type half struct {
	p     *Port
	conns chan net.Conn
}

func (h *half) Accept() (net.Conn, error) {
	select {
	case c := <-h.conns:
		return c, nil
	case <-h.p.stop:
		return nil, net.ErrClosed
	}
}

// Close leaves the port open: its other half may go on.
func (h *half) Close() error   { return nil }
func (h *half) Addr() net.Addr { return h.p.listener.Addr() }

// Credentials are those of a gRPC server behind a Port, whose handshake is done before it sees a connection.
func Credentials() credentials.TransportCredentials { return done{} }

type done struct{}

// ServerHandshake implements credentials.TransportCredentials.
func (done) ServerHandshake(c net.Conn) (net.Conn, credentials.AuthInfo, error) {
	info := credentials.TLSInfo{CommonAuthInfo: credentials.CommonAuthInfo{SecurityLevel: credentials.NoSecurity}}
	if t, ok := c.(*tls.Conn); ok {
		info.State, info.SecurityLevel = t.ConnectionState(), credentials.PrivacyAndIntegrity
	}
	return c, info, nil
}

// ClientHandshake implements credentials.TransportCredentials.
func (done) ClientHandshake(context.Context, string, net.Conn) (net.Conn, credentials.AuthInfo, error) {
	return nil, nil, errors.New("port: credentials of a server")
}

// Info implements credentials.TransportCredentials.
func (done) Info() credentials.ProtocolInfo { return credentials.ProtocolInfo{SecurityProtocol: "tls"} }

// Clone implements credentials.TransportCredentials.
func (d done) Clone() credentials.TransportCredentials { return d }

// OverrideServerName implements credentials.TransportCredentials.
func (done) OverrideServerName(string) error { return errors.New("port: credentials of a server") }
