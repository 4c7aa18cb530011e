package sidecar

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/http"
	"sync"
	"time"

	"txmesh/interceptor"
	"txmesh/interceptor/proxy"
	"txmesh/sidecar/httpd"
	"txmesh/sidecar/identity"
	"txmesh/sidecar/peer"
)

// Addresses is where a running sidecar listens. It is printed as one line of JSON when the sidecar is ready.
type Addresses struct {
	Ready    bool   `json:"ready"`
	Owner    string `json:"owner"`
	Service  string `json:"service"`
	Inbound  string `json:"inbound,omitempty"`
	Outbound string `json:"outbound,omitempty"`

	TransparentOutbound string `json:"transparent_outbound,omitempty"`
	TransparentInbound  string `json:"transparent_inbound,omitempty"`

	API       string            `json:"api"`
	Peer      string            `json:"peer"`
	DTM       string            `json:"dtm,omitempty"`
	DTMGRPC   string            `json:"dtm_grpc,omitempty"`
	Upstreams map[string]string `json:"upstreams"`
	TokenFile string            `json:"token_file"`
}

// port is one listener with what serves it.
type port struct {
	name     string
	listener net.Listener
	serve    func(net.Listener) error
	shutdown func(context.Context) error
}

// ports are the listeners, in the order in which they close: those for callers first, those for peers last.
type ports struct {
	all       []port
	inbound   net.Listener
	outbound  net.Listener
	taken     [2]net.Listener // by transparent mode, by direction
	api, peer net.Listener
	dtm       net.Listener
	dtmGRPC   net.Listener
	upstreams map[string]net.Listener
}

// bind opens all listeners, or none.
func (s *Sidecar) bind() error {
	p := &s.ports
	p.upstreams = map[string]net.Listener{}
	err := s.bindAll(p)
	if err == nil && p.peer == nil {
		err = s.bindPeer()
	}
	if last := len(p.all) - 1; err == nil && p.all[0].listener == p.peer {
		p.all = append(p.all[1:last+1:last+1], p.all[0])
	}
	if err != nil {
		for _, l := range p.all {
			err = errors.Join(err, l.listener.Close())
		}
		return err
	}
	inbound := s.cfg.Advertise
	if inbound == "" && p.inbound != nil {
		inbound = p.inbound.Addr().String()
	}
	s.directory.SetSelf(peer.Identity{Owner: s.owner, Incarnation: s.gate.Incarnation, Service: s.cfg.Service, Inbound: inbound, Home: s.sharedHome()})
	s.gate.PublicURL = "http://" + dialable(p.api.Addr())
	return nil
}

func (s *Sidecar) bindAll(p *ports) error {
	if !s.cfg.Alone() {
		if err := s.openProxies(p); err != nil {
			return err
		}
	}
	if s.cfg.DTM.Open() {
		if err := s.openDTM(p); err != nil {
			return err
		}
	}
	return s.openAPI(p)
}

// openAPI opens the port of the local API.
func (s *Sidecar) openAPI(p *ports) error {
	srv := httpd.New(httpd.Options{Handler: s.admin, Refuse: s.admin.Refuse, ConnContext: identity.WithConn, HeaderTime: serverHeaderTime,
		BodyTime: serverReadTime, Idle: serverIdle, HeaderBytes: serverHeaders, Log: s.log})
	serve := func(l net.Listener) error { return srv.Serve(s.secured(identity.Optional)(s.capped(crowded)(l))) }
	var err error
	p.api, err = p.open("api", s.cfg.API, serve, srv.Shutdown)
	return err
}

// bindPeer opens the port for other sidecars: before all others where a lease tells them its address.
func (s *Sidecar) bindPeer() error {
	// There is no time-out for writing: what is asked for may wait.
	srv := &http.Server{Handler: s.peers, ReadHeaderTimeout: serverHeaderTime, ReadTimeout: serverReadTime,
		IdleTimeout: serverIdle, MaxHeaderBytes: serverHeaders, ConnContext: identity.WithConn}
	serve := func(l net.Listener) error { return srv.Serve(s.securedPeers(s.capped(s.crowdedPeer())(l))) }
	var err error
	s.ports.peer, err = s.ports.open("peer", s.cfg.Peer, serve, srv.Shutdown)
	return err
}

// openProxies opens the ports of the data path.
func (s *Sidecar) openProxies(p *ports) error {
	opt := proxy.Options{Gate: counted{s.gate, s.metrics}, Log: s.log, Traffic: s.traffic, Limits: s.cfg.Limits, Refused: s.metrics.onRefusedCode}
	opt.Limits.Conns = s.cfg.MaxConnections
	opt.Dial = s.dial
	gated := opt
	gated.Dial = s.dialApp
	gated.Trusted = trusts(s.cfg.TrustedGateways)
	in, err := proxy.NewInbound(gated, s.cfg.Service, s.cfg.App)
	if err != nil {
		return err
	}
	serve := func(l net.Listener) error { return in.Serve(s.securedServices(l)) }
	if p.inbound, err = p.open("inbound", s.cfg.Inbound, serve, in.Shutdown); err != nil {
		return err
	}
	opt.Dial, opt.DialHTTP2 = s.dialService, s.dialHTTP2
	s.learn()
	var routes []proxy.Route
	for _, u := range s.cfg.Upstreams {
		if u.Host != "" {
			routes = append(routes, proxy.Route{Host: u.Host, Service: u.Service, Endpoints: u.To})
		}
		if u.Listen == "" {
			continue
		}
		up, err := s.newUpstream(opt, u)
		if err != nil {
			return err
		}
		if p.upstreams[u.Service], err = p.open("upstream "+u.Service, u.Listen, up.Serve, up.Shutdown); err != nil {
			return err
		}
	}
	if err := s.openRedirect(p, opt, in); err != nil {
		return err
	}
	if s.cfg.Outbound != "" {
		fw, err := proxy.NewForward(opt, routes)
		if err != nil {
			return err
		}
		if p.outbound, err = p.open("outbound", s.cfg.Outbound, fw.Serve, fw.Shutdown); err != nil {
			return err
		}
	}
	return nil
}

