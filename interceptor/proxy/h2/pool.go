package h2

import (
	"bufio"
	"context"
	"errors"
	"io"
	"sync"
	"time"

	"golang.org/x/net/http2"

	"txmesh/interceptor/socket"
)

// spread is the number of streams on each connection to an endpoint from which on another one is opened: one connection
// keeps one processor busy at most.
const spread = 16

// upstream is a connection to an endpoint, with many streams of many clients.
type upstream struct {
	*link
	host  *host
	alive chan struct{} // closed when the endpoint's settings have come, or the connection has ended
	once  sync.Once
}

// host is an endpoint with the connections to it.
type host struct {
	name    string
	links   []*upstream
	dialing int
	waiting int
	changed chan struct{} // closed when something did; nil: nobody waits
	err     error         // of the last dial
	terms   terms         // of who came last
	until   time.Time     // Speaks does not ask again before
}

// terms is what a policy says of the connections to an endpoint. Zeros are the limits of the Server.
type terms struct {
	connect, idle time.Duration
	conns         int
}

func (t terms) over(l *Limits) terms {
	if t.connect == 0 {
		t.connect = l.DialTime
	}
	if t.idle == 0 {
		t.idle = l.EndpointIdle
	}
	if t.conns == 0 || t.conns > l.EndpointConns {
		t.conns = l.EndpointConns
	}
	return t
}

// pool keeps the connections to endpoints.
type pool struct {
	srv    *Server
	mu     sync.Mutex // guards the rest, and all hosts
	hosts  map[string]*host
	closed bool
}

func newPool(s *Server) *pool { return &pool{srv: s, hosts: map[string]*host{}} }

// usable reports that new streams may be opened; called with mu held.
func (l *link) usable() bool {
	return !l.going && l.dead == nil && len(l.out) < outLost && l.next < maxID
}

func (l *link) load() (streams int, ok bool) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return len(l.streams), l.usable() && uint32(len(l.streams)) < l.limit
}

// ready returns the connection with the fewest streams, nil if there is none with room for one more.
func (p *pool) ready(endpoint string, t terms) *link {
	p.mu.Lock()
	defer p.mu.Unlock()
	h := p.host(endpoint)
	h.terms = t
	return p.pick(h)
}

func (p *pool) host(endpoint string) *host {
	h := p.hosts[endpoint]
	if h == nil {
		h = &host{name: endpoint}
		p.hosts[endpoint] = h
	}
	return h
}

// pick is called with mu held. It opens another connection where those there are have much to do.
func (p *pool) pick(h *host) *link {
	var best *link
	least := 0
	for _, u := range h.links {
		if n, ok := u.load(); ok && (best == nil || n < least) {
			best, least = u.link, n
		}
	}
	if (best == nil || least >= spread) && h.dialing == 0 && len(h.links) < h.terms.over(&p.srv.opts.Limits).conns && !p.closed {
		h.dialing++
		go p.dial(h, h.terms.over(&p.srv.opts.Limits).connect)
	}
	return best
}

// get waits for a connection with room for one more stream.
func (p *pool) get(ctx context.Context, endpoint string, t terms) (*link, *Failure) {
	ctx, cancel := context.WithTimeout(ctx, t.over(&p.srv.opts.Limits).connect)
	defer cancel()
	p.mu.Lock()
	defer p.mu.Unlock()
	h := p.host(endpoint)
	h.terms = t
	if h.waiting >= p.srv.opts.Limits.EndpointQueue {
		return nil, &Failure{Code: CodeQueue, Endpoint: endpoint}
	}
	h.waiting++
	defer func() { h.waiting-- }()
	h.err = nil
	for {
		if l := p.pick(h); l != nil {
			return l, nil
		}
		if h.changed == nil {
			h.changed = make(chan struct{})
		}
		changed := h.changed
		p.mu.Unlock()
		var err error
		select {
		case <-changed:
		case <-ctx.Done():
			err = ctx.Err()
		}
		p.mu.Lock()
		switch {
		case err != nil:
			return nil, p.late(h, err)
		case h.err != nil && len(h.links) == 0:
			return nil, p.unreachable(h, h.err)
		}
	}
}

// late says what a request waited for in vain.
func (p *pool) late(h *host, err error) *Failure {
	if len(h.links) > 0 {
		return &Failure{Code: CodeQueue, Endpoint: h.name, Detail: "no stream became free in time"}
	}
	return p.unreachable(h, err)
}

func (p *pool) unreachable(h *host, err error) *Failure {
	var other *notHTTP2
	if errors.As(err, &other) {
		return &Failure{Code: CodeNotHTTP2, Endpoint: h.name, Cause: other.err}
	}
	return &Failure{Code: CodeUnreachable, Endpoint: h.name, Cause: err}
}

// news wakes all who wait for an endpoint; called with mu held.
func (h *host) news() {
	if h.changed != nil {
		close(h.changed)
		h.changed = nil
	}
}

// notHTTP2 is an endpoint that answered the preface with something else.
type notHTTP2 struct{ err error }

func (e *notHTTP2) Error() string { return "endpoint does not speak HTTP/2: " + e.err.Error() }

