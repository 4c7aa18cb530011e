package proxy

import (
	"context"
	"net"
	"sync"
	"time"

	"txmesh/interceptor/socket"
)

// upstream is one connection to an endpoint. One exchange uses it at a time.
type upstream struct {
	conn     net.Conn
	in       reader
	endpoint string
	reused   bool
	since    time.Time     // it rests since then
	idle     time.Duration // and may for so long; 0: as long as the pool keeps it
}

// pool keeps idle connections to endpoints, the youngest in use first. It makes no connection on its own.
type pool struct {
	opts Options
	bufs *buffers

	mu     sync.Mutex // guards the rest
	idle   map[string][]*upstream
	timer  *time.Timer
	closed bool
}

func newPool(o Options, b *buffers) *pool {
	return &pool{opts: o, bufs: b, idle: make(map[string][]*upstream)}
}

// get returns a kept connection, or a new one, made within a time (0: that of the limits). With fresh, it is always new,
// and takes the place of a kept one. A kept one may have been closed by its other side.
func (p *pool) get(ctx context.Context, endpoint string, fresh bool, within time.Duration) (*upstream, error) {
	if fresh {
		if u := p.pop(endpoint); u != nil {
			u.discard()
		}
	}
	for !fresh {
		u := p.pop(endpoint)
		if u == nil {
			break
		}
		if u.fresh() {
			u.reused = true
			return u, nil
		}
		u.discard()
	}
	if within == 0 {
		within = p.opts.Limits.DialTime
	}
	ctx, cancel := context.WithTimeout(ctx, within)
	defer cancel()
	conn, err := p.opts.Dial(ctx, "tcp", endpoint)
	if err != nil {
		return nil, err
	}
	conn = socket.Quick(conn)
	return &upstream{conn: conn, in: reader{conn: conn, pool: p.bufs}, endpoint: endpoint}, nil
}

func (p *pool) pop(endpoint string) *upstream {
	p.mu.Lock()
	defer p.mu.Unlock()
	list := p.idle[endpoint]
	if len(list) == 0 {
		return nil
	}
	u := list[len(list)-1]
	list[len(list)-1] = nil
	p.idle[endpoint] = list[:len(list)-1]
	return u
}

// put keeps a connection on which a whole exchange has ended. Bytes that nobody asked for make it useless.
func (p *pool) put(u *upstream) {
	if len(u.in.buffered()) > 0 || u.in.err != nil {
		u.discard()
		return
	}
	u.in.shrink()
	u.since = time.Now()
	p.mu.Lock()
	list := p.idle[u.endpoint]
	if p.closed || len(list) >= p.opts.Limits.EndpointKept {
		p.mu.Unlock()
		u.discard()
		return
	}
	p.idle[u.endpoint] = append(list, u)
	if p.timer == nil {
		p.timer = time.AfterFunc(p.opts.Limits.EndpointIdle, p.sweep)
	}
	p.mu.Unlock()
}

// sweep closes what has rested too long and comes again while anything rests.
func (p *pool) sweep() {
	old := time.Now().Add(-p.opts.Limits.EndpointIdle)
	var stale []*upstream
	p.mu.Lock()
	for endpoint, list := range p.idle {
		n := 0
		for n < len(list) && !list[n].since.After(old) {
			n++
		}
		stale = append(stale, list[:n]...)
		if p.idle[endpoint] = append([]*upstream(nil), list[n:]...); n == len(list) {
			delete(p.idle, endpoint)
		}
	}
	p.timer = nil
	if len(p.idle) > 0 && !p.closed {
		p.timer = time.AfterFunc(p.opts.Limits.EndpointIdle/2, p.sweep)
	}
	p.mu.Unlock()
	for _, u := range stale {
		u.discard()
	}
}

// close closes what rests, now and from now on.
func (p *pool) close() {
	p.mu.Lock()
	idle := p.idle
	p.idle, p.closed = nil, true
	if p.timer != nil {
		p.timer.Stop()
	}
	p.mu.Unlock()
	for _, list := range idle {
		for _, u := range list {
			u.discard()
		}
	}
}

// fresh reports whether it has not rested too long by its own measure.
func (u *upstream) fresh() bool { return u.idle == 0 || time.Since(u.since) < u.idle }

// discard closes the connection; only its user calls it.
func (u *upstream) discard() {
	u.conn.Close() // nothing more is expected of it
	u.in.release()
}
