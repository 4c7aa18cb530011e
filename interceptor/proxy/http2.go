package proxy

import (
	"encoding/base64"
	"errors"
	"slices"
	"strings"
	"time"

	"golang.org/x/net/http2/hpack"

	"txmesh/interceptor"
	"txmesh/interceptor/proxy/h2"
	"txmesh/interceptor/traffic"
)

// newHTTP2 makes the part that carries HTTP/2 for the same proxy.
func newHTTP2(s *server) *h2.Server {
	l := s.opts.Limits
	return h2.New(h2.Options{
		Gate: s.opts.Gate, Log: s.opts.Log, Dial: s.opts.DialHTTP2, DialPlain: s.opts.Dial, Explain: explain, Refused: s.opts.Refused,
		NoPlace: func(service string, err error) *h2.Failure { return noPlace(service, err).failure() },
		Judge:   ofStatus,
		Limits: h2.Limits{
			HeaderBytes: l.HeaderBytes, HeaderFields: l.HeaderFields, BodyBytes: l.BodyBytes, HeaderTime: l.HeaderTime,
			BufferTime: l.BufferTime, WriteIdle: l.WriteIdle, Idle: l.Idle, EndpointIdle: l.EndpointIdle, DialTime: l.DialTime, Exchange: l.Exchange,
			Streams: l.Streams, EndpointConns: l.EndpointConns, EndpointQueue: l.EndpointQueue, PingAfter: l.PingAfter,
		},
	})
}

func (s *session) routeHTTP2(authority string) (h2.Target, *h2.Failure) {
	return onHTTP2(s.router.routeTo(authority))
}

func (s *session) connectHTTP2(authority string) (h2.Target, *h2.Failure) {
	return onHTTP2(s.router.connectTo(authority))
}

func onHTTP2(t target, err *Error) (h2.Target, *h2.Failure) {
	if err != nil {
		return h2.Target{}, err.failure()
	}
	return h2.Target{Port: t.port, Cluster: t.cluster}, nil
}

// failure is an error of which nothing was sent, as HTTP/2 has it.
func (e *Error) failure() *h2.Failure {
	return &h2.Failure{Code: e.Code(), Endpoint: e.Endpoint, Detail: e.detail, Cause: e.cause}
}

// explain makes the error of this package of a failure of HTTP/2.
func explain(f h2.Failure) (error, *interceptor.Answer) { //nolint:staticcheck // the error is what it is about
	i := slices.IndexFunc(Codes(), func(c Code) bool { return c.Code == f.Code })
	if i < 0 {
		panic("failure of HTTP/2 with a code that is not in the table: " + f.Code)
	}
	e := &Error{Endpoint: f.Endpoint, fault: fault(i), sent: f.Sent, detail: f.Detail, cause: f.Cause}
	switch {
	case errors.Is(f.Cause, ErrLoop):
		e.fault, e.cause = faultLoop, nil
	case e.fault == faultClientGone:
		e.cause = errors.Join(errClientGone, f.Cause)
	}
	return e, e.answer()
}

// serveHTTP2 hands the connection over, with the bytes that were read from it.
func (s *session) serveHTTP2(up *h2.Upgrade) {
	writeUntil(s.conn, time.Time{}) // it sets its own
	who := h2.Client{Trusted: s.trusted, Caller: s.caller(), Route: s.routeHTTP2, Connect: s.connectHTTP2}
	c := s.srv.h2.NewConn(s.conn, s.in.buffered(), who, up)
	s.in.release()
	s.idle.Store(false)
	s.h2.Store(c)
	if s.srv.draining() {
		c.Drain()
	}
	if s.srv.killed.Load() {
		c.Cut()
	}
	c.Serve()
}

// upgradeHTTP2 returns the request as HTTP/2 has it if its client asked for h2c and the endpoint speaks that: clients
// offer it to everybody, and the protocol is kept. A request with a body goes on as HTTP/1.1.
func (s *session) upgradeHTTP2(t target) *h2.Upgrade {
	h := &s.req.head
	if !h.upgrading || h.minor == 0 || !s.req.body.done || !hasToken(h.get("upgrade"), "h2c") {
		return nil
	}
	i := h.find("http2-settings", 0)
	if i < 0 || h.find("http2-settings", i+1) >= 0 {
		return nil
	}
	settings, err := base64.RawURLEncoding.DecodeString(strings.TrimRight(string(h.valueOf(&h.fields[i])), "="))
	if err != nil || len(settings)%6 != 0 {
		return nil
	}
	endpoint := t.port.Endpoint
	if t.cluster != nil {
		lease, err := t.cluster.TryPick(traffic.Ask{Method: s.req.Method(), Path: s.req.Path()})
		if err != nil {
			return nil
		}
		endpoint = lease.Endpoint()
		lease.Done() // stream 1 asks for one of its own
	}
	if !s.srv.h2.Speaks(endpoint) {
		return nil
	}
	h.drop("http2-settings", 0)
	h.cleanRequest() // h2c is never passed on
	return &h2.Upgrade{Fields: s.req.fieldsHTTP2(), Settings: settings}
}

// fieldsHTTP2 is the head in the form of HTTP/2.
func (r *request) fieldsHTTP2() []hpack.HeaderField {
	path := string(r.pathAndQuery())
	if path == "" {
		path = "/"
	}
	fields := []hpack.HeaderField{
		{Name: ":method", Value: string(r.head.method)}, {Name: ":scheme", Value: "http"},
		{Name: ":authority", Value: r.Host()}, {Name: ":path", Value: path},
	}
	r.head.each(func(name, value string) {
		if name = strings.ToLower(name); name != "host" && nameOf([]byte(name)) != transferEncodingName {
			fields = append(fields, hpack.HeaderField{Name: name, Value: value})
		}
	})
	return fields
}
