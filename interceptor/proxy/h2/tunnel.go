package h2

import (
	"context"
	"strconv"
	"strings"
	"time"

	"golang.org/x/net/http2"
	"golang.org/x/net/http2/hpack"
)

// tunnel is what a CONNECT asks for.
type tunnel uint8

const (
	noTunnel tunnel = iota
	webSocket
	blind // a plain CONNECT: nothing in it is seen by the Gate
)

// asTunnel takes a CONNECT for what it is. One for a WebSocket becomes the request for an upgrade that HTTP/1.1 knows: the
// Gate, the policies and an endpoint of HTTP/1.1 see both alike.
func (s *stream) asTunnel() *Failure {
	switch protocol := s.head.get(":protocol"); {
	case s.head.find(":protocol", 0) < 0:
		s.tunnel = blind
	case strings.EqualFold(protocol, "websocket"):
		s.tunnel = webSocket
		s.head = s.head.without(":protocol").with(":method", "GET")
		s.head = append(s.head, hpack.HeaderField{Name: "upgrade", Value: "websocket"})
		s.pseudo--
	default:
		return &Failure{Code: CodeConnect, Detail: "protocol " + strconv.QuoteToASCII(protocol)}
	}
	s.head = s.head.without("content-length") // what follows is no body
	return nil
}

// wire is the head as an endpoint of HTTP/2 gets it.
func (s *stream) wire() fieldList {
	if s.tunnel != webSocket {
		return s.head
	}
	h := fieldList{{Name: ":method", Value: "CONNECT"}, {Name: ":protocol", Value: "websocket"}}
	for _, f := range s.head {
		if f.Name != ":method" && f.Name != "upgrade" {
			h = append(h, f)
		}
	}
	return h
}

// way returns a connection to the endpoint that takes the request. A WebSocket leaves as HTTP/2 only where the endpoint has
// announced RFC 8441.
func (s *stream) way(ctx context.Context, endpoint string, t terms) (*link, *Failure) {
	if s.tunnel == noTunnel || s.tunnel == webSocket && s.srv.tunnels(endpoint, t) {
		return s.srv.pool.get(ctx, endpoint, t)
	}
	ctx, cancel := context.WithTimeout(ctx, t.over(&s.srv.opts.Limits).connect)
	defer cancel()
	conn, err := s.srv.opts.DialPlain(ctx, "tcp", endpoint)
	if err != nil {
		return nil, &Failure{Code: CodeUnreachable, Endpoint: endpoint, Cause: err}
	}
	return newPlain(s, conn, endpoint).link, nil
}

// tunnels reports that the endpoint speaks HTTP/2 and takes WebSockets there.
func (s *Server) tunnels(endpoint string, t terms) bool {
	if !s.speaks(endpoint, t) {
		return false
	}
	s.pool.mu.Lock()
	defer s.pool.mu.Unlock()
	links := s.pool.host(endpoint).links
	for _, u := range links {
		u.mu.Lock()
		extends := u.extends
		u.mu.Unlock()
		if !extends {
			return false
		}
	}
	return len(links) > 0
}

// flow lets go what the client has sent before the tunnel was open, and watches over it from now on. Called with mu held.
func (s *stream) flow(b *batch) {
	s.toUp.held = false
	s.toUp.seen, s.toDown.seen = -1, -1
	s.timer = time.AfterFunc(s.srv.opts.Limits.WriteIdle, s.watch)
	s.toUp.pump(b)
}

// watch ends a tunnel of which a side takes nothing of what waits for it. It comes once in that time, so that up to twice
// as much may pass.
func (s *stream) watch() {
	var b batch
	defer b.flush()
	s.mu.Lock()
	defer s.mu.Unlock()
	switch {
	case s.timer == nil:
	case s.toUp.stands():
		s.fail(&Failure{Code: CodeTime, Endpoint: s.target.Port.Endpoint, Sent: true, reset: http2.ErrCodeConnect}, &b)
	case s.toDown.stands():
		s.fail(&Failure{Code: CodeStalled, Sent: true, reset: http2.ErrCodeCancel}, &b)
	default:
		s.timer.Reset(s.srv.opts.Limits.WriteIdle)
	}
}

// stands reports that something has waited since the last time it was asked, and nothing of it has left.
func (d *pipe) stands() bool {
	waits := len(d.waiting())
	sent := d.total - int64(waits)
	still := waits > 0 && d.seen == sent
	if d.seen = sent; waits == 0 {
		d.seen = -1
	}
	return still
}
