package h2

import (
	"context"
	"strconv"
	"sync"
	"time"

	"golang.org/x/net/http2"

	"txmesh/interceptor"
	"txmesh/interceptor/traffic"
	"txmesh/policies"
)

// stream is one exchange: a stream of a client's connection and one to an endpoint. An untagged one lives on the reading
// goroutines of the two. A tagged one is guided by a goroutine of its own (guide.go) until its After has returned.
type stream struct {
	srv *Server

	mu   sync.Mutex // guards what follows, but for what the Gate sees while it sees it
	cond sync.Cond  // of a guided stream: something has come, or failed

	down      *link
	downID    uint32
	up        *link // nil: not yet
	upID      uint32
	downDone  bool // the client's stream has ended or was given up
	upDone    bool // the same of the endpoint's
	toUp      pipe
	toDown    pipe
	client    Client
	target    Target
	head      fieldList // of the request
	pseudo    int       // fields of head that are pseudo-fields
	answer    fieldList // of the response
	status    int       // of the response; 0: it has not come
	bare      bool      // the response is a header and nothing else
	answered  bool      // the client has seen its header
	tunnel    tunnel
	open      bool // the tunnel is
	started   bool // an endpoint has seen the request
	guided    bool
	ticket    *interceptor.Ticket // from Before to the end
	failure   *Failure            // of a guided stream
	bodyBroke bool                // Body has told the Gate of failure
	replay    []byte              // what was sent of an untagged request
	noReplay  bool                // it was too much, or the client has seen an interim answer
	moves     int
	lease     traffic.Lease      // of the endpoint, until the endpoint's stream has ended
	quit      context.CancelFunc // of the wait for a lease; nil: there is none
	over      bool               // it was answered or given up here: nothing is sent any more
	deadline  time.Time
	impatient bool // the deadline is the client's own
	timer     *time.Timer
	try       *time.Timer // to the head of an answer; nil: no limit
}

func newStream(srv *Server, down *link, id uint32, h fieldList, end bool) *stream {
	s := &stream{srv: srv, down: down, downID: id, head: h}
	s.cond.L = &s.mu
	for s.pseudo < len(h) && h[s.pseudo].IsPseudo() {
		s.pseudo++
	}
	s.toUp = pipe{s: s, src: down, srcID: id, left: streamWindow, held: true, ended: end, length: -1}
	s.toDown = pipe{s: s, dst: down, dstID: id, held: true, length: -1}
	return s
}

// dispatch sends an untagged request on its way; called with mu held. Where it would have to wait, a goroutine does.
func (s *stream) dispatch(b *batch) {
	if s.tunnel != noTunnel {
		go s.connectLater()
		return
	}
	if l := s.srv.pool.ready(s.target.Port.Endpoint, s.terms()); l != nil && l.open(s, b) {
		return
	}
	go s.connectLater()
}

