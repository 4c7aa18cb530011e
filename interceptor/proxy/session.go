package proxy

import (
	"errors"
	"net"
	"sync/atomic"
	"time"

	"txmesh/interceptor"
	"txmesh/interceptor/proxy/h2"
	"txmesh/interceptor/socket"
	"txmesh/interceptor/traffic"
)

// lingerTime is how long a connection that must close is read, so that a reset does not overtake the last answer.
const lingerTime = 500 * time.Millisecond

// past is a deadline that wakes a blocked read.
func past() time.Time { return time.Unix(1, 0) }

// session is one client connection and the exchange that runs on it. Its goroutine reads from the upstream and
// writes to the client. While a request body streams, or after a while of waiting, a second goroutine (the
// uploader, upload.go) reads from the client and writes to the upstream; it is always stopped before the next step.
type session struct {
	srv    *server
	router router
	conn   net.Conn
	in     reader
	to     taker
	out    []byte // the next bytes to the client, or the request on its way out

	trusted bool // Port.Trusted

	req request
	res response

	ticket   *interceptor.Ticket // until After has been called
	outlive  bool
	deadline time.Time // of the exchange; zero: none
	up       *upstream
	lost     bool          // the client takes no more
	lease    traffic.Lease // of the endpoint, until its connection is given up
	whole    bool          // out and req.wire still hold all of the request
	stalled  *Error        // why, if it only stopped to read

	uploading chan struct{} // closed when the uploader has ended; nil: there is none
	uploaded  atomic.Bool   // the whole request body was sent
	finishing atomic.Int64  // the uploader shall end after the body, and by then (Unix, ns); 0: not yet
	bounded   bool          // up.conn may have a deadline of writes
	cause     atomic.Pointer[Error]

	idle atomic.Bool              // between requests: may be closed at any time
	live atomic.Pointer[upstream] // s.up, for cut
	h2   atomic.Pointer[h2.Conn]  // the connection has changed to HTTP/2
}

func newSession(srv *server, conn net.Conn) *session {
	router := srv.routerOf(conn)
	conn = socket.Quick(conn)
	s := &session{srv: srv, router: router, conn: conn, in: reader{conn: conn, pool: srv.bufs}, to: newTaker(conn, srv.opts.Limits.WriteIdle)}
	s.req.src, s.req.fill, s.req.tunes = &s.in, s.fillSlowly, s.welcomeBody
	s.res.fill = s.fillUp
	s.trusted = srv.opts.Trusted != nil && srv.opts.Trusted(conn.RemoteAddr())
	s.idle.Store(true)
	return s
}

// caller is who the client's certificate names, if the connection knows.
func (s *session) caller() string {
	if c, ok := s.conn.(interface{ Caller() string }); ok {
		return c.Caller()
	}
	return ""
}

// serve runs one exchange after the other.
func (s *session) serve() {
	defer s.srv.leave(s)
	for first := true; ; first = false {
		end, err := s.nextHead()
		if err != nil {
			s.req.head.method = nil // of the request before
			s.refuse(err)
			break
		}
		if first && end == len(h2.PrefaceHead) && string(s.in.buffered()[:end]) == h2.PrefaceHead {
			s.serveHTTP2(nil)
			return
		}
		keep := end > 0 && s.exchange(end)
		s.lease.Done()
		if !keep {
			break
		}
		if s.h2.Load() != nil {
			return
		}
	}
	s.conn.Close() // all that was written has been checked
	s.in.release()
}

// nextHead waits for a whole request head and returns its length, 0 if the connection is done.
func (s *session) nextHead() (int, *Error) {
	s.in.shrink()
	s.idle.Store(true)
	l := &s.srv.opts.Limits
	readUntil(s.conn, time.Now().Add(l.Idle))
	if s.srv.draining() {
		return 0, nil
	}
	seen, slow := 0, false
	for {
		s.skipEmptyLines(seen)
		p := s.in.buffered()
		end, at, err := headEnd(p, seen)
		if err != nil {
			return 0, err
		}
		if end > l.HeaderBytes || end == 0 && len(p) >= l.HeaderBytes {
			return 0, refuse(faultHeaderSize, "")
		}
		if end > 0 {
			s.idle.Store(false)
			return end, nil
		}
		seen = at
		if len(p) > 0 && !slow {
			slow = true
			readUntil(s.conn, time.Now().Add(l.HeaderTime))
			if s.srv.draining() {
				return 0, nil
			}
		}
		if len(p) == len(s.in.buf) {
			s.in.widen(2 * len(p))
		}
		if err := s.in.fill(); err != nil {
			if slow && isTimeout(err) && !s.srv.draining() {
				return 0, refuse(faultHeaderTime, "")
			}
			return 0, nil
		}
	}
}

