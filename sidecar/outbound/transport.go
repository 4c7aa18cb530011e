package outbound

import (
	"bytes"
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/url"
	"sync"
	"syscall"
	"time"

	"github.com/valyala/fasthttp"

	"txmesh/interceptor"
	"txmesh/interceptor/socket"
)

// endpointsMax bounds the connection pools that are kept.
const endpointsMax = 1000

// transport makes one HTTP/1.1 exchange and no other. It stands on fasthttp, because the transport of net/http
// repeats a request by itself when it carries an Idempotency-Key, and here only the engine repeats.
type transport struct {
	dial    *net.Dialer
	secure  Secure // of plain HTTP; nil: nothing is
	bodyMax int

	mu    sync.Mutex // guards hosts
	hosts map[string]*fasthttp.HostClient

	connMu sync.Mutex // guards conns; taken last
	conns  map[*tracked]struct{}
}

func newTransport(allowLinkLocal bool, bodyMax int, control Control) *transport {
	d := &net.Dialer{Timeout: dialMax, Control: control}
	if !allowLinkLocal {
		d.Control = func(network, address string, c syscall.RawConn) error {
			if err := notLinkLocal(address); err != nil || control == nil {
				return err
			}
			return control(network, address, c)
		}
	}
	return &transport{dial: d, bodyMax: bodyMax, hosts: map[string]*fasthttp.HostClient{}, conns: map[*tracked]struct{}{}}
}

func (t *transport) open(address string) (net.Conn, error) {
	conn, err := t.dial.Dial("tcp", address)
	if err != nil {
		return nil, err
	}
	return t.track(conn), nil
}

// openService is open for the endpoint of a service, which may take TLS of the mesh.
func (t *transport) openService(address string) (net.Conn, error) {
	conn, err := t.dial.Dial("tcp", address)
	if err != nil {
		return nil, err
	}
	if t.secure != nil {
		ctx, cancel := context.WithTimeout(context.Background(), dialMax)
		defer cancel()
		if conn, err = t.secure(ctx, conn, address); err != nil {
			return nil, err
		}
	}
	return t.track(conn), nil
}

// openRaw is a connection for a protocol that is no exchange of requests and answers, and minds its own closed ones.
func (t *transport) openRaw(ctx context.Context, scheme, endpoint string) (net.Conn, error) {
	conn, err := t.dial.DialContext(ctx, "tcp", endpoint)
	if err != nil || scheme != "http" || t.secure == nil {
		return conn, err
	}
	return t.secure(ctx, conn, endpoint)
}

func (t *transport) track(conn net.Conn) *tracked {
	c := &tracked{Conn: socket.Quick(conn), t: t}
	t.connMu.Lock()
	defer t.connMu.Unlock()
	t.conns[c] = struct{}{}
	return c
}

// breakOff ends all exchanges with an error.
func (t *transport) breakOff() {
	t.connMu.Lock()
	defer t.connMu.Unlock()
	for c := range t.conns {
		// The exchange sees it; nobody else uses the connection.
		_ = c.Conn.Close()
	}
}

// host returns the connection pool of one endpoint.
func (t *transport) host(scheme, endpoint string) *fasthttp.HostClient {
	key := scheme + "://" + endpoint
	t.mu.Lock()
	defer t.mu.Unlock()
	if h := t.hosts[key]; h != nil {
		return h
	}
	if len(t.hosts) >= endpointsMax {
		t.closeIdle()
		clear(t.hosts)
	}
	h := &fasthttp.HostClient{Addr: endpoint, IsTLS: scheme == "https", MaxConns: 4096, MaxConnWaitTimeout: dialMax,
		MaxIdleConnDuration: 30 * time.Second, MaxResponseBodySize: t.bodyMax, NoDefaultUserAgentHeader: true,
		DisablePathNormalizing: true, MaxIdemponentCallAttempts: 1,
		RetryIfErr: func(*fasthttp.Request, int, error) (bool, bool) { return false, false },
		Dial:       t.openService}
	if h.IsTLS {
		h.Dial = t.open
		name, _, _ := net.SplitHostPort(endpoint)
		h.TLSConfig = &tls.Config{ServerName: name, MinVersion: tls.VersionTLS12}
	}
	t.hosts[key] = h
	return h
}

func (t *transport) closeIdle() {
	for _, h := range t.hosts {
		h.CloseIdleConnections()
	}
}

