package proxy

import (
	"errors"
	"io"
	"time"
)

// watchAfter is how long an exchange waits for its upstream before somebody looks whether the client is still
// there. Most exchanges are over by then, and cost no second goroutine.
const watchAfter = 20 * time.Millisecond

// fillSlowly reads a body for the Gate, with a limit on silence.
func (s *session) fillSlowly() error {
	readUntil(s.conn, time.Now().Add(s.srv.opts.Limits.BufferTime))
	return s.in.fill()
}

// welcomeBody sends the 100 that the client waits for, when the Gate wants the body before the upstream has it.
func (s *session) welcomeBody() error {
	if !s.req.head.expect || s.req.head.minor == 0 || len(s.in.buffered()) > 0 {
		return nil
	}
	s.req.head.expect = false
	s.req.head.drop("expect", 0)
	if s.write([]byte("HTTP/1.1 100 Continue\r\n\r\n")); s.lost {
		return errClientGone
	}
	return nil
}

// startUpload starts the uploader. It streams the rest of the body, and then watches the client.
func (s *session) startUpload() {
	readUntil(s.conn, time.Time{})
	s.bounded = true
	s.uploading = make(chan struct{})
	go s.upload(s.up)
}

func (s *session) upload(u *upstream) {
	defer close(s.uploading)
	if !s.uploaded.Load() {
		if !s.sendBody(u) {
			return
		}
		s.uploaded.Store(true)
	}
	if s.finishing.Load() == 0 {
		s.within(s.conn.SetReadDeadline, 0)
		s.watch(u)
	}
}

// sendBody streams the rest of the request body. It returns false if the body did not end, and breaks the
// exchange if the client is to blame. An upstream that takes no more may still answer.
func (s *session) sendBody(u *upstream) bool {
	s.in.widen(largeBuffer)
	sent := int64(len(s.req.wire))
	for {
		p := s.in.buffered()
		n, err := s.req.body.take(p)
		if err != nil {
			s.breakOff(u, &Error{fault: faultBody, sent: true, cause: err})
			return false
		}
		if sent += int64(n); s.tooLong(sent) {
			s.breakOff(u, &Error{fault: faultBodySize, sent: true})
			return false
		}
		s.in.discard(n) // now, not after the write: body and buffer must agree, whatever becomes of it
		if n > 0 {
			if err := s.pour(u, p[:n]); err != nil {
				if isTimeout(err) && s.finishing.Load() == 0 {
					s.breakOff(u, &Error{Endpoint: u.endpoint, fault: faultTime, sent: true, detail: "takes nothing of the request"})
				}
				return false
			}
		}
		if s.req.body.done {
			return true
		}
		s.within(s.conn.SetReadDeadline, s.srv.opts.Limits.BodyIdle)
		switch err := s.in.fill(); {
		case err == nil:
		case !isTimeout(err):
			s.breakOff(u, gone(err))
			return false
		case s.finishing.Load() == 0:
			s.breakOff(u, &Error{fault: faultBodyTime, sent: true})
			return false
		default:
			return false
		}
	}
}

// pour writes to the upstream, until it takes nothing for a while.
func (s *session) pour(u *upstream, p []byte) error {
	s.bounded = true
	for {
		s.within(u.conn.SetWriteDeadline, s.srv.opts.Limits.WriteIdle)
		n, err := u.conn.Write(p)
		if n == 0 || !isTimeout(err) || s.finishing.Load() != 0 {
			return err
		}
		p = p[n:]
	}
}

// within sets a deadline of the uploader; 0 is none. stopUpload says first that it is finishing and then sets its own
// deadline, so either it is seen here or it comes later than this one.
func (s *session) within(set func(time.Time) error, d time.Duration) {
	var t time.Time
	if d > 0 {
		t = time.Now().Add(d)
	}
	_ = set(t) // of a closed connection: Read and Write tell it too
	if until := s.finishing.Load(); until != 0 {
		_ = set(time.Unix(0, until)) // the same
	}
}

func (s *session) tooLong(n int64) bool {
	most := s.srv.opts.Limits.BodyBytes
	return most > 0 && n > most
}

// watch reads ahead from the client, so that its going away is seen at once.
func (s *session) watch(u *upstream) {
	for {
		err := s.in.fill()
		switch {
		case err == nil:
		case isTimeout(err), errors.Is(err, errBufferFull):
			return
		default:
			if !s.outlive {
				s.breakOff(u, gone(err))
			}
			return
		}
	}
}

// breakOff ends the exchange from the uploader: the reader of the upstream finds the cause.
func (s *session) breakOff(u *upstream, cause *Error) {
	s.cause.CompareAndSwap(nil, cause)
	u.conn.Close() // it shall break
}

func gone(err error) *Error {
	if errors.Is(err, io.EOF) {
		err = errClientGone
	}
	return &Error{fault: faultClientGone, sent: true, cause: errors.Join(errClientGone, err)}
}

// stopUpload waits for the uploader to end. An unfinished body is given up at once if asked so, or else gets
// some time: the upstream may have answered early and still read on.
func (s *session) stopUpload(now bool) {
	if s.uploading == nil {
		return
	}
	until := past()
	if !now && !s.uploaded.Load() {
		until = time.Now().Add(s.srv.opts.Limits.BufferTime)
	}
	s.finishing.Store(until.UnixNano())
	readUntil(s.conn, until)
	if s.up != nil && !s.uploaded.Load() {
		writeUntil(s.up.conn, until) // it may have answered and read no more
	}
	<-s.uploading
	s.uploading = nil
}

// fillUp reads from the upstream. The first wait is short: then somebody starts to watch the client.
func (s *session) fillUp() error {
	for {
		err := s.up.in.fill()
		if err == nil {
			return nil
		}
		if cause := s.cause.Load(); cause != nil {
			return cause
		}
		if !isTimeout(err) {
			return err
		}
		if !s.deadline.IsZero() && !time.Now().Before(s.deadline) {
			return &Error{Endpoint: s.up.endpoint, fault: faultTime, sent: true}
		}
		if s.uploading == nil {
			s.startUpload()
		}
		readUntil(s.up.conn, s.deadline)
	}
}
