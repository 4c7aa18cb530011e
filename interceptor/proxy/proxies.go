package proxy

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"net"
	"strings"
	"sync/atomic"

	"txmesh/interceptor"
)

// Inbound is a reverse proxy to the application beside it. Create it with NewInbound; it is safe for many
// goroutines.
type Inbound struct{ srv *server }

// NewInbound returns a proxy for requests to the service, all sent to one endpoint. It opens no connection.
func NewInbound(o Options, service, endpoint string) (*Inbound, error) {
	srv, err := newFixed(o, interceptor.Inbound, service, []string{endpoint})
	if err != nil {
		return nil, fmt.Errorf("inbound proxy of %q: %w", service, err)
	}
	return &Inbound{srv}, nil
}

// Serve accepts connections until Shutdown, which makes it return nil. It closes the listener.
func (p *Inbound) Serve(l net.Listener) error { return p.srv.serve(l) }

// Shutdown closes idle connections, waits for running exchanges and closes. When ctx ends first, it cuts what
// still runs and says how much that was.
func (p *Inbound) Shutdown(ctx context.Context) error { return p.srv.shutdown(ctx) }

// Upstream is a listener that stands for one service which the application calls. It is safe for many goroutines.
type Upstream struct{ srv *server }

// NewUpstream returns a proxy for calls to the service. Endpoints take turns. An untagged request moves to the
// next endpoint when nothing of it was sent; a tagged one never does.
func NewUpstream(o Options, service string, endpoints []string) (*Upstream, error) {
	srv, err := newFixed(o, interceptor.Outbound, service, endpoints)
	if err != nil {
		return nil, fmt.Errorf("upstream %q: %w", service, err)
	}
	return &Upstream{srv}, nil
}

// Serve accepts connections until Shutdown, which makes it return nil. It closes the listener.
func (p *Upstream) Serve(l net.Listener) error { return p.srv.serve(l) }

// Shutdown is that of Inbound.
func (p *Upstream) Shutdown(ctx context.Context) error { return p.srv.shutdown(ctx) }

// fixed routes everything to the endpoints of one service, in turns.
type fixed struct {
	port      interceptor.Port
	endpoints []string
	turn      atomic.Uint32
}

func newFixed(o Options, d interceptor.Direction, service string, endpoints []string) (*server, error) {
	o, err := o.checked()
	if err := errors.Join(err, checkEndpoints(endpoints)); err != nil {
		return nil, err
	}
	return newServer(o, newTurns(d, service, endpoints)), nil
}

func newTurns(d interceptor.Direction, service string, endpoints []string) *fixed {
	return &fixed{port: interceptor.Port{Direction: d, Service: service}, endpoints: endpoints}
}

func (f *fixed) route(r *request) (target, *Error) {
	if string(r.head.method) == "CONNECT" {
		return target{}, refuse(faultConnect, "")
	}
	return f.next(), nil
}

func (f *fixed) routeTo(string) (target, *Error) { return f.next(), nil }

func (f *fixed) next() target {
	t := target{port: f.port, endpoints: f.endpoints}
	if n := len(f.endpoints); n > 1 {
		t.at = int((f.turn.Add(1) - 1) % uint32(n))
	}
	t.port.Endpoint = f.endpoints[t.at]
	return t
}

// Route says which service a host name of the forward proxy stands for, and where it is.
type Route struct {
	Host      string // as clients write it, with a port if it is not 80
	Service   string // namespace/name
	Endpoints []string
}

// Forward is a proxy for clients that are told to use one (HTTP_PROXY). It is safe for many goroutines.
type Forward struct{ srv *server }

