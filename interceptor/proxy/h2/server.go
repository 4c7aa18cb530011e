package h2

import (
	"bufio"
	"context"
	"fmt"
	"io"
	"net"
	"sync"
	"sync/atomic"
	"time"

	"golang.org/x/net/http2"

	"txmesh/interceptor"
)

// Server relays the streams of client connections to endpoints. It is safe for many goroutines.
type Server struct {
	opts   Options
	gate   Concerner // nil: the Gate cannot tell
	pool   *pool
	ctx    context.Context
	cancel context.CancelFunc

	once  sync.Once // starts tend
	tends sync.WaitGroup
	mu    sync.Mutex // guards links
	links map[*link]struct{}
}

// New returns a Server. It opens no connection.
func New(o Options) *Server {
	ctx, cancel := context.WithCancel(context.Background())
	s := &Server{opts: o, ctx: ctx, cancel: cancel, links: map[*link]struct{}{}}
	s.gate, _ = o.Gate.(Concerner)
	s.pool = newPool(s)
	return s
}

// Close breaks all connections to endpoints. Client connections should have ended before.
func (s *Server) Close() {
	s.cancel()
	s.pool.close()
	s.tends.Wait()
}

func (s *Server) refused(code string) {
	if s.opts.Refused != nil {
		s.opts.Refused(code)
	}
}

// Preface begins a connection of HTTP/2. Its first part looks like the head of a request.
const (
	Preface     = http2.ClientPreface
	PrefaceHead = "PRI * HTTP/2.0\r\n\r\n"
)

// Conn is one client connection. Create it with NewConn.
type Conn struct {
	*link
	who      Client
	up       *Upgrade
	first    batch // what was said before Serve
	draining atomic.Bool
	final    atomic.Bool // the last GOAWAY was sent
}

// prefixed reads first what was read already.
type prefixed struct {
	first []byte
	io.Reader
}

func (p *prefixed) Read(b []byte) (int, error) {
	if len(p.first) > 0 {
		n := copy(b, p.first)
		p.first = p.first[n:]
		return n, nil
	}
	return p.Reader.Read(b)
}

// readBuffer is what a connection reads at once.
const readBuffer = 16 << 10

// NewConn takes over a connection from which first was read. The caller must not write to it any more. With an upgrade
// it answers that first.
func (s *Server) NewConn(conn net.Conn, first []byte, who Client, up *Upgrade) *Conn {
	br := bufio.NewReaderSize(&prefixed{append([]byte(nil), first...), conn}, readBuffer)
	c := &Conn{link: newLink(s, conn, br, true), who: who, up: up}
	c.role, c.frames = c, c
	if up != nil {
		c.out = append(c.out, switching...)
	}
	c.greet(&c.first)
	return c
}

// Serve runs the connection until it ends and closes it.
func (c *Conn) Serve() {
	b := c.first
	c.srv.enter(c.link)
	defer c.srv.leave(c.link)
	if c.up != nil {
		if err := c.upgrade(c.up, &b); err != nil {
			c.fail(err, &b)
			return
		}
	}
	b.flush()
	_ = c.conn.SetReadDeadline(time.Now().Add(c.srv.opts.Limits.HeaderTime))
	var preface [len(Preface)]byte
	if _, err := io.ReadFull(c.in.br, preface[:]); err != nil || string(preface[:]) != Preface {
		c.srv.refused(CodeProtocol)
		c.fail(fmt.Errorf("no preface of HTTP/2: %w", io.ErrUnexpectedEOF), &b)
		b.flush()
		return
	}
	c.read()
	c.guides.Wait()
}

// Drain takes no new streams and closes when the running ones have ended: a first GOAWAY says that it is near, the
// second, after a round trip, which streams will be served.
func (c *Conn) Drain() {
	if c.draining.Swap(true) {
		return
	}
	var b batch
	c.mu.Lock()
	if c.dead == nil && !c.ending {
		c.say(c.fr.WriteGoAway(maxID, http2.ErrCodeNo, nil), &b)
		c.say(c.fr.WritePing(false, drainPing()), &b)
	}
	c.mu.Unlock()
	b.flush()
	time.AfterFunc(time.Second, c.lastGoAway) // for who answers no ping
}

func drainPing() [8]byte { return [8]byte{'d', 'r', 'a', 'i', 'n'} }

func (c *Conn) lastGoAway() {
	if c.final.Swap(true) {
		return
	}
	var b batch
	c.sendGoAway(c.last(), http2.ErrCodeNo, "", &b)
	b.flush()
}

// Cut breaks the connection.
func (c *Conn) Cut() {
	var b batch
	c.fail(net.ErrClosed, &b)
	b.flush()
}

func (c *Conn) last() uint32 {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.next
}

