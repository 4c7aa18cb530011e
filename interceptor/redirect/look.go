package redirect

import (
	"context"
	"errors"
	"net"
	"os"
	"time"
)

// look decides by the first bytes. A client that says nothing for a while may wait for the server.
func (s *Server) look(c *net.TCPConn, r Route) {
	kind, err := s.sniff(c, time.Now().Add(s.opts.DetectTime))
	switch {
	case errors.Is(err, os.ErrDeadlineExceeded) && s.ctx.Err() == nil:
		s.listen(c, r)
	case err != nil:
		s.refuse(c, Gone)
	default:
		s.pass(c, nil, r, kind)
	}
}

// sniff waits for the first bytes and says what they are.
func (s *Server) sniff(c *net.TCPConn, until time.Time) (Kind, error) {
	s.deadline(c, until)
	kind := Unclear
	err := peek(c, func(first []byte) bool {
		kind = Sniff(first)
		return kind != Unclear
	})
	s.deadline(c, time.Time{})
	return kind, err
}

// deadline sets the deadline of reads, unless Shutdown wants to wake them.
func (s *Server) deadline(c *net.TCPConn, t time.Time) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.listeners.Closed() && !t.IsZero() {
		t = past()
	}
	_ = c.SetReadDeadline(t) // a closed connection tells its reader
}

// pass gives a connection on whose first bytes are known, and that to the server, if there is one.
func (s *Server) pass(c *net.TCPConn, server net.Conn, r Route, k Kind) {
	if k == HTTP {
		if server != nil {
			_ = server.Close() // nothing was said
		}
		s.http(c, r)
		return
	}
	way := AsOther
	if k == TLS {
		way = AsTLS
	}
	s.join(c, server, r, way)
}

func (s *Server) join(c *net.TCPConn, server net.Conn, r Route, w Way) {
	if server == nil {
		s.raw(c, r, w)
		return
	}
	if !s.done(c) {
		_ = server.Close() // nothing was said
		s.refuse(c, Gone)
		return
	}
	s.opts.Took(w)
	s.opts.Join(c, server)
}

// listen connects to the server of a silent client and waits who speaks first. So neither hangs a protocol in which the
// server does, nor does a client of HTTP slip past the Gate that connects long before its first request.
func (s *Server) listen(c *net.TCPConn, r Route) {
	ctx, cancel := context.WithTimeout(s.ctx, s.opts.DialTime)
	conn, err := s.opts.Dial(ctx, "tcp", r.Endpoint)
	cancel()
	if err != nil {
		s.opts.Log.Warn("endpoint unreachable", "client", c.RemoteAddr().String(), "endpoint", r.Endpoint, "error", err)
		s.refuse(c, Gone)
		return
	}
	server, ok := conn.(*net.TCPConn)
	if !ok { // TLS of the mesh: another sidecar, and behind it an application that speaks HTTP
		conn.Close() // nothing was said
		s.http(c, r)
		return
	}
	s.deadline(c, time.Now().Add(silentAtMost))
	spoke := make(chan bool, 1)
	go func() {
		err := peek(server, func([]byte) bool { return true })
		spoke <- err == nil || !errors.Is(err, os.ErrDeadlineExceeded)
		_ = c.SetReadDeadline(past()) // wakes the other; a closed connection tells its reader
	}()
	kind := Unclear
	err = peek(c, func(first []byte) bool {
		kind = Sniff(first)
		return kind != Unclear
	})
	_ = server.SetReadDeadline(past()) // as above
	first := <-spoke
	_ = server.SetReadDeadline(time.Time{}) // as above
	_ = c.SetReadDeadline(time.Time{})      // as above
	switch {
	case err == nil && (kind == HTTP || !first):
		s.pass(c, server, r, kind)
	case first:
		s.join(c, server, r, AsLate)
	default:
		_ = server.Close() // nothing was said
		s.refuse(c, Gone)
	}
}
