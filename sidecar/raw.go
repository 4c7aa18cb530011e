package sidecar

import (
	"context"
	"net"
	"sync/atomic"

	"github.com/uber-go/tally/v4"

	"txmesh/interceptor"
	"txmesh/interceptor/proxy"
	"txmesh/interceptor/raw"
	"txmesh/interceptor/redirect"
)

// forwarder serves the connections of one listener.
type forwarder interface {
	Serve(l net.Listener) error
	Shutdown(ctx context.Context) error
}

// dial opens a connection of this sidecar. It is the one place that marks them and finds those that lead back.
func (s *Sidecar) dial(ctx context.Context, network, address string) (net.Conn, error) {
	if s.cfg.Redirect.Outbound == "" {
		return s.dialer.DialContext(ctx, network, address)
	}
	return s.guard.Dial(s.dialer.DialContext)(ctx, network, address)
}

// dial opens connections to endpoints.
type dial func(ctx context.Context, network, address string) (net.Conn, error)

// newRaw returns a proxy for bytes.
func (s *Sidecar) newRaw(d interceptor.Direction, to dial, endpoints ...string) (*raw.Proxy, error) {
	m := &s.metrics.raw[d]
	return raw.New(raw.Options{Log: s.log, Dial: to, Opened: m.opened, Ended: m.ended,
		Limits: raw.Limits{Conns: s.cfg.MaxConnections, Idle: s.cfg.RawIdle}}, endpoints...)
}

// newUpstream returns what serves the port of an upstream.
func (s *Sidecar) newUpstream(opt proxy.Options, u Upstream) (forwarder, error) {
	if u.Protocol == "tcp" {
		return s.newRaw(interceptor.Outbound, s.dialService, u.To...)
	}
	up, err := proxy.NewUpstream(opt, u.Service, u.To)
	if err != nil || u.Protocol != "auto" {
		return up, err
	}
	bytes, err := s.newRaw(interceptor.Outbound, s.dialService, u.To...)
	if err != nil {
		return nil, err
	}
	o := s.taking(interceptor.Outbound)
	o.Dial = s.dialService
	o.Fixed = func() redirect.Route {
		return redirect.Route{Endpoint: u.To[0], Named: s.Current().Names(u.Service, "")}
	}
	return newTaker(o, up, up, bytes, func(c net.Conn, _ string) { bytes.PassInTurn(c) })
}

// rawMetrics are the series of the connections of one direction.
type rawMetrics struct {
	open            tally.Gauge
	now             atomic.Int64
	ends            [raw.NumEnds]tally.Counter
	spliced, copied tally.Counter
}

func (m *rawMetrics) opened() { m.open.Update(float64(m.now.Add(1))) }

func (m *rawMetrics) ended(r raw.Report) {
	m.open.Update(float64(m.now.Add(-1)))
	m.ends[r.End].Inc(1)
	m.spliced.Inc(r.Sent + r.Received - r.Copied)
	m.copied.Inc(r.Copied)
}

// connections makes the series of connections that pass as bytes, or were redirected.
func (m *metrics) connections(tag func(kv ...string) tally.Scope) {
	for d, direction := range []string{"inbound", "outbound"} {
		r := &m.raw[d]
		r.open = tag("direction", direction).Gauge("raw_connections")
		for e := range raw.NumEnds {
			r.ends[e] = tag("direction", direction, "end", e.String()).Counter("raw_connections_total")
		}
		r.spliced = tag("direction", direction, "way", "spliced").Counter("raw_bytes_total")
		r.copied = tag("direction", direction, "way", "copied").Counter("raw_bytes_total")
		for w := range redirect.NumWays {
			m.redirected[d][w] = tag("direction", direction, "way", w.String()).Counter("redirected_total")
		}
	}
}