// skipEmptyLines forgives the CRLF that old clients send after a body.
func (s *session) skipEmptyLines(seen int) {
	for p := s.in.buffered(); seen == 0 && len(p) >= 2 && p[0] == '\r' && p[1] == '\n'; p = s.in.buffered() {
		s.in.discard(2)
	}
}

// begin forgets the last exchange.
func (s *session) begin() {
	s.req.reset()
	s.res.reset()
	s.res.streamed = false
	s.ticket, s.outlive, s.deadline = nil, false, time.Time{}
	s.up, s.lost, s.stalled, s.bounded, s.whole = nil, false, nil, false, false
	s.uploaded.Store(false)
	s.finishing.Store(0)
	s.cause.Store(nil)
	if cap(s.out) > keptMax {
		s.out = nil
	}
}

// exchange answers one request and reports whether the connection can take another.
func (s *session) exchange(end int) bool {
	s.begin()
	err := parseRequest(&s.req.message, s.in.buffered()[:end], &s.srv.opts.Limits)
	s.in.discard(end)
	if err != nil {
		s.refuse(err)
		return false
	}
	t, err := s.router.route(&s.req)
	if err != nil {
		return s.reply(s.srv.count(err).answer())
	}
	if string(s.req.head.method) == "CONNECT" {
		return s.connect(t)
	}
	if up := s.upgradeHTTP2(t); up != nil {
		s.serveHTTP2(up)
		return true
	}
	s.req.head.cleanRequest()
	late := s.mayBeOp(&t)
	if !late {
		if err := s.choose(&t, false); err != nil {
			return s.reply(s.srv.count(err).answer())
		}
	}
	var v interceptor.Verdict
	if s.srv.opts.Gate != nil {
		t.port.Trusted, t.port.Caller = s.trusted, s.caller()
		v = s.srv.opts.Gate.Before(s.srv.ctx, t.port, &s.req)
	}
	if v.Answer != nil {
		s.lease.Done()
		return s.reply(v.Answer)
	}
	s.admit(v.Ticket, &t)
	if late {
		if err := s.choose(&t, v.Ticket != nil && v.Ticket.First); err != nil {
			return s.fail(err)
		}
	}
	return s.forward(t.port.Endpoint)
}

// admit takes over what the ticket says.
func (s *session) admit(ticket *interceptor.Ticket, t *target) {
	timeout := s.lease.Request()
	if timeout == 0 {
		timeout = s.srv.opts.Limits.Exchange
	}
	if ticket != nil {
		s.ticket, s.outlive = ticket, ticket.Outlive
		if ticket.Timeout > 0 {
			timeout = ticket.Timeout
		}
		s.lease.Fix() // a tagged call goes to one endpoint, or nowhere
		if ticket.Endpoint != "" && ticket.Endpoint != t.port.Endpoint {
			s.lease.Done()
			t.port.Endpoint = ticket.Endpoint
		}
	}
	if timeout > 0 {
		s.deadline = time.Now().Add(timeout)
	}
}

// forward sends the request and brings the response back.
func (s *session) forward(endpoint string) bool {
	err := s.compose()
	if err == nil {
		err = s.converse(endpoint)
	}
	if err != nil {
		return s.fail(err)
	}
	if s.res.head.status == 101 {
		return s.switchProtocols()
	}
	if s.ticket != nil && s.ticket.Hold {
		return s.hold()
	}
	return s.relay()
}

// hold lets the Gate see the response before the client does.
func (s *session) hold() bool {
	began := time.Now()
	a := s.after(nil)
	switch {
	case a != nil && s.res.body.done && s.res.err == nil:
		s.giveBack()
		return s.reply(a)
	case a != nil:
		s.drop()
		return s.reply(a)
	case s.res.err != nil:
		return s.fail(s.broken(s.res.err))
	}
	if !s.deadline.IsZero() { // the time that the Gate took is not the upstream's
		s.deadline = s.deadline.Add(time.Since(began))
		readUntil(s.up.conn, s.deadline)
	}
	return s.relay()
}

