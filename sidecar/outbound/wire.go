package outbound

import (
	"bytes"
	"context"
	"crypto/rand"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/netip"
	"net/url"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"time"

	"txmesh/interceptor"
	"txmesh/policies"
	"txmesh/txn"
)

// errForbidden says that the target may not be called at all.
var errForbidden = errors.New("target is not allowed")

const (
	dialMax     = 5 * time.Second
	contextLife = time.Minute // of the signed context on calls of the engine, which opens nothing
	secretMax   = 64 << 10
)

// wire sends requests and reads bounded answers.
type wire struct {
	transport *transport
	trip      http.RoundTripper // the transport, unless a simulation has its own
	bodyMax   int
}

func newWire(allowLinkLocal bool, bodyMax int, control Control) *wire {
	t := newTransport(allowLinkLocal, bodyMax, control)
	return &wire{bodyMax: bodyMax, transport: t, trip: t}
}

// notLinkLocal looks at the address that is really dialled, whatever name led to it.
func notLinkLocal(address string) error {
	ap, err := netip.ParseAddrPort(address)
	if err != nil {
		return fmt.Errorf("%w: %s", errForbidden, address)
	}
	if ip := ap.Addr().Unmap(); ip.IsLinkLocalUnicast() || ip.IsLinkLocalMulticast() {
		return fmt.Errorf("%w: %s is link-local, where clouds serve credentials; set allow-link-local if it is meant", errForbidden, ip)
	}
	return nil
}

// answer is what came back, or why nothing did.
type answer struct {
	reply *interceptor.Reply
	err   error
}

func (a answer) message() *policies.Message {
	return a.reply.Message()
}

// fromSidecar reports whether txmesh answered instead of the application: such an answer says nothing about effects.
func (a answer) fromSidecar() bool { return a.code() != "" }

// code is what the sidecar says; a refusal of gRPC may have it in either place.
func (a answer) code() string {
	if code := a.reply.Header.Get(interceptor.HeaderError); code != "" {
		return code
	}
	return a.reply.Trailer.Get(interceptor.HeaderError)
}

func (a answer) ofSidecar() verdict {
	v := unknown(fmt.Sprintf("a sidecar %s %s", a.message().Said(), a.code()))
	if a.reply.Status == http.StatusTooEarly || a.code() == string(interceptor.CodeRunning) {
		v.out = txn.Pending
	}
	return v
}

// outgoing makes the request that a rule rendered, without what belongs to one way of sending it.
func (c *Caller) outgoing(req *policies.Request, b branch) (*interceptor.Outgoing, error) {
	out := &interceptor.Outgoing{Method: req.Method, Host: req.Host, Path: req.Path, Query: req.Query, Body: req.Body,
		Header: http.Header{}}
	if out.Host == "" {
		out.Host = b.note.Host
	}
	for _, h := range req.Header {
		out.Header.Add(h[0], h[1])
	}
	if req.Auth != nil {
		token, err := c.secret(req.Auth.Bearer)
		if err != nil {
			return nil, err
		}
		out.Header.Set("Authorization", "Bearer "+token)
	}
	return out, nil
}

