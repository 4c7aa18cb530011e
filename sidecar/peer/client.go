package peer

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"time"

	"txmesh/interceptor"
	"txmesh/interceptor/socket"
	"txmesh/policies"
	"txmesh/txn"
)

const (
	connectMax = 2 * time.Second
	// StatusMax is how many ids one Status may ask about.
	StatusMax = 500
	// PhaseUnknown is the answer for a transaction that the owner does not know (any more).
	PhaseUnknown = "unknown"
)

// Client speaks the protocol to other sidecars over kept connections. It is safe for many goroutines.
type Client struct {
	auth      *Auth
	http      *http.Client
	asking    *http.Client    // for Identity
	transport *http.Transport // of http
	proof     *Proof          // nil: no peer has a certificate
	timeout   time.Duration
	scheme    string
	address   func(ctx context.Context, owner string) (string, error)
}

// NewClient returns a client that finds the peer port of an owner by address. Each request but Settle, which has an
// application called, takes at most timeout.
func NewClient(auth *Auth, timeout time.Duration, address func(ctx context.Context, owner string) (string, error)) *Client {
	transport := &http.Transport{
		DialContext:         (&net.Dialer{Timeout: min(timeout, connectMax)}).DialContext,
		MaxIdleConnsPerHost: 64,
		IdleConnTimeout:     time.Minute,
		DisableCompression:  true,
	}
	c := clientOf(transport)
	return &Client{auth: auth, timeout: timeout, address: address, scheme: "http", transport: transport, http: c, asking: c}
}

func clientOf(t *http.Transport) *http.Client {
	return &http.Client{Transport: t, CheckRedirect: func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse }}
}

// DialBy makes the client open its plain connections by dial, which is given little time. Call it before the first request.
func (c *Client) DialBy(dial func(ctx context.Context, network, address string) (net.Conn, error)) {
	within := min(c.timeout, connectMax)
	c.transport.DialContext = func(ctx context.Context, network, address string) (net.Conn, error) {
		ctx, cancel := context.WithTimeout(ctx, within)
		defer cancel()
		conn, err := dial(ctx, network, address)
		if err != nil {
			return nil, err
		}
		return socket.Quick(conn), nil
	}
}

// Close drops idle connections.
func (c *Client) Close() {
	c.http.CloseIdleConnections()
	c.asking.CloseIdleConnections()
}

// Identity asks who listens on the peer port at address. An answer that the certificate there does not bear out wraps
// interceptor.ErrMismatch.
func (c *Client) Identity(ctx context.Context, address string) (Identity, error) {
	ctx, cancel := context.WithTimeout(ctx, c.timeout)
	defer cancel()
	var id Identity
	var proven string
	if err := c.ask(c.watched(ctx, &proven), c.asking, "GET", address, "/v1/identity", nil, &id); err != nil {
		return Identity{}, err
	}
	if err := id.vouched(proven); err != nil {
		c.proof.Refused(causeMismatch, address, err)
		return Identity{}, fmt.Errorf("peer %s: %w", address, err)
	}
	return id, nil
}

// Enlist relays to the owner. The document goes along if it is not nil.
func (c *Client) Enlist(ctx context.Context, owner string, id txn.ID, e txn.Enlist, doc *Document) (interceptor.Placed, error) {
	w := wireEnlist{Tx: id, Branch: wireBranch(e.Branch), Calling: e.Calling, Answered: e.Answered, Result: e.Result, Call: e.Call}
	if doc != nil {
		w.Document = &wireDocument{Hash: doc.Hash, Name: doc.Source.Name, Data: doc.Source.Data}
	}
	ctx, cancel := context.WithTimeout(ctx, c.timeout)
	defer cancel()
	var p wirePlaced
	err := c.post(ctx, owner, "/v1/enlist", w, &p)
	return interceptor.Placed(p), err
}

// Returned relays to the owner.
func (c *Client) Returned(ctx context.Context, owner string, id txn.ID, e txn.Returned, durable bool) error {
	ctx, cancel := context.WithTimeout(ctx, c.timeout)
	defer cancel()
	return c.post(ctx, owner, "/v1/returned", wireReturn{Tx: id, Answer: wireReturned(e), Durable: durable}, &struct{}{})
}

