package proxy

import (
	"errors"
	"io"
	"net"
	"time"
)

// switchProtocols passes the 101 on and then bytes in both directions.
func (s *session) switchProtocols() bool {
	if a := s.after(nil); a != nil {
		s.drop()
		return s.reply(a)
	}
	s.stopUpload(false)
	if s.cause.Load() != nil || !s.uploaded.Load() {
		s.drop()
		return false
	}
	s.out = append(s.res.head.appendTo(s.out[:0]), '\r', '\n')
	s.write(s.out)
	s.tunnel()
	return false
}

// connect opens a blind tunnel: nothing in it is seen by the Gate.
func (s *session) connect(t target) bool {
	if !s.req.body.done {
		return s.reply(s.srv.count(refuse(faultBody, "CONNECT with a body")).answer())
	}
	s.out = s.out[:0]
	if err := s.choose(&t, false); err != nil {
		return s.reply(s.srv.count(err).answer())
	}
	for endpoint := t.port.Endpoint; ; endpoint = s.lease.Endpoint() {
		err := s.open(endpoint, true)
		why := s.judge(err)
		if err == nil {
			break
		}
		if !s.again(why) {
			return s.reply(s.srv.count(err).answer())
		}
	}
	s.write([]byte("HTTP/1.1 200 Connection Established\r\n\r\n"))
	s.tunnel()
	return false
}

// tunnel copies both ways until both sides have closed, or one broke.
func (s *session) tunnel() {
	u := s.up
	s.out, s.req, s.res = nil, request{}, response{} // a tunnel may last for days
	readUntil(s.conn, time.Time{})
	readUntil(u.conn, time.Time{})
	up := newTaker(u.conn, s.srv.opts.Limits.WriteIdle)
	done := make(chan struct{})
	go func() {
		defer close(done)
		s.pass(&s.in, &up, faultTime)
	}()
	s.pass(&u.in, &s.to, faultStalled)
	<-done
	s.up = nil
	u.discard()
	s.live.Store(nil)
}

// tunnelBuffer is what a tunnel reads with while little comes: most of them are idle most of the time.
const tunnelBuffer = 1 << 10

// pass copies from one side to the other. An end becomes an end, a break a break; an idle tunnel may last, but not one
// whose other side takes nothing of what waits for it: that is told as f.
func (s *session) pass(from *reader, to *taker, f fault) {
	for {
		p := from.buffered()
		if len(p) > 0 {
			if err := to.write(p); err != nil {
				if errors.Is(err, errStalled) {
					_ = s.srv.count(&Error{fault: f, sent: true}) // nobody is told
					passEnd(err, to.conn)
				}
				from.conn.Close() // the other side takes no more
				return
			}
			from.discard(len(p))
		}
		switch n := len(p); {
		case n > 0 && n == len(from.buf):
			from.widen(largeBuffer)
		case n < tunnelBuffer && len(from.buf) != tunnelBuffer:
			from.release()
			from.buf = make([]byte, tunnelBuffer)
		}
		if err := from.fill(); err != nil {
			passEnd(err, to.conn)
			return
		}
	}
}

// passEnd closes the writing half after an end, and resets after anything else.
func passEnd(err error, to net.Conn) {
	half, ok := to.(interface{ CloseWrite() error })
	if errors.Is(err, io.EOF) && ok {
		_ = half.CloseWrite() // if it is gone, the other direction finds out
		return
	}
	if reset, ok := to.(interface{ SetLinger(sec int) error }); ok {
		_ = reset.SetLinger(0) // the close that follows is all that can be done
	}
	to.Close() // it shall break
}