func (s *stream) connectLater() {
	var b batch
	defer b.flush()
	f := s.connect(&b)
	if f == nil {
		return
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	s.conclude(f, &b)
}

// connect finds an endpoint that takes the request and sends it. It blocks.
func (s *stream) connect(b *batch) *Failure {
	ctx := s.srv.ctx
	if !s.deadline.IsZero() {
		var cancel context.CancelFunc
		ctx, cancel = context.WithDeadline(ctx, s.deadline)
		defer cancel()
	}
	for {
		f := s.connectTo(ctx, b)
		if f == nil || !s.pass(ctx, f) {
			return f
		}
	}
}

func (s *stream) connectTo(ctx context.Context, b *batch) *Failure {
	s.mu.Lock()
	endpoint, t := s.target.Port.Endpoint, s.terms()
	s.mu.Unlock()
	for {
		l, f := s.way(ctx, endpoint, t)
		if f != nil {
			return f
		}
		s.mu.Lock()
		f = s.failure
		if f == nil && (s.over || s.downDone && !s.outlives()) {
			f = &Failure{Code: CodeGone}
		}
		ok := f == nil && l.open(s, b)
		s.mu.Unlock()
		b.flush()
		switch {
		case l.plain == nil:
		case ok:
			go l.plain.run()
		default:
			l.conn.Close() // nobody needs it any more
		}
		if ok || f != nil {
			return f
		}
	}
}

func (s *stream) outlives() bool { return s.ticket != nil && s.ticket.Outlive }

// open begins the stream on a connection to an endpoint, unless that takes no more; called with the stream's mu held.
func (l *link) open(s *stream, b *batch) bool {
	l.mu.Lock()
	if !l.usable() || uint32(len(l.streams)) >= l.limit {
		l.mu.Unlock()
		return false
	}
	s.up, s.upID, s.upDone, s.started = l, l.next, false, true
	if limit := s.lease.PerTry(); limit > 0 {
		id := s.upID
		s.try = time.AfterFunc(limit, func() { s.late(l, id) })
	}
	l.next += 2
	l.streams[s.upID] = s
	up, down := &s.toUp, &s.toDown
	up.dst, up.dstID, up.room = l, s.upID, l.initial
	up.held = l.plain != nil // what is sent before an upgrade was accepted would be read as another request
	down.src, down.srcID, down.left = l, s.upID, streamWindow
	up.closed = !up.held && up.ended && len(up.waiting()) == 0 && up.trailer == nil
	if l.plain != nil {
		l.plain.ask(s.head, b)
	} else {
		l.sendHeaders(s.upID, s.wire(), up.closed, b)
	}
	l.mu.Unlock()
	up.pump(b)
	return true
}

// runs reports that this is the endpoint's stream still: what is told of another one is of a try that was given up.
func (s *stream) runs(l *link, id uint32) bool { return l == s.up && id == s.upID && !s.upDone }

// remember keeps what was sent of a request, as long as it may have to be sent to somebody else.
func (s *stream) remember(d *pipe, p []byte) {
	if d != &s.toUp || s.noReplay || s.status != 0 || len(p) == 0 {
		return
	}
	if s.guided || len(s.replay)+len(p) > replayMax {
		s.replay, s.noReplay = nil, true
		return
	}
	s.replay = append(s.replay, p...)
}

// data takes a frame of DATA from one of the two connections.
func (s *stream) data(l *link, id uint32, p []byte, length int, end bool, b *batch) http2.ErrCode {
	s.mu.Lock()
	defer s.mu.Unlock()
	d := &s.toUp
	if l != s.down {
		if !s.runs(l, id) {
			return 0
		}
		if d = &s.toDown; s.status == 0 {
			return http2.ErrCodeProtocol
		}
	}
	code := d.receive(p, length, end, b)
	if code != 0 {
		return code
	}
	if most := s.srv.opts.Limits.BodyBytes; d == &s.toUp && most > 0 && d.total > most && !d.sink && s.tunnel == noTunnel {
		s.fail(&Failure{Code: CodeBodySize, Sent: s.started}, b)
	}
	s.news(b)
	return 0
}

// news tells who guides the stream, and frees what has ended; called with mu held.
func (s *stream) news(b *batch) {
	if s.guided {
		s.cond.Broadcast()
	}
	s.settle(b)
}

// widen takes a larger window of one of the two sides. It returns false if it is too large.
func (s *stream) widen(l *link, id uint32, by int64, b *batch) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	d := &s.toDown
	if l != s.down {
		if !s.runs(l, id) {
			return true
		}
		d = &s.toUp
	}
	if d.room += by; d.room > windowMax {
		return false
	}
	d.pump(b)
	return true
}

// settle frees the places of the stream where it has ended; called with mu held.
func (s *stream) settle(b *batch) {
	if s.up != nil && !s.upDone && s.toUp.closed && s.toDown.ended {
		s.upDone = true
		s.up.forget(s.upID, b)
	}
	if s.up != nil && s.upDone {
		s.lease.Done()
	}
	if !s.downDone && s.toDown.closed {
		switch {
		case s.toUp.ended:
			s.downDone = true
			s.down.forget(s.downID, b)
		case s.toUp.sink: // RFC 9113, 8.1: the answer is complete, the rest of the request is not wanted
			s.downDone = true
			s.down.resetStream(s.downID, http2.ErrCodeNo, b)
		}
	}
	if !s.downDone || s.up != nil && !s.upDone {
		return
	}
	s.endTry()
	if s.timer != nil {
		s.timer.Stop()
		s.timer = nil
	}
}

// endTry forgets the limit of a try: a timer that runs on would hold the stream. Called with mu held.
func (s *stream) endTry() {
	if s.try != nil {
		s.try.Stop()
		s.try = nil
	}
}

