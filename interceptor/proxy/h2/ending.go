package h2

import (
	"errors"
	"os"

	"golang.org/x/net/http2"

	"txmesh/policies"
)

// fail ends an exchange that cannot go on: who guides it does, or else it ends here; called with mu held.
func (s *stream) fail(f *Failure, b *batch) {
	s.report(f)
	if !s.guided {
		s.conclude(f, b)
		return
	}
	if s.failure == nil {
		s.failure = f
	}
	s.cond.Broadcast()
}

// conclude tells the client of a failure, by an answer if it has seen none; called with mu held.
func (s *stream) conclude(f *Failure, b *batch) {
	s.cut(http2.ErrCodeCancel, b)
	s.over = true
	s.lease.Done()
	s.srv.refused(f.Code)
	switch {
	case s.downDone:
		s.settle(b)
	case s.answered || f.isReset:
		code := f.reset
		if !f.isReset && code == 0 {
			code = http2.ErrCodeInternal
		}
		s.abandon(code, b)
	default:
		_, a := s.srv.opts.Explain(*f)
		s.reply(a, b)
	}
}

// abandon gives the client's stream up; called with mu held.
func (s *stream) abandon(code http2.ErrCode, b *batch) {
	s.downDone = true
	s.down.resetStream(s.downID, code, b)
	s.toUp.drop(b)
	s.toDown.drop(b)
	s.settle(b)
}

// leave ends the endpoint's stream, whose answer is not wanted: ended says that all of that has come. Called with mu held.
func (s *stream) leave(ended bool, b *batch) {
	if !ended || !s.toUp.closed {
		s.cut(http2.ErrCodeCancel, b)
		return
	}
	s.upDone = true
	s.up.forget(s.upID, b)
}

// cut gives the endpoint's stream up, if it runs; called with mu held.
func (s *stream) cut(code http2.ErrCode, b *batch) {
	if s.up != nil && !s.upDone {
		s.upDone = true
		s.up.resetStream(s.upID, code, b)
	}
}

// clientGone is told that nobody waits for the answer any more.
func (s *stream) clientGone(code http2.ErrCode, b *batch) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.downDone {
		return
	}
	s.downDone = true
	if s.quit != nil && !s.outlives() {
		s.quit()
	}
	if !s.guided || s.ticket != nil && !s.ticket.Hold {
		s.toDown.drop(b) // else the Gate still reads the answer
	}
	if !s.guided {
		s.cut(code, b)
		s.settle(b)
		return
	}
	if !s.toUp.ended || s.ticket != nil && !s.outlives() {
		s.fail(&Failure{Code: CodeGone, Sent: s.started}, b)
	}
}

// endpointReset is told that the endpoint gave the stream up.
func (s *stream) endpointReset(l *link, id uint32, code http2.ErrCode, b *batch) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if !s.runs(l, id) {
		return
	}
	s.upDone = true
	switch {
	case code == http2.ErrCodeNo && s.toDown.ended: // the answer is complete, the rest of the request is not wanted
		s.toUp.drop(b)
		s.settle(b)
	case code == http2.ErrCodeRefusedStream && s.status == 0:
		s.unprocessed(!s.lease.Governed(), b)
	default:
		s.broke(&Failure{Code: CodeBroken, Endpoint: l.endpoint, Sent: true, Detail: "stream given up with " + code.String(),
			reset: code, isReset: true}, policies.Reset, b)
	}
}

// notProcessed is told that the endpoint will not look at the stream.
func (s *stream) notProcessed(l *link, id uint32, b *batch) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if !s.runs(l, id) {
		return
	}
	s.upDone = true
	s.unprocessed(true, b)
}

// unprocessed sends an untagged request again: the endpoint has promised that nothing came of it. Where the policy gives
// no other, stay lets it go to the same endpoint: a connection that ends is replaced, as one of HTTP/1 is. Called with mu held.
func (s *stream) unprocessed(stay bool, b *batch) {
	may := s.movable()
	switch {
	case may && s.lease.Elsewhere():
		s.target.Port.Endpoint = s.lease.Endpoint()
	case may && stay && s.moves < movesMax:
		s.moves++
	default:
		s.fail(&Failure{Code: CodeRefused, Endpoint: s.up.endpoint}, b)
		return
	}
	s.move()
}

// broke ends an exchange whose endpoint broke off or is too slow, unless it can be repeated; called with mu held.
func (s *stream) broke(f *Failure, why policies.RetryOn, b *batch) {
	s.report(f)
	if s.again(why) {
		s.move()
		return
	}
	s.fail(f, b)
}

// move sends all of the request, from its first byte on, to the endpoint that it has now. Called with mu held, when the
// stream to the old one has ended.
func (s *stream) move() {
	s.endTry()
	d := &s.toUp
	s.up.delist(d)
	d.pending = append(append([]byte(nil), s.replay...), d.waiting()...)
	d.off, d.held, d.closed, d.dst, s.replay = 0, true, false, nil, nil
	s.up = nil
	go s.connectLater()
}

// endpointLost is told that the connection to the endpoint has ended.
func (s *stream) endpointLost(l *link, err error, b *batch) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if l != s.up || s.upDone {
		return
	}
	s.upDone = true
	f := &Failure{Code: CodeBroken, Endpoint: l.endpoint, Sent: true, Cause: err}
	if s.open {
		f.reset = http2.ErrCodeConnect // RFC 9113, 8.5
	}
	var bad *malformed
	switch {
	case errors.As(err, &bad):
		f.Code, f.Cause, f.Detail = CodeAnswer, nil, bad.detail
	case l.plain != nil && errors.Is(err, os.ErrDeadlineExceeded):
		f.Code = CodeTime
	}
	s.broke(f, policies.Reset, b)
}

// peerBroke is told that one side broke the rules with this stream, which was reset there.
func (s *stream) peerBroke(l *link, e http2.StreamError, b *batch) {
	if l == s.down {
		s.clientGone(http2.ErrCodeCancel, b)
		return
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if !s.runs(l, e.StreamID) {
		return
	}
	s.upDone = true
	s.fail(&Failure{Code: CodeAnswer, Endpoint: l.endpoint, Sent: true, Detail: "stream error " + e.Code.String()}, b)
}