// after tells the Gate how the exchange ended, once.
func (s *session) after(err *Error) *interceptor.Answer {
	t := s.ticket
	if t == nil {
		return nil
	}
	s.ticket = nil
	if err != nil {
		return s.srv.opts.Gate.After(s.srv.ctx, t, nil, err)
	}
	return s.srv.opts.Gate.After(s.srv.ctx, t, &s.res, nil)
}

// fail ends an exchange of which the client has not seen a response yet.
func (s *session) fail(err *Error) bool {
	s.drop()
	a := s.after(s.srv.count(err))
	if s.lost || err.fault == faultClientGone {
		return false
	}
	if a == nil {
		a = err.answer()
	}
	return s.reply(a)
}

// drop gives the endpoint up.
func (s *session) drop() {
	s.breakUp()
	s.lease.Done()
}

// breakUp stops the uploader and closes the connection to the upstream.
func (s *session) breakUp() {
	u := s.up
	s.up = nil
	if u != nil {
		u.conn.Close() // nothing more is expected of it
	}
	s.stopUpload(true)
	s.live.Store(nil)
	if u != nil {
		u.in.release()
	}
}

// refuse answers a request that cannot be read on, and closes.
func (s *session) refuse(err *Error) {
	s.out = appendAnswer(s.out[:0], s.srv.count(err).answer(), string(s.req.head.method) == "HEAD", true)
	s.write(s.out)
	s.linger()
}

// reply sends an answer of the proxy or the Gate.
func (s *session) reply(a *interceptor.Answer) bool {
	if !s.req.body.done {
		n, err := s.req.body.take(s.in.buffered())
		if err == nil {
			s.in.discard(n)
		}
	}
	keep := s.req.body.done && !s.req.head.close && !s.srv.draining()
	s.out = appendAnswer(s.out[:0], a, string(s.req.head.method) == "HEAD", !keep)
	s.write(s.out)
	if !keep {
		s.linger()
	}
	return keep && !s.lost
}

// write sends to the client, until a write fails.
func (s *session) write(p []byte) {
	if s.lost || len(p) == 0 {
		return
	}
	err := s.to.write(p)
	if err == nil {
		return
	}
	s.lost = true
	if errors.Is(err, errStalled) {
		s.stalled = s.srv.count(&Error{fault: faultStalled, sent: true})
		s.reset()
	}
}

// gone is why the client takes no more.
func (s *session) gone() *Error {
	if s.stalled != nil {
		return s.stalled
	}
	return gone(errClientGone)
}

// reset lets the close that follows throw away what the client has not taken.
func (s *session) reset() {
	if reset, ok := s.conn.(interface{ SetLinger(sec int) error }); ok {
		_ = reset.SetLinger(0) // the close is all that can be done
	}
}

// linger closes our side and reads what the client still sends, for a moment.
func (s *session) linger() {
	half, ok := s.conn.(interface{ CloseWrite() error })
	if !ok || s.lost || half.CloseWrite() != nil {
		return
	}
	readUntil(s.conn, time.Now().Add(lingerTime))
	for range 256 {
		s.in.discard(len(s.in.buffered()))
		if s.in.fill() != nil {
			return
		}
	}
}

// turnAway tells a client that there are too many.
func (s *session) turnAway(silently bool) {
	defer s.srv.turning.Done()
	defer s.srv.told.Add(-1)
	if silently {
		_ = s.srv.count(refuse(faultConns, "")) // nobody is told
		s.reset()
	} else {
		s.refuse(refuse(faultConns, ""))
	}
	s.conn.Close() // nothing more is expected of it
	s.in.release()
}

// dismiss ends a session that waits for its next request.
func (s *session) dismiss() {
	if c := s.h2.Load(); c != nil {
		c.Drain()
		return
	}
	if s.idle.Load() {
		readUntil(s.conn, past())
	}
}

// cut breaks both connections, whatever runs on them.
func (s *session) cut() {
	if c := s.h2.Load(); c != nil {
		c.Cut()
	}
	s.conn.Close() // the session finds out
	if u := s.live.Load(); u != nil {
		u.conn.Close() // the session finds out
	}
}