// dial opens one connection and waits until the endpoint has shown that it speaks HTTP/2.
func (p *pool) dial(h *host, within time.Duration) {
	u, err := p.open(h, within)
	p.mu.Lock()
	h.dialing--
	h.err = err
	if err == nil && p.closed {
		err = context.Canceled
	}
	if err == nil {
		u.mu.Lock()
		if u.dead == nil {
			h.links = append(h.links, u)
		}
		u.mu.Unlock()
	}
	h.news()
	p.mu.Unlock()
	if err != nil && u != nil {
		u.cut(err)
	}
}

func (p *pool) open(h *host, within time.Duration) (*upstream, error) {
	ctx, cancel := context.WithTimeout(p.srv.ctx, within)
	defer cancel()
	conn, err := p.srv.opts.Dial(ctx, "tcp", h.name)
	if err != nil {
		return nil, err
	}
	conn = socket.Quick(conn)
	u := &upstream{link: newLink(p.srv, conn, bufio.NewReaderSize(conn, readBuffer), false), host: h, alive: make(chan struct{})}
	u.role, u.frames, u.next, u.endpoint = u, u, 1, h.name
	var b batch
	u.greet(&b)
	b.flush()
	p.srv.enter(u.link)
	go u.run()
	select {
	case <-u.alive:
	case <-ctx.Done():
		return u, ctx.Err()
	}
	u.mu.Lock()
	defer u.mu.Unlock()
	if u.dead != nil {
		if errors.Is(u.dead, io.EOF) || errors.Is(u.dead, io.ErrUnexpectedEOF) {
			return u, &notHTTP2{errors.New("it closed the connection after the preface")}
		}
		return u, &notHTTP2{u.dead}
	}
	return u, nil
}

func (u *upstream) run() {
	u.read()
	u.srv.leave(u.link)
}

// rest is how long the connection may be without streams.
func (u *upstream) rest() time.Duration {
	p := u.srv.pool
	p.mu.Lock()
	defer p.mu.Unlock()
	return u.host.terms.over(&p.srv.opts.Limits).idle
}

func (u *upstream) cut(err error) {
	var b batch
	u.fail(err, &b)
	b.flush()
}

// close ends all connections, now and from now on.
func (p *pool) close() {
	p.mu.Lock()
	p.closed = true
	var all []*upstream
	for _, h := range p.hosts {
		all = append(all, h.links...)
		h.news()
	}
	p.mu.Unlock()
	for _, u := range all {
		u.cut(context.Canceled)
	}
}

func (u *upstream) begun() { u.once.Do(func() { close(u.alive) }) }

func (u *upstream) headers(id uint32, h fieldList, end bool, b *batch) error {
	s := u.find(id)
	if s == nil {
		return u.unknown(id, http2.FrameHeaders, b)
	}
	limits := &u.srv.opts.Limits
	if u.in.size > limits.HeaderBytes || u.in.count > limits.HeaderFields {
		return http2.StreamError{StreamID: id, Code: http2.ErrCodeProtocol}
	}
	if code := s.respond(u.link, id, h, end, b); code != 0 {
		return http2.StreamError{StreamID: id, Code: code}
	}
	return nil
}

func (u *upstream) reset(s *stream, id uint32, code http2.ErrCode, b *batch) {
	s.endpointReset(u.link, id, code, b)
}

func (u *upstream) unknown(id uint32, t http2.FrameType, _ *batch) error {
	u.mu.Lock()
	defer u.mu.Unlock()
	if id >= u.next || id%2 == 0 {
		return violation(http2.ErrCodeProtocol, "%s on stream %d, which is idle", t, id)
	}
	return nil // a stream that was given up here
}

func (u *upstream) last() uint32 { return 0 }

// goAway moves the streams that the endpoint will not look at.
func (u *upstream) goAway(f *http2.GoAwayFrame, b *batch) {
	left := map[uint32]*stream{}
	u.mu.Lock()
	u.going = true
	for id, s := range u.streams {
		if id > f.LastStreamID {
			left[id] = s
			delete(u.streams, id)
		}
	}
	if len(u.streams) == 0 {
		u.link.close(b)
	}
	u.mu.Unlock()
	u.out()
	for id, s := range left {
		s.notProcessed(u.link, id, b)
	}
}

// out takes the connection from those that take new streams.
func (u *upstream) out() {
	p := u.srv.pool
	p.mu.Lock()
	for i, other := range u.host.links {
		if other == u {
			u.host.links = append(u.host.links[:i:i], u.host.links[i+1:]...)
			break
		}
	}
	u.host.news()
	p.mu.Unlock()
}

func (u *upstream) settled(*batch) { u.begun() }

func (u *upstream) acked([8]byte, *batch) {}

// freed lets one go on that waits for a stream.
func (u *upstream) freed(*batch) {
	p := u.srv.pool
	p.mu.Lock()
	if u.host.waiting > 0 {
		u.host.news()
	}
	p.mu.Unlock()
}

func (u *upstream) lost(streams []*stream, err error, b *batch) {
	u.begun()
	u.out()
	for _, s := range streams {
		s.endpointLost(u.link, err, b)
	}
}
