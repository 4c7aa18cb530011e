package sidecar

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"strconv"
	"time"

	"txmesh/interceptor"
	"txmesh/interceptor/proxy"
	"txmesh/interceptor/raw"
	"txmesh/interceptor/redirect"
)

// Redirect is transparent mode: connections that the firewall turns to this sidecar.
type Redirect struct {
	Outbound, Inbound string // host:port; empty: off
	Mark              uint32 // of all connections of this sidecar; 0: none
	LookAtAll         bool   // not only at what policies name
	DetectTime        time.Duration
}

func redirectKeys() []key {
	return []key{
		{name: "transparent-outbound", kind: address, doc: "where the application's connections arrive that the firewall redirects, see docs/guide/transparent.md; `txmesh-sidecar redirect` makes the rules. Linux only"},
		{name: "transparent-inbound", kind: address, doc: "where connections to the application arrive that the firewall redirects: those to its port go through the Gate, all others pass as bytes"},
		{name: "mark", kind: text, doc: "mark (SO_MARK) of all connections of this sidecar, by which rules exclude them where its user id cannot; needs CAP_NET_ADMIN. A number, or one as 0x1ca9"},
		{name: "detect", kind: word, def: "named", words: []string{"named", "all"}, doc: "which redirected connections of the application are looked at, whether they speak HTTP. named: those to ports that a policy names, all others pass as bytes; all: every one, so that the application's own tx- headers count everywhere"},
		{name: "detect-time", kind: duration, def: "200ms", doc: "how long a redirected connection that is looked at may be silent before the server is connected, so that it can speak first"},
		{name: "raw-idle", kind: duration, def: "24h", doc: "how long a connection that passes as bytes may be silent in both directions"},
	}
}

func (p *problems) redirect(one func(string) string) Redirect {
	r := Redirect{Outbound: p.address("transparent-outbound", one("transparent-outbound"), false), Inbound: p.address("transparent-inbound", one("transparent-inbound"), false),
		LookAtAll: p.word("detect", one("detect")) == "all", DetectTime: p.duration("detect-time", one("detect-time"))}
	if m := one("mark"); m != "" {
		mark, err := strconv.ParseUint(m, 0, 32)
		if err != nil || mark == 0 {
			p.add("mark", m, "is not a mark", "write a number from 1 to 0xffffffff, for example 0x1ca9")
		}
		r.Mark = uint32(mark)
	}
	if err := redirect.Supported(); err != nil && (r.Outbound != "" || r.Inbound != "") {
		p.add("transparent-outbound", r.Outbound, err.Error(), "leave out transparent-outbound and transparent-inbound")
	}
	return r
}

// openRedirect opens the ports of transparent mode.
func (s *Sidecar) openRedirect(p *ports, opt proxy.Options, in *proxy.Inbound) error {
	if r := s.cfg.Redirect; r.Outbound != "" {
		opt.Dial, opt.DialHTTP2 = s.dialOnward, s.dialOnwardHTTP2
		http, err := proxy.NewRedirected(opt)
		if err != nil {
			return err
		}
		o := s.taking(interceptor.Outbound)
		o.Route = s.routeOut
		if err := s.openTaker(p, o, "transparent outbound", r.Outbound, interceptor.Outbound, http, http); err != nil {
			return err
		}
	}
	if r := s.cfg.Redirect; r.Inbound != "" {
		o := s.taking(interceptor.Inbound)
		o.Route = s.routeIn
		// The port of in is open for others as well, and closes by itself.
		return s.openTaker(p, o, "transparent inbound", r.Inbound, interceptor.Inbound, secured{in, s}, nil)
	}
	return nil
}

func (s *Sidecar) openTaker(p *ports, o redirect.Options, name, address string, d interceptor.Direction, http interface{ Serve(net.Listener) error }, end forwarder) error {
	bytes, err := s.newRaw(d, s.dialOnward)
	if err != nil {
		return err
	}
	t, err := newTaker(o, http, end, bytes, func(c net.Conn, endpoint string) { bytes.Pass(c, []string{endpoint}) })
	if err != nil {
		return err
	}
	p.taken[d], err = p.open(name, address, t.Serve, t.Shutdown)
	return err
}

// secured is the proxy before the application with the TLS of its port.
type secured struct {
	in *proxy.Inbound
	s  *Sidecar
}

// Serve is that of the proxy.
func (p secured) Serve(l net.Listener) error { return p.in.Serve(p.s.securedServices(l)) }