// secret reads <dir>/<namespace>/<name>/<key>, else <dir>/<name>/<key>, which is how volumes are mounted in a pod.
func (c *Caller) secret(s policies.Secret) (string, error) {
	ref := s.Name + "/" + s.Key
	if c.opt.SecretsDir == "" {
		return "", fmt.Errorf("secret %s: secrets-dir is not configured", ref)
	}
	for _, part := range []string{s.Namespace, s.Name, s.Key} {
		if strings.ContainsAny(part, `/\`) || part == ".." {
			return "", fmt.Errorf("secret %s: is not a name and a key", ref)
		}
	}
	data, err := readSecret(filepath.Join(c.opt.SecretsDir, s.Namespace, s.Name, s.Key))
	if errors.Is(err, os.ErrNotExist) {
		data, err = readSecret(filepath.Join(c.opt.SecretsDir, s.Name, s.Key))
	}
	if err != nil {
		return "", fmt.Errorf("secret %s: %w", ref, err)
	}
	token := strings.TrimSpace(string(data))
	if token == "" || strings.ContainsAny(token, "\r\n") {
		return "", fmt.Errorf("secret %s: the file holds no single line", ref)
	}
	return token, nil
}

func readSecret(path string) ([]byte, error) {
	f, err := os.Open(path)
	if err != nil {
		return nil, err
	}
	data, err := io.ReadAll(io.LimitReader(f, secretMax))
	return data, errors.Join(err, f.Close())
}

// word is the op as receivers know it.
func word(rule *policies.Call, op txn.Op) string {
	switch {
	case op == txn.Undo:
		return interceptor.OpUndo
	case op == txn.Ask:
		return interceptor.OpQuery
	case rule.Kind == policies.Hold:
		return interceptor.OpDeliver
	default:
		return interceptor.OpConfirm
	}
}

// direct sends a call straight to the service.
func (c *Caller) direct(ctx context.Context, b branch, req *policies.Request, out *interceptor.Outgoing) answer {
	scheme, endpoint := c.place(b, req)
	if endpoint == "" {
		return answer{err: fmt.Errorf("no endpoint of service %q is known: add it to upstreams, or its sidecar to peers", b.service(req))}
	}
	if isGRPC(out.Header) {
		dressed := *out
		dressed.Header = out.Header.Clone()
		c.dress(dressed.Header, b)
		reply, err := c.grpc.send(ctx, scheme, endpoint, &dressed)
		return answer{reply: reply, err: err}
	}
	r, err := http.NewRequestWithContext(ctx, out.Method, scheme+"://"+endpoint, bytes.NewReader(out.Body))
	if err != nil {
		return answer{err: fmt.Errorf("%w: %w", errForbidden, err)}
	}
	// Opaque goes on the wire as it is: a rendered path is encoded already.
	r.URL = &url.URL{Scheme: scheme, Host: endpoint, Opaque: out.Path, RawQuery: out.Query}
	r.Host = out.Host
	if r.Host == "" {
		r.Host = endpoint
	}
	r.Header = out.Header.Clone()
	c.dress(r.Header, b)
	reply, err := c.wire.send(r)
	return answer{reply: reply, err: err}
}

func (b branch) service(req *policies.Request) string {
	if b.note.Service != "" {
		return b.note.Service
	}
	return req.Service
}

// place finds where the call goes: to an endpoint of the service, taking turns over the attempts, or to the host.
func (c *Caller) place(b branch, req *policies.Request) (scheme, endpoint string) {
	var all []string
	if service := b.service(req); service != "" {
		all = c.opt.Places.Endpoints(service)
	}
	host := req.Host
	if host == "" {
		host = b.note.Host
	}
	if len(all) == 0 && host != "" {
		all = c.opt.Places.EndpointsOfHost(host)
	}
	if len(all) > 0 {
		return "http", all[max(b.call.Attempt-1, 0)%len(all)]
	}
	if _, port, err := net.SplitHostPort(host); err == nil && port == "443" {
		return "https", host
	}
	return "http", host
}

// dress gives a call the headers of the protocol. The context is signed, so that the receiving sidecar believes the
// others; the trace is a new one, because what this call causes is no part of the transaction.
func (c *Caller) dress(h http.Header, b branch) {
	name, op := interceptor.BranchName(b.call.Tx, b.call.Branch), word(b.rule, b.call.Op)
	signed := c.opt.Keys.Sign(interceptor.Context{ID: b.call.Tx, Parent: b.call.Branch, Expires: c.opt.Now().Add(contextLife)})
	h.Set(interceptor.HeaderContext, signed)
	h.Set(interceptor.HeaderID, string(b.call.Tx))
	h.Set(interceptor.HeaderBranch, name)
	h.Set(interceptor.HeaderOp, op)
	h.Set(interceptor.HeaderAttempt, strconv.Itoa(b.call.Attempt))
	h.Set(interceptor.HeaderIdempotency, `"`+name+"-"+op+`"`)
	raw := make([]byte, 24)
	rand.Read(raw) // never fails
	h.Set("Traceparent", "00-"+hex.EncodeToString(raw[:16])+"-"+hex.EncodeToString(raw[16:])+"-01")
	if h.Get("User-Agent") == "" {
		h.Set("User-Agent", "txmesh-sidecar")
	}
}

// send makes one request and no other: no redirect is followed.
func (w *wire) send(r *http.Request) (*interceptor.Reply, error) {
	res, err := w.trip.RoundTrip(r)
	if err != nil {
		return nil, fmt.Errorf("%s %s at %s: %w", r.Method, r.URL.Opaque, r.URL.Host, err)
	}
	body, err := io.ReadAll(io.LimitReader(res.Body, int64(w.bodyMax)+1))
	err = errors.Join(err, res.Body.Close())
	if err == nil && len(body) > w.bodyMax {
		err = fmt.Errorf("the answer has more than %d bytes", w.bodyMax)
	}
	if err != nil {
		return nil, fmt.Errorf("%s %s at %s: answered %d: %w", r.Method, r.URL.Opaque, r.URL.Host, res.StatusCode, err)
	}
	return &interceptor.Reply{Status: res.StatusCode, Header: res.Header, Body: body}, nil
}