// NewForward returns a forward proxy. Hosts that no route names are called by their own name, without a service.
// Two routes that claim one host are an error.
func NewForward(o Options, routes []Route) (*Forward, error) {
	o, err := o.checked()
	errs := []error{err}
	byHost := make(map[string]*fixed, len(routes))
	for _, r := range routes {
		host := hostKey(r.Host)
		if other := byHost[host]; other != nil {
			errs = append(errs, fmt.Errorf("host %q is claimed by %q and by %q: name it once", r.Host, other.port.Service, r.Service))
		}
		if err := checkEndpoints(r.Endpoints); err != nil {
			errs = append(errs, fmt.Errorf("route of host %q: %w", r.Host, err))
		}
		if r.Host == "" {
			errs = append(errs, fmt.Errorf("route of service %q has no host", r.Service))
		}
		byHost[host] = newTurns(interceptor.Outbound, r.Service, r.Endpoints)
	}
	if err := errors.Join(errs...); err != nil {
		return nil, fmt.Errorf("forward proxy: %w", err)
	}
	return &Forward{newServer(o, hosts(byHost))}, nil
}

// Serve accepts connections until Shutdown, which makes it return nil. It closes the listener.
func (p *Forward) Serve(l net.Listener) error { return p.srv.serve(l) }

// Shutdown is that of Inbound. Tunnels count as running exchanges.
func (p *Forward) Shutdown(ctx context.Context) error { return p.srv.shutdown(ctx) }

// hosts routes by the host that the request line names.
type hosts map[string]*fixed

// hostKey is a host as the map has it: lower case, without the port of http.
func hostKey(host string) string {
	return strings.TrimSuffix(strings.ToLower(host), ":80")
}

func (h hosts) route(r *request) (target, *Error) {
	if string(r.head.method) == "CONNECT" {
		return h.find(string(r.head.target), "")
	}
	authority, rest, ok := absolute(r.head.target)
	if !ok {
		return target{}, refuse(faultForm, "request target "+quoted(r.head.target))
	}
	if !equalFold(r.head.target[:bytes.Index(r.head.target, []byte("://"))], "http") {
		return target{}, refuse(faultScheme, "request target "+quoted(r.head.target))
	}
	if bytes.IndexByte(authority, '@') >= 0 {
		return target{}, refuse(faultHost, "host with user information")
	}
	t, err := h.find(string(authority), "80")
	if err != nil {
		return target{}, err
	}
	r.originForm(authority, rest)
	return t, nil
}

func (h hosts) routeTo(authority string) (target, *Error) { return h.find(authority, "80") }

// find returns the route of a host, or the host itself. Without a default, the port must be there.
func (h hosts) find(authority, port string) (target, *Error) {
	if f := h[hostKey(authority)]; f != nil {
		return f.next(), nil
	}
	endpoint := authority
	if port != "" && !hasPort(authority) {
		endpoint = strings.TrimSuffix(authority, ":") + ":" + port
	}
	if err := checkEndpoint(endpoint); err != nil {
		return target{}, &Error{fault: faultHost, detail: err.Error()}
	}
	return target{port: interceptor.Port{Direction: interceptor.Outbound, Endpoint: endpoint}}, nil
}

func hasPort(authority string) bool {
	i := strings.LastIndexByte(authority, ':')
	return i >= 0 && i+1 < len(authority) && i > strings.LastIndexByte(authority, ']')
}

// originForm makes the request one to the origin server: the path in its first line, the host in Host.
func (r *request) originForm(authority, rest []byte) {
	h := &r.head
	switch {
	case len(rest) == 0 && string(h.method) == "OPTIONS":
		rest = []byte("*")
	case len(rest) == 0 || rest[0] != '/':
		rest = append([]byte("/"), rest...)
	}
	if i := bytes.IndexByte(rest, '#'); i >= 0 {
		rest = rest[:i]
	}
	version := h.raw[h.lineEnd-len("HTTP/1.1") : h.lineEnd]
	h.start = bytes.Join([][]byte{h.method, rest, version}, []byte(" "))
	h.target = h.start[len(h.method)+1 : len(h.method)+1+len(rest)]
	if host := h.get("host"); !bytes.Equal(host, authority) {
		h.set("Host", string(authority))
	}
}
