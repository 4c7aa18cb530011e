package proxy

import (
	"context"
	"errors"
	"time"

	"txmesh/interceptor/socket"
)

// joinedMax is the size up to which a body is copied to leave in one write with its head.
const joinedMax = 16 << 10

// send writes the request to an endpoint, as far as it has arrived.
func (s *session) send(endpoint string) *Error {
	if err := s.open(endpoint, false); err != nil {
		return err
	}
	if wire := s.req.wire; len(wire) > joinedMax {
		if err := s.pour(s.up, wire); err != nil && !s.mayAnswer(err) {
			return s.broken(err)
		}
	}
	if s.req.body.done {
		s.uploaded.Store(true)
	} else {
		s.startUpload()
	}
	return nil
}

// mayAnswer says whether an upstream that stopped reading may have sent an answer before.
func (s *session) mayAnswer(err error) bool {
	return !isTimeout(err) && !errors.Is(err, context.Canceled)
}

// compose puts the head and what has arrived of the body into out.
func (s *session) compose() *Error {
	if s.req.err != nil {
		return s.badRequest(s.req.err)
	}
	s.out = append(s.req.head.appendTo(s.out[:0]), '\r', '\n')
	if len(s.req.wire) <= joinedMax {
		s.out = append(s.out, s.req.wire...)
	}
	if s.req.body.done || len(s.req.wire) > joinedMax {
		return nil
	}
	p := s.in.buffered()
	n, err := s.req.body.take(p)
	if err != nil {
		return &Error{fault: faultBody, cause: err}
	}
	if s.tooLong(int64(len(s.req.wire) + n)) {
		return refuse(faultBodySize, "")
	}
	s.out = append(s.out, p[:n]...)
	s.in.discard(n)
	return nil
}

// open finds a connection (with fresh, a new one) and writes out. A kept connection that takes no byte is replaced by
// another kept one if it was spoken on while it rested, and else by a new one.
func (s *session) open(endpoint string, fresh bool) *Error {
	ctx := s.srv.ctx
	if !s.deadline.IsZero() {
		var cancel context.CancelFunc
		ctx, cancel = context.WithDeadline(ctx, s.deadline)
		defer cancel()
	}
	for {
		u, err := s.srv.pool.get(ctx, endpoint, fresh, s.lease.Connect())
		if err != nil {
			return unreachable(endpoint, err)
		}
		u.idle = s.lease.Idle()
		s.live.Store(u)
		if s.srv.killed.Load() {
			u.discard()
			return &Error{Endpoint: endpoint, fault: faultUnreachable, detail: "shutting down"}
		}
		if !s.deadline.IsZero() {
			writeUntil(u.conn, s.deadline)
		}
		n, err := s.put(u)
		if err == nil {
			s.up, s.res.src = u, &u.in
			return nil
		}
		u.discard()
		s.live.Store(nil)
		if n > 0 {
			return &Error{Endpoint: endpoint, fault: faultBroken, sent: true, cause: err}
		}
		if !u.reused {
			return &Error{Endpoint: endpoint, fault: faultUnreachable, cause: err}
		}
		fresh = fresh || !errors.Is(err, socket.ErrSpoken)
	}
}

// put writes out. If nothing of the request follows, it also waits for the answer, for the short time after which somebody
// looks whether the client is still there.
func (s *session) put(u *upstream) (int, error) {
	wait := time.Now().Add(watchAfter)
	if !s.deadline.IsZero() && s.deadline.Before(wait) {
		wait = s.deadline
	}
	readUntil(u.conn, wait)
	switch {
	case !u.reused:
		return u.conn.Write(s.out)
	case s.req.body.done && len(s.req.wire) <= joinedMax:
		return u.in.ask(s.out)
	case !socket.IsSilent(u.conn):
		return 0, socket.ErrSpoken
	}
	return u.conn.Write(s.out)
}

func unreachable(endpoint string, err error) *Error {
	if errors.Is(err, ErrLoop) {
		return &Error{Endpoint: endpoint, fault: faultLoop}
	}
	return &Error{Endpoint: endpoint, fault: faultUnreachable, cause: err}
}

// await reads heads until the final one; interim ones go to the client.
func (s *session) await() *Error {
	for {
		raw, err := s.responseHead()
		if err != nil {
			return err
		}
		bad := parseResponse(&s.res.message, raw, &s.srv.opts.Limits, s.req.head.method)
		s.up.in.discard(len(raw))
		if bad != nil {
			return &Error{Endpoint: s.up.endpoint, fault: faultAnswer, sent: true, detail: bad.told()}
		}
		s.res.head.cleanResponse()
		switch status := s.res.head.status; {
		case status == 101 && !s.req.head.upgrading:
			return &Error{Endpoint: s.up.endpoint, fault: faultAnswer, sent: true, detail: "101 without an Upgrade"}
		case status == 101 || status >= 200:
			return nil
		case s.req.head.minor == 1:
			s.whole = false
			s.out = append(s.res.head.appendTo(s.out[:0]), '\r', '\n')
			if s.write(s.out); s.lost && !s.outlive {
				return s.gone()
			}
		}
	}
}

