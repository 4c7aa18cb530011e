package proxy

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"net"
	"strings"

	"txmesh/interceptor"
	"txmesh/interceptor/traffic"
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

// NewUpstream returns a proxy for calls to the service. Without endpoints, whoever gave Options.Traffic sets them there.
// The least busy endpoint is taken, or what a
// TrafficPolicy says. An untagged request moves to the next one when nothing of it was sent; a tagged one never does.
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

// fixed routes everything to the endpoints of one service.
type fixed struct {
	port    interceptor.Port
	cluster *traffic.Cluster
}

func newFixed(o Options, d interceptor.Direction, service string, endpoints []string) (*server, error) {
	learning := o.Traffic != nil && d == interceptor.Outbound && len(endpoints) == 0
	o, err := o.checked()
	if !learning {
		err = errors.Join(err, checkEndpoints(endpoints))
	}
	if err != nil {
		return nil, err
	}
	f := &fixed{port: interceptor.Port{Direction: d, Service: service}}
	if d == interceptor.Inbound {
		f.port.Endpoint, f.cluster = endpoints[0], o.Traffic.Own(service, endpoints[0])
	} else {
		f.cluster = o.Traffic.Service(service, endpoints)
	}
	return newServer(o, f), nil
}

func (f *fixed) route(r *request) (target, *Error) {
	if string(r.head.method) == "CONNECT" {
		return f.connectTo("")
	}
	return f.target(), nil
}

func (f *fixed) routeTo(string) (target, *Error) { return f.target(), nil }

func (f *fixed) connectTo(string) (target, *Error) { return target{}, refuse(faultConnect, "") }

func (f *fixed) target() target { return target{port: f.port, cluster: f.cluster} }

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
	learning := o.Traffic != nil
	o, err := o.checked()
	errs := []error{err}
	byHost := make(map[string]*fixed, len(routes))
	for _, r := range routes {
		host := hostKey(r.Host)
		if other := byHost[host]; other != nil {
			errs = append(errs, fmt.Errorf("host %q is claimed by %q and by %q: name it once", r.Host, other.port.Service, r.Service))
		}
		if err := checkEndpoints(r.Endpoints); err != nil && !(learning && len(r.Endpoints) == 0) {
			errs = append(errs, fmt.Errorf("route of host %q: %w", r.Host, err))
		}
		if r.Host == "" {
			errs = append(errs, fmt.Errorf("route of service %q has no host", r.Service))
		}
		byHost[host] = &fixed{interceptor.Port{Direction: interceptor.Outbound, Service: r.Service}, o.Traffic.Service(r.Service, r.Endpoints)}
	}
	if err := errors.Join(errs...); err != nil {
		return nil, fmt.Errorf("forward proxy: %w", err)
	}
	return &Forward{newServer(o, &hosts{byHost, o.Traffic})}, nil
}

// Serve accepts connections until Shutdown, which makes it return nil. It closes the listener.
func (p *Forward) Serve(l net.Listener) error { return p.srv.serve(l) }

// Shutdown is that of Inbound. Tunnels count as running exchanges.
func (p *Forward) Shutdown(ctx context.Context) error { return p.srv.shutdown(ctx) }

// hosts routes by the host that the request line names.
type hosts struct {
	byName  map[string]*fixed
	traffic *traffic.Clusters // of all others
}

// hostKey is a host as the map has it: lower case, without the port of http.
func hostKey(host string) string {
	return strings.TrimSuffix(strings.ToLower(host), ":80")
}

func (h *hosts) route(r *request) (target, *Error) {
	if string(r.head.method) == "CONNECT" {
		return h.connectTo(string(r.head.target))
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

func (h hosts) connectTo(authority string) (target, *Error) { return h.find(authority, "") }

// find returns the route of a host, or the host itself. Without a default, the port must be there.
func (h *hosts) find(authority, port string) (target, *Error) {
	if f := h.byName[hostKey(authority)]; f != nil {
		return f.target(), nil
	}
	endpoint := authority
	if port != "" && !hasPort(authority) {
		endpoint = strings.TrimSuffix(authority, ":") + ":" + port
	}
	if err := checkEndpoint(endpoint); err != nil {
		return target{}, &Error{fault: faultHost, detail: err.Error()}
	}
	return target{interceptor.Port{Direction: interceptor.Outbound, Endpoint: endpoint}, h.traffic.Host(endpoint)}, nil
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