func (p *ports) open(name, address string, serve func(net.Listener) error, shutdown func(context.Context) error) (net.Listener, error) {
	l, err := net.Listen("tcp", address)
	if err != nil {
		return nil, fmt.Errorf("open %s port: %w", name, err)
	}
	p.all = append(p.all, port{name, l, serve, shutdown})
	return l, nil
}

// serve starts all ports. The channel gives the error of one that ends by itself.
func (s *Sidecar) serve() <-chan error {
	failed := make(chan error, len(s.ports.all))
	for _, p := range s.ports.all {
		s.serving.Go(func() {
			if err := p.serve(p.listener); err != nil && !errors.Is(err, http.ErrServerClosed) {
				failed <- fmt.Errorf("serve %s port: %w", p.name, err)
			}
		})
	}
	return failed
}

// shutdownMax bounds how long running exchanges may take once the grace period is over.
const shutdownMax = time.Second

// shutdown closes all ports at once. Exchanges that outlast it are cut; the engine goes before they are waited for,
// because their ends may wait for its transactions.
func (s *Sidecar) shutdown() error {
	ctx, cancel := context.WithTimeout(context.Background(), shutdownMax)
	defer cancel()
	errs := make([]error, len(s.ports.all)+1)
	var closing sync.WaitGroup
	for i, p := range s.ports.all {
		closing.Go(func() {
			if err := p.shutdown(ctx); err != nil {
				errs[i] = fmt.Errorf("close %s port: %w", p.name, err)
			}
		})
	}
	closed := make(chan struct{})
	go func() {
		closing.Wait()
		s.serving.Wait()
		close(closed)
	}()
	select {
	case <-closed:
	case <-ctx.Done():
	}
	s.caller.BreakOff() // the engine waits for its calls
	errs[len(errs)-1] = s.owners.Close()
	<-closed
	return errors.Join(errors.Join(errs...), s.handOver())
}

// handOver gives the journals of a shared store to those who come next. Nothing is served any more: a replica that finds
// a row of a call of this sidecar can believe that it runs no longer.
func (s *Sidecar) handOver() error {
	if !s.leased.Load() {
		return nil
	}
	ctx, cancel := context.WithTimeout(context.Background(), s.cfg.Lease)
	defer cancel()
	return s.keeper.HandOver(ctx)
}

func (s *Sidecar) addresses() Addresses {
	p := &s.ports
	a := Addresses{Ready: len(s.control.lacking()) == 0, Owner: s.owner, Service: s.cfg.Service,
		API: p.api.Addr().String(), Peer: p.peer.Addr().String(), Upstreams: map[string]string{}, TokenFile: s.tokenFile}
	for _, o := range []struct {
		to *string
		l  net.Listener
	}{{&a.Inbound, p.inbound}, {&a.Outbound, p.outbound},
		{&a.TransparentInbound, p.taken[interceptor.Inbound]}, {&a.TransparentOutbound, p.taken[interceptor.Outbound]}, {&a.DTM, p.dtm}, {&a.DTMGRPC, p.dtmGRPC}} {
		if o.l != nil {
			*o.to = o.l.Addr().String()
		}
	}
	for service, l := range p.upstreams {
		a.Upstreams[service] = l.Addr().String()
	}
	return a
}

// dialable is a bound address as this host can call it.
func dialable(a net.Addr) string {
	host, port, err := net.SplitHostPort(a.String())
	if ip := net.ParseIP(host); err == nil && ip != nil && ip.IsUnspecified() {
		return net.JoinHostPort("localhost", port)
	}
	return a.String()
}

// counted is the Gate, with what passes counted.
type counted struct {
	gate    *interceptor.Gate
	metrics *metrics
}

// Before implements proxy.Gate.
func (c counted) Before(ctx context.Context, p interceptor.Port, r interceptor.Request) interceptor.Verdict {
	v := c.gate.Before(ctx, p, r)
	c.metrics.requests[p.Direction][index(v.Ticket != nil || v.Answer != nil)].Inc(1)
	return v
}

// Concerns implements h2.Concerner.
func (c counted) Concerns(p interceptor.Port, r interceptor.Request) bool {
	return c.gate.Concerns(p, r)
}

// After implements proxy.Gate.
func (c counted) After(ctx context.Context, t *interceptor.Ticket, res interceptor.Response, err error) *interceptor.Answer {
	return c.gate.After(ctx, t, res, err)
}