// respond takes a list of fields from the endpoint: an interim answer, the final one, or trailers.
func (s *stream) respond(l *link, id uint32, h fieldList, end bool, b *batch) http2.ErrCode {
	s.mu.Lock()
	defer s.mu.Unlock()
	if !s.runs(l, id) {
		return 0
	}
	if s.status != 0 {
		if !end || s.open {
			return http2.ErrCodeProtocol
		}
		if s.status < 500 { // else the head has said it
			s.judge(s.status, h)
		}
		code := s.toDown.receiveTrailer(h, b)
		s.news(b)
		return code
	}
	status, bad := h.checkResponse()
	if bad != "" {
		return http2.ErrCodeProtocol
	}
	if status < 200 {
		if end {
			return http2.ErrCodeProtocol
		}
		s.replay, s.noReplay = nil, true
		if !s.downDone {
			s.down.headersTo(s.downID, b, false, h)
		}
		return 0
	}
	return s.accept(status, h, end, b)
}

// accept takes the head of the final answer, or sends the request to another endpoint instead.
func (s *stream) accept(status int, h fieldList, end bool, b *batch) http2.ErrCode {
	opens := s.tunnel != noTunnel && status < 300
	if opens {
		h = h.without("content-length") // RFC 9110, 9.3.6
	}
	n, ok := h.contentLength()
	if s.head.get(":method") == "HEAD" || status == 304 {
		n = -1
	}
	if !ok || end && n > 0 {
		return http2.ErrCodeProtocol
	}
	s.endTry()
	if s.again(s.judgeHead(status, h[1:], end)) {
		s.leave(end, b)
		s.move()
		return 0
	}
	s.status, s.answer, s.bare, s.replay = status, h, end, nil
	s.toDown.length, s.toDown.ended = n, end
	if opens {
		s.open = true
		s.pause() // no time bounds it from now on
	}
	if !s.guided || !s.holds() && !end {
		s.release(b)
	}
	s.news(b)
	return 0
}

// release lets the answer go to the client; called with mu held.
func (s *stream) release(b *batch) {
	s.answered, s.toDown.held = true, false
	if s.downDone {
		return
	}
	if s.open && !s.over {
		s.flow(b)
	}
	d := &s.toDown
	d.closed = d.ended && len(d.waiting()) == 0 && d.trailer == nil && !d.keepEnd
	d.dst.headersTo(d.dstID, b, d.closed, s.answer)
	d.pump(b)
	s.settle(b)
}

// expire ends an exchange whose time is over.
func (s *stream) expire() {
	var b batch
	defer b.flush()
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.timer == nil || s.open {
		return
	}
	s.fail(&Failure{Code: CodeTime, Endpoint: s.target.Port.Endpoint, Sent: s.started, reset: http2.ErrCodeCancel}, &b)
}

// late ends a try whose answer has not begun in time.
func (s *stream) late(l *link, id uint32) {
	var b batch
	defer b.flush()
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.runs(l, id) && s.status == 0 {
		s.cut(http2.ErrCodeCancel, &b)
		s.broke(&Failure{Code: CodeTime, Endpoint: l.endpoint, Sent: true, reset: http2.ErrCodeCancel}, policies.TimedOut, &b)
	}
}

// within bounds the exchange: by the ticket or the limit, and by what a gRPC client said; called with mu held.
func (s *stream) within(limit time.Duration) {
	if t, ok := grpcTimeout(s.head.get("grpc-timeout")); ok && (limit == 0 || t < limit) {
		limit, s.impatient = t, true
	}
	if limit > 0 {
		s.deadline = time.Now().Add(limit)
		s.timer = time.AfterFunc(limit, s.expire)
	}
}

// grpcTimeout reads the field grpc-timeout: at most eight digits and a unit.
func grpcTimeout(v string) (time.Duration, bool) {
	if len(v) < 2 || len(v) > 9 {
		return 0, false
	}
	n, err := strconv.ParseUint(v[:len(v)-1], 10, 32)
	if err != nil {
		return 0, false
	}
	unit, ok := time.Duration(0), true
	switch v[len(v)-1] {
	case 'H':
		unit = time.Hour
	case 'M':
		unit = time.Minute
	case 'S':
		unit = time.Second
	case 'm':
		unit = time.Millisecond
	case 'u':
		unit = time.Microsecond
	case 'n':
		unit = time.Nanosecond
	default:
		ok = false
	}
	if n > uint64(maxTimeout/max(unit, 1)) {
		return maxTimeout, ok
	}
	return time.Duration(n) * unit, ok
}

// maxTimeout is as long as a deadline can be away.
const maxTimeout = 10000 * time.Hour
