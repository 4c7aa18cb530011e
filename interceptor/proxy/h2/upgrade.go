package h2

import (
	"context"
	"encoding/binary"
	"fmt"
	"time"

	"golang.org/x/net/http2"
	"golang.org/x/net/http2/hpack"
)

// Upgrade is a request of HTTP/1.1 that asked for h2c: it becomes stream 1.
type Upgrade struct {
	Fields   []hpack.HeaderField // pseudo-fields first
	Settings []byte              // of the field HTTP2-Settings, decoded
}

// switching is what a client that asked for h2c is told before anything else.
const switching = "HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\nUpgrade: h2c\r\n\r\n"

// upgrade makes stream 1 of the request that asked for it (RFC 7540, 3.2).
func (c *Conn) upgrade(up *Upgrade, b *batch) error {
	if len(up.Settings)%6 != 0 {
		return violation(http2.ErrCodeProtocol, "HTTP2-Settings of %d bytes", len(up.Settings))
	}
	s := newStream(c.srv, c.link, 1, up.Fields, true)
	s.client = c.who
	c.mu.Lock()
	var delta int64
	var err error
	for p := up.Settings; len(p) > 0 && err == nil; p = p[6:] {
		err = c.set(http2.Setting{ID: http2.SettingID(binary.BigEndian.Uint16(p)), Val: binary.BigEndian.Uint32(p[2:])}, &delta)
	}
	c.next, c.streams[1] = 1, s
	s.toDown.room = c.initial
	c.mu.Unlock()
	if err != nil {
		return fmt.Errorf("HTTP2-Settings: %w", err)
	}
	return s.begin(c, b)
}

// How long Speaks asks, and how long it remembers that the answer was no.
const (
	speaksTime = time.Second
	speaksNot  = time.Minute
)

// Speaks reports whether an endpoint speaks HTTP/2, by opening a connection if there is none.
func (s *Server) Speaks(endpoint string) bool {
	s.pool.mu.Lock()
	t := s.pool.host(endpoint).terms
	s.pool.mu.Unlock()
	return s.speaks(endpoint, t)
}

func (s *Server) speaks(endpoint string, t terms) bool {
	s.pool.mu.Lock()
	h := s.pool.host(endpoint)
	known, not := len(h.links) > 0, time.Now().Before(h.until)
	s.pool.mu.Unlock()
	if known || not {
		return known
	}
	ctx, cancel := context.WithTimeout(s.ctx, speaksTime)
	defer cancel()
	l, f := s.pool.get(ctx, endpoint, t)
	if l != nil {
		return true
	}
	if f.Code == CodeUnreachable && ctx.Err() == nil {
		return false // it may be another one that listens next
	}
	s.pool.mu.Lock()
	h.until = time.Now().Add(speaksNot)
	s.pool.mu.Unlock()
	return false
}
