package peer

import (
	"context"
	"fmt"
	"net"
	"net/http/httptrace"
	"strings"

	"txmesh/interceptor"
	"txmesh/policies"
)

// headerService names the service of who asks. It is not signed: it is held against a certificate, and where there is
// one the whole request is protected by TLS.
const headerService = "Txmesh-Service"

// Proof is what a Client needs where sidecars have certificates.
type Proof struct {
	Service string                                                               // of this sidecar; every request names it
	Dial    func(ctx context.Context, network, address string) (net.Conn, error) // makes TLS of its connections
	Of      func(net.Conn) string                                                // SPIFFE id that the other side of one proves; empty: none
	Serves  func(address string) string                                          // service whose peer port is at an address; empty: not known
	Refused func(cause, address string, err error)                               // a peer was not believed
}

// vouched returns nil if a certificate lets its holder name a service. One that proves nothing, or whose id names no
// service, has nothing to say against it.
func vouched(service, id string) error {
	proven := policies.ServiceOf(id)
	if service == "" || proven == "" || proven == service {
		return nil
	}
	return fmt.Errorf("named service %s, but its certificate %s is of service %s: %w", service, id, proven, interceptor.ErrMismatch)
}

// vouched returns nil if a certificate lets its holder say this of itself: its service, and that it shares its home.
func (i Identity) vouched(id string) error {
	if err := vouched(i.Service, id); err != nil || !interceptor.IsSharedHome(i.Home) {
		return err
	}
	return vouched(strings.TrimPrefix(i.Home, interceptor.SharedHome("")), id)
}

// Secured makes the client open its connections by p.Dial, name its service, and believe no peer that is another
// service than it is taken for. Call it before the first request.
func (c *Client) Secured(p Proof) {
	c.proof, c.scheme = &p, "https"
	c.transport.DialTLSContext = c.dialKnown
	// Who asks for an identity believes no directory, so its connections must not carry what is meant for one.
	asking := c.transport.Clone()
	asking.DialTLSContext = p.Dial
	c.asking = clientOf(asking)
}

// dialKnown opens a connection to a peer that is the service that the directory says it is: nothing has been sent to
// another one.
func (c *Client) dialKnown(ctx context.Context, network, address string) (net.Conn, error) {
	conn, err := c.proof.Dial(ctx, network, address)
	if err != nil {
		return nil, err
	}
	if err = vouched(c.proof.Serves(address), c.proof.Of(conn)); err != nil {
		conn.Close() // nothing was sent
		c.proof.Refused(causeMismatch, address, err)
		return nil, err
	}
	return conn, nil
}

// watched notes what the connection of a request proves.
func (c *Client) watched(ctx context.Context, id *string) context.Context {
	if c.proof == nil {
		return ctx
	}
	return httptrace.WithClientTrace(ctx, &httptrace.ClientTrace{GotConn: func(i httptrace.GotConnInfo) { *id = c.proof.Of(i.Conn) }})
}