// responseHead waits for a whole head and returns it, still in the buffer.
func (s *session) responseHead() ([]byte, *Error) {
	in := &s.up.in
	limit := s.srv.opts.Limits.HeaderBytes
	for seen := 0; ; {
		p := in.buffered()
		end, at, err := headEnd(p, seen)
		if err != nil {
			return nil, &Error{Endpoint: s.up.endpoint, fault: faultAnswer, sent: true, detail: err.detail}
		}
		if end > limit || end == 0 && len(p) >= limit {
			return nil, &Error{Endpoint: s.up.endpoint, fault: faultAnswer, sent: true, detail: "header too large"}
		}
		if end > 0 {
			return p[:end], nil
		}
		seen = at
		if len(p) > 0 && len(p) == len(in.buf) {
			in.widen(2 * len(p))
		}
		if err := s.fillUp(); err != nil {
			return nil, s.broken(err)
		}
	}
}

// broken names the reason why the upstream's message cannot be read on.
func (s *session) broken(err error) *Error {
	var e *Error
	if errors.As(err, &e) {
		return e
	}
	f := faultBroken
	switch {
	case isTimeout(err):
		f = faultTime
	case isChunkError(err):
		f = faultAnswer
	}
	return &Error{Endpoint: s.up.endpoint, fault: f, sent: true, cause: err}
}

// badRequest names the reason why the client's body could not be read for the Gate.
func (s *session) badRequest(err error) *Error {
	switch {
	case isChunkError(err):
		return &Error{fault: faultBody, cause: err}
	case isTimeout(err):
		return &Error{fault: faultBodyTime}
	}
	return &Error{fault: faultClientGone, cause: errors.Join(errClientGone, err)}
}

func isChunkError(err error) bool {
	return errors.Is(err, errChunkSize) || errors.Is(err, errChunkLong) || errors.Is(err, errChunkEnd) ||
		errors.Is(err, errChunkByte) || errors.Is(err, errBadTrailer) || errors.Is(err, errForbidden)
}

// relay sends the response to the client, as it comes.
func (s *session) relay() bool {
	h := &s.res.head
	keep := !s.req.head.close && !s.srv.draining() && h.minor == 1 && s.res.body.framing != untilClose
	unchunk := s.req.head.minor == 0 && s.res.body.framing == byChunks
	if unchunk {
		h.dropAll(transferEncodingName)
	}
	s.out = h.appendTo(s.out[:0])
	if !keep && s.req.head.minor == 1 {
		s.out = append(s.out, "Connection: close\r\n"...)
	}
	s.out = append(s.out, '\r', '\n')
	if unchunk {
		s.out = append(s.out, s.res.data...)
	} else {
		s.out = append(s.out, s.res.wire...)
	}
	if s.ticket != nil && !s.deadline.IsZero() {
		s.to.until(s.deadline)
		defer s.to.until(time.Time{})
	}
	if err := s.copyBody(unchunk); err != nil {
		return s.breakResponse(err)
	}
	return s.finish(keep)
}

// copyBody streams the body of the response. After comes before the last bytes: when the client sees the end,
// the Gate knows it already.
func (s *session) copyBody(unchunk bool) *Error {
	b, in := &s.res.body, &s.up.in
	for {
		p, n, err := b.piece(in.buffered(), unchunk)
		if err != nil {
			s.deliver(p)
			return s.broken(err)
		}
		if b.done {
			s.res.streamed = true
			s.after(nil)
		}
		s.deliver(p)
		in.discard(n)
		if b.done {
			return nil
		}
		if s.lost && !s.outlive {
			return s.gone()
		}
		in.widen(largeBuffer)
		if err := s.fillUp(); err != nil {
			if err := b.end(err); err != nil {
				return s.broken(err)
			}
		}
	}
}

// deliver writes out and p, in one write if they are small.
func (s *session) deliver(p []byte) {
	if len(s.out) > 0 && len(p) <= joinedMax {
		s.out = append(s.out, p...)
		p = nil
	}
	s.write(s.out)
	s.write(p)
	s.out = s.out[:0]
}

// breakResponse ends a response that cannot be completed, so that the client cannot take it for a whole one.
func (s *session) breakResponse(err *Error) bool {
	s.srv.opts.Log.Debug("response broke off", "endpoint", err.Endpoint, "code", err.Code())
	closing := s.res.body.framing == untilClose || s.req.head.minor == 0
	s.drop()
	s.after(s.srv.count(err))
	if closing {
		s.reset()
	}
	return false
}

// finish ends an exchange whose response is complete.
func (s *session) finish(keep bool) bool {
	s.giveBack()
	keep = keep && s.uploaded.Load() && !s.lost
	if !keep {
		s.linger()
	}
	return keep
}

// giveBack keeps the connection to the upstream, if both sides are at the end of their message.
func (s *session) giveBack() {
	ends := s.res.head.close || s.req.head.minor == 0
	s.stopUpload(ends)
	u := s.up
	s.up = nil
	s.live.Store(nil)
	if ends || !s.uploaded.Load() || s.cause.Load() != nil {
		u.discard()
	} else {
		if s.bounded || !s.deadline.IsZero() {
			writeUntil(u.conn, time.Time{})
		}
		s.srv.pool.put(u)
	}
	s.lease.Done()
}