// CloseIdleConnections drops the connections that no call uses.
func (t *transport) CloseIdleConnections() {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.closeIdle()
}

// RoundTrip implements http.RoundTripper. It returns as soon as the request's context ends; the exchange itself ends
// at its deadline then.
func (t *transport) RoundTrip(r *http.Request) (*http.Response, error) {
	req, err := request(r)
	if err != nil {
		return nil, err
	}
	ctx := r.Context()
	deadline, bounded := ctx.Deadline()
	if !bounded {
		deadline = time.Now().Add(time.Minute)
	}
	res, done := fasthttp.AcquireResponse(), make(chan error, 1)
	host := t.host(r.URL.Scheme, r.URL.Host)
	go func() { done <- do(host, req, res, deadline) }()
	select {
	case err = <-done:
	case <-ctx.Done():
		return nil, context.Cause(ctx)
	}
	defer fasthttp.ReleaseRequest(req)
	defer fasthttp.ReleaseResponse(res)
	if err != nil {
		return nil, t.explain(err, res, bounded)
	}
	return &http.Response{StatusCode: res.StatusCode(), Header: headerOf(res),
		Body: io.NopCloser(bytes.NewReader(bytes.Clone(res.Body())))}, nil
}

// exchange makes one exchange for a door, in the goroutine of the call: it ends at the context's deadline, or when the
// transport is closed.
func (t *transport) exchange(ctx context.Context, u *url.URL, d *interceptor.Direct) (*interceptor.Reply, error) {
	req, res := fasthttp.AcquireRequest(), fasthttp.AcquireResponse()
	defer fasthttp.ReleaseRequest(req)
	defer fasthttp.ReleaseResponse(res)
	req.URI().DisablePathNormalizing = true
	req.Header.SetMethod(d.Method)
	req.SetRequestURI(d.URL)
	req.UseHostHeader = true
	req.Header.SetHost(u.Host)
	for name, values := range d.Header {
		for _, v := range values {
			req.Header.Add(name, v)
		}
	}
	req.SetBodyRaw(d.Body)
	deadline, bounded := ctx.Deadline()
	if !bounded {
		deadline = time.Now().Add(time.Minute)
	}
	if err := do(t.host(u.Scheme, withPort(u)), req, res, deadline); err != nil {
		return nil, t.explain(err, res, bounded)
	}
	return &interceptor.Reply{Status: res.StatusCode(), Header: headerOf(res), Body: bytes.Clone(res.Body())}, nil
}

// do makes one exchange, on a kept connection that is still good or on a new one.
func do(h *fasthttp.HostClient, req *fasthttp.Request, res *fasthttp.Response, deadline time.Time) error {
	for {
		// Each try takes another connection out of the pool, so this ends.
		if err := h.DoDeadline(req, res, deadline); !errors.Is(err, errStale) {
			return err
		}
	}
}

// explain gives errors of fasthttp the words of this package.
func (t *transport) explain(err error, res *fasthttp.Response, bounded bool) error {
	switch {
	case errors.Is(err, fasthttp.ErrTimeout) && bounded:
		return context.DeadlineExceeded
	case errors.Is(err, fasthttp.ErrBodyTooLarge):
		return fmt.Errorf("answered %d: the answer has more than %d bytes", res.StatusCode(), t.bodyMax)
	}
	return err
}

// request copies what the caller's request says, byte for byte where it matters: the path stays as it is encoded.
func request(r *http.Request) (*fasthttp.Request, error) {
	var body []byte
	if r.Body != nil {
		var err error
		if body, err = io.ReadAll(r.Body); err != nil {
			return nil, err
		}
	}
	req := fasthttp.AcquireRequest()
	req.URI().DisablePathNormalizing = true
	req.Header.SetMethod(r.Method)
	target := r.URL.Opaque
	if r.URL.RawQuery != "" {
		target += "?" + r.URL.RawQuery
	}
	req.SetRequestURI(r.URL.Scheme + "://" + r.URL.Host + target)
	req.UseHostHeader = true
	req.Header.SetHost(r.Host)
	for name, values := range r.Header {
		for _, v := range values {
			req.Header.Add(name, v)
		}
	}
	req.SetBody(body)
	return req, nil
}

func headerOf(res *fasthttp.Response) http.Header {
	h := http.Header{}
	for name, value := range res.Header.All() {
		h.Add(string(name), string(value))
	}
	return h
}