func (c *Conn) headers(id uint32, h fieldList, end bool, b *batch) error {
	if s := c.find(id); s != nil {
		return s.requestTrailer(h, end, b)
	}
	last := c.last()
	switch {
	case id%2 == 0:
		return violation(http2.ErrCodeProtocol, "stream %d is not a client's", id)
	case id <= last && end && (len(h) == 0 || !h[0].IsPseudo()):
		return nil // the trailers of a stream that was given up here
	case id <= last:
		return violation(http2.ErrCodeStreamClosed, "HEADERS on stream %d, which has ended", id)
	}
	s := newStream(c.srv, c.link, id, h, end)
	s.client = c.who
	c.mu.Lock()
	c.next = id
	refuse := len(c.streams) >= c.srv.opts.Limits.Streams
	ignore := c.going
	if !refuse && !ignore {
		c.streams[id] = s
		s.toDown.room = c.initial
	}
	c.mu.Unlock()
	switch {
	case ignore:
		return nil
	case refuse:
		c.srv.refused(CodeStreams)
		return http2.StreamError{StreamID: id, Code: http2.ErrCodeRefusedStream}
	}
	c.in.control.give()
	return s.begin(c, b)
}

// begin checks a new request, asks the Gate and sends it on its way. The Gate is asked here if it will not block.
func (s *stream) begin(c *Conn, b *batch) error {
	opts := &s.srv.opts
	malformed := http2.StreamError{StreamID: s.downID, Code: http2.ErrCodeProtocol}
	s.mu.Lock()
	defer s.mu.Unlock()
	switch {
	case c.in.size > opts.Limits.HeaderBytes:
		s.conclude(&Failure{Code: CodeHeaderSize}, b)
		return nil
	case c.in.count > opts.Limits.HeaderFields:
		s.conclude(&Failure{Code: CodeHeaderCount}, b)
		return nil
	}
	if bad := s.head.checkRequest(); bad != "" {
		opts.Log.Debug("malformed request", "what", bad)
		s.downDone = true
		return malformed
	}
	route := s.client.Route
	if s.head.get(":method") == "CONNECT" {
		if f := s.asTunnel(); f != nil {
			s.conclude(f, b)
			return nil
		}
	}
	if s.tunnel == blind {
		route = s.client.Connect
	}
	n, ok := s.head.contentLength()
	if !ok || s.toUp.ended && n > 0 {
		s.downDone = true
		return malformed
	}
	s.toUp.length = n
	t, f := route(s.head.authority())
	if f != nil {
		s.conclude(f, b)
		return nil
	}
	t.Port.Trusted, t.Port.Caller = s.client.Trusted, s.client.Caller
	s.target = t
	s.enter(b)
	return nil
}

// ask asks the Gate about a request, here or, if that may block, in a goroutine; called with mu held.
func (s *stream) ask(b *batch) {
	var v interceptor.Verdict
	if s.srv.opts.Gate != nil && s.tunnel != blind {
		if s.srv.gate == nil || s.srv.gate.Concerns(s.target.Port, (*request)(s)) {
			s.guided = true
			s.down.guides.Go(s.guide)
			return
		}
		s.mu.Unlock() // what the Gate sees locks by itself
		v = s.srv.opts.Gate.Before(s.srv.ctx, s.target.Port, (*request)(s))
		s.mu.Lock()
	}
	if v.Ticket != nil {
		s.guided, s.ticket = true, v.Ticket
		s.down.guides.Go(s.leadAlone)
		return
	}
	s.decided(v, b)
}

// leadAlone leads an exchange that got a ticket although the Gate was not concerned.
func (s *stream) leadAlone() {
	var b batch
	defer b.flush()
	s.mu.Lock()
	defer s.mu.Unlock()
	s.lead(&b)
}

func (s *stream) requestTrailer(h fieldList, end bool, b *batch) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	code := http2.ErrCodeProtocol
	if (end || s.toUp.ended) && s.tunnel == noTunnel {
		code = s.toUp.receiveTrailer(h, b)
	}
	if code != 0 {
		return http2.StreamError{StreamID: s.downID, Code: code}
	}
	s.news(b)
	return nil
}

func (c *Conn) reset(s *stream, _ uint32, code http2.ErrCode, b *batch) { s.clientGone(code, b) }

func (c *Conn) unknown(id uint32, t http2.FrameType, b *batch) error {
	if id > c.last() || id%2 == 0 {
		return violation(http2.ErrCodeProtocol, "%s on stream %d, which is idle", t, id)
	}
	if t == http2.FrameData {
		c.mu.Lock()
		c.say(c.fr.WriteRSTStream(id, http2.ErrCodeStreamClosed), b)
		c.mu.Unlock()
	}
	return c.idleFrame()
}

func (c *Conn) goAway(*http2.GoAwayFrame, *batch) {
	c.draining.Store(true)
	time.AfterFunc(0, c.lastGoAway) // the client opens no more streams: close when the last has ended
}

func (c *Conn) acked(data [8]byte, _ *batch) {
	if data == drainPing() && c.draining.Load() {
		time.AfterFunc(0, c.lastGoAway)
	}
}

func (c *Conn) settled(*batch) {}
func (c *Conn) freed(*batch)   {}

func (c *Conn) rest() time.Duration { return c.srv.opts.Limits.Idle }

func (c *Conn) lost(streams []*stream, _ error, b *batch) {
	for _, s := range streams {
		s.clientGone(http2.ErrCodeCancel, b)
	}
}