// taking is what both directions have in common.
func (s *Sidecar) taking(d interceptor.Direction) redirect.Options {
	return redirect.Options{Log: s.log, Guard: &s.guard, Own: s.ownPort(d), Dial: s.dialOnward, DetectTime: s.cfg.Redirect.DetectTime,
		Conns: s.cfg.MaxConnections, Took: func(w redirect.Way) { s.metrics.redirected[d][w].Inc(1) }}
}

// routeOut says what is known of where the application connects to.
func (s *Sidecar) routeOut(dst netip.AddrPort) redirect.Route {
	service, protocol := s.services.at(dst)
	if service == "" {
		service = s.directory.ServiceAt(dst.String())
	}
	set := s.Current()
	named := s.cfg.Redirect.LookAtAll || protocol == "http" || service != "" && set.Names(service, "") || set.NamesPort(dst.Port())
	return redirect.Route{Endpoint: dst.String(), Service: service, Named: named && protocol != "tcp"}
}

// routeIn sends what comes for the application to the Gate, and all else on.
func (s *Sidecar) routeIn(dst netip.AddrPort) redirect.Route {
	http := dst.Port() == portOf(s.cfg.App) || dst.Port() == addrPortOf(s.ports.inbound).Port()
	return redirect.Route{Endpoint: dst.String(), Service: s.cfg.Service, HTTP: http}
}

// ownPort tells which destinations are ports of this sidecar that a redirected connection must not reach: outbound those
// that redirected ones arrive at, inbound all but the one before the application, for they would seem to come from here.
func (s *Sidecar) ownPort(d interceptor.Direction) func(netip.AddrPort) bool {
	return func(dst netip.AddrPort) bool {
		own := s.ports.taken[:]
		if d == interceptor.Inbound {
			own = append([]net.Listener{s.ports.peer, s.ports.api, s.ports.outbound, s.ports.dtm, s.ports.dtmGRPC}, own...)
			for _, l := range s.ports.upstreams {
				own = append(own, l)
			}
		}
		for _, l := range own {
			if l != nil && addrPortOf(l).Port() == dst.Port() && isLocal(dst.Addr()) {
				return true
			}
		}
		return false
	}
}

func addrPortOf(l net.Listener) netip.AddrPort {
	if t, ok := l.Addr().(*net.TCPAddr); ok {
		return t.AddrPort()
	}
	return netip.AddrPort{}
}

func portOf(address string) uint16 {
	_, port, _ := net.SplitHostPort(address) // it was checked
	n, _ := strconv.ParseUint(port, 10, 16)
	return uint16(n)
}

// isLocal reports whether an address is one of this host.
func isLocal(a netip.Addr) bool {
	if a.IsLoopback() {
		return true
	}
	addrs, err := net.InterfaceAddrs()
	if err != nil {
		return true // rather refused than served in circles
	}
	for _, x := range addrs {
		if p, err := netip.ParsePrefix(x.String()); err == nil && p.Addr().Unmap() == a {
			return true
		}
	}
	return false
}

// taker is a redirect.Server and what serves the connections that it takes.
type taker struct {
	server *redirect.Server
	queue  *redirect.Queue
	http   interface{ Serve(net.Listener) error }
	end    forwarder // http, if it ends with the taker; nil: it does not
	bytes  *raw.Proxy
}

func newTaker(o redirect.Options, http interface{ Serve(net.Listener) error }, end forwarder, bytes *raw.Proxy, pass func(net.Conn, string)) (*taker, error) {
	t := &taker{http: http, end: end, bytes: bytes, queue: redirect.NewQueue(new(net.TCPAddr))}
	o.HTTP, o.Raw, o.Join = t.queue.Put, pass, bytes.Join
	var err error
	t.server, err = redirect.New(o)
	return t, err
}

// Serve implements forwarder.
func (t *taker) Serve(l net.Listener) error {
	served := make(chan error, 1)
	go func() { served <- t.http.Serve(t.queue) }()
	err := t.server.Serve(l)
	if err != nil {
		err = errors.Join(err, t.queue.Close())
	}
	if httpErr := <-served; !errors.Is(httpErr, net.ErrClosed) {
		err = errors.Join(err, httpErr)
	}
	return err
}

// Shutdown implements forwarder.
func (t *taker) Shutdown(ctx context.Context) error {
	errs := []error{t.server.Shutdown(ctx), t.queue.Close()}
	if t.end != nil {
		errs = append(errs, t.end.Shutdown(ctx))
	}
	if err := t.bytes.Shutdown(ctx); err != nil {
		errs = append(errs, fmt.Errorf("raw connections: %w", err))
	}
	return errors.Join(errs...)
}