// Settle has a branch settled at its home, within the context's deadline.
func (c *Client) Settle(ctx context.Context, call interceptor.HomeCall) (interceptor.HomeReply, error) {
	address, err := c.address(ctx, call.Home)
	if err != nil {
		return interceptor.HomeReply{}, err
	}
	return c.SettleAt(ctx, address, call)
}

// SettleAt is Settle by the sidecar whose peer port is at address: one of those that share the home.
func (c *Client) SettleAt(ctx context.Context, address string, call interceptor.HomeCall) (interceptor.HomeReply, error) {
	body, err := json.Marshal(settleToWire(call))
	if err != nil {
		return interceptor.HomeReply{}, fmt.Errorf("encode message for %s: %w", address, err)
	}
	var r wireSettled
	err = c.ask(ctx, c.http, "POST", address, "/v1/settle", body, &r)
	return settledFromWire(r), err
}

// Status asks the owner about at most StatusMax of its transactions: their phases, or PhaseUnknown.
func (c *Client) Status(ctx context.Context, owner string, ids []txn.ID) (map[txn.ID]string, error) {
	ctx, cancel := context.WithTimeout(ctx, c.timeout)
	defer cancel()
	var w wirePhases
	err := c.post(ctx, owner, "/v1/status", wireStatus{ids}, &w)
	return w.Phases, err
}

// Document is a policy document on its way to an owner.
type Document struct {
	Hash   string
	Source policies.Source
}

func (c *Client) post(ctx context.Context, owner, path string, in, out any) error {
	address, err := c.address(ctx, owner)
	if err != nil {
		return err
	}
	body, err := json.Marshal(in)
	if err != nil {
		return fmt.Errorf("encode message for %s%s: %w", address, path, err)
	}
	return c.ask(ctx, c.http, "POST", address, path, body, out)
}

// ask makes one request. Errors before an answer was believed wrap ErrUnreachable: what became of the request is
// not known then.
func (c *Client) ask(ctx context.Context, by *http.Client, method, address, path string, body []byte, out any) error {
	req, err := http.NewRequestWithContext(ctx, method, c.scheme+"://"+address+path, bytes.NewReader(body))
	if err != nil {
		return fmt.Errorf("peer %s: %w", address, err)
	}
	req.Header.Set("Content-Type", "application/json")
	if c.proof != nil {
		req.Header.Set(headerService, c.proof.Service)
	}
	nonce := c.auth.Sign(req.Header, method, path, body)
	res, err := by.Do(req)
	if err != nil {
		return fmt.Errorf("peer %s: %w: %w", address, ErrUnreachable, err)
	}
	answer, err := io.ReadAll(io.LimitReader(res.Body, bodyMax))
	err = errors.Join(err, res.Body.Close())
	if err != nil {
		return fmt.Errorf("peer %s: %w: %w", address, ErrUnreachable, err)
	}
	if err := c.auth.CheckReply(res.Header, nonce, res.StatusCode, answer); err != nil {
		return fmt.Errorf("peer %s answered %d: %w: %w", address, res.StatusCode, ErrUnreachable, err)
	}
	if res.StatusCode != 200 {
		return refused(address, answer)
	}
	if err := json.Unmarshal(answer, out); err != nil {
		return fmt.Errorf("peer %s: decode answer to %s: %w", address, path, err)
	}
	return nil
}

// refused turns a refusal back into the error that caused it.
func refused(address string, answer []byte) error {
	var w wireRefusal
	if err := json.Unmarshal(answer, &w); err != nil {
		return fmt.Errorf("peer %s: decode refusal: %w", address, err)
	}
	for _, k := range refusals() {
		if k.code == w.Code {
			return fmt.Errorf("peer %s: %w: %s", address, k.err, w.Text)
		}
	}
	return fmt.Errorf("peer %s refused (%s): %s", address, w.Code, w.Text)
}
