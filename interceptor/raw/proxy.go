package raw

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"sync"
	"sync/atomic"
	"time"

	"txmesh/interceptor/accept"
)

// Options is what a Proxy is made of. The zero value works.
type Options struct {
	Log    *slog.Logger // nil: silence
	Limits Limits
	// Dial opens connections to endpoints; nil: TCP. It must keep to the context's deadline. Bytes stay in the kernel
	// only where it returns a *net.TCPConn.
	Dial func(ctx context.Context, network, address string) (net.Conn, error)
	// Opened and Ended are told of each connection; nil: nobody is. One that found no endpoint is told to both.
	Opened func()
	Ended  func(Report)
}

// Limits bounds what clients can take. A zero field takes the default.
type Limits struct {
	Conns    int           // at a time; 10000
	DialTime time.Duration // to connect to one endpoint; 5 s
	Idle     time.Duration // without a byte in either direction; 24 h
}

// End is how a connection ended.
type End uint8

// The ends.
const (
	Closed      End = iota // both sides said that they were done
	Reset                  // one side broke, and so the other was broken
	Idle                   // nothing was said for too long
	Unreachable            // no endpoint took the connection
	Full                   // there were too many
	Cut                    // by Shutdown
	NumEnds
)

// String is the end as metrics name it.
func (e End) String() string {
	switch e {
	case Closed:
		return "closed"
	case Reset:
		return "reset"
	case Idle:
		return "idle"
	case Unreachable:
		return "unreachable"
	case Full:
		return "full"
	case Cut:
		return "cut"
	case NumEnds:
	}
	panic(fmt.Sprintf("raw: end %d", uint8(e)))
}

// Report is what became of a connection.
type Report struct {
	End            End
	Sent, Received int64 // bytes to the endpoint and back
	Copied         int64 // of them, those that could not stay in the kernel
}

// Proxy passes connections. Create it with New; it is safe for many goroutines.
type Proxy struct {
	opts      Options
	endpoints []string
	turn      atomic.Uint32
	pipes     pipes

	ctx    context.Context // of dials; it ends when Shutdown loses patience
	cancel context.CancelFunc

	listeners *accept.Listeners // closed: draining

	mu       sync.Mutex // guards the rest, and the end of the listeners
	sessions map[*session]struct{}
	empty    chan struct{} // closed when draining and no session is left
}

// New returns a proxy to the endpoints, which take turns; when one takes no connection the next one is asked. There may
// be none, for a proxy that only Pass and Join are called on. It opens no connection.
func New(o Options, endpoints ...string) (*Proxy, error) {
	l := &o.Limits
	if l.Conns < 0 || l.DialTime < 0 || l.Idle < 0 {
		return nil, fmt.Errorf("raw proxy: limits %+v: give positive values, or 0 for the defaults", *l)
	}
	for _, e := range endpoints {
		if _, _, err := net.SplitHostPort(e); err != nil {
			return nil, fmt.Errorf("raw proxy: endpoint %q is not host:port: %w", e, err)
		}
	}
	l.Conns = standard(l.Conns, 10000)
	l.DialTime = standard(l.DialTime, 5*time.Second)
	l.Idle = standard(l.Idle, 24*time.Hour)
	if o.Log == nil {
		o.Log = slog.New(slog.DiscardHandler)
	}
	if o.Dial == nil {
		o.Dial = new(net.Dialer).DialContext
	}
	if o.Opened == nil {
		o.Opened = func() {}
	}
	if o.Ended == nil {
		o.Ended = func(Report) {}
	}
	ctx, cancel := context.WithCancel(context.Background())
	return &Proxy{opts: o, endpoints: endpoints, ctx: ctx, cancel: cancel, listeners: accept.New(o.Log),
		sessions: make(map[*session]struct{}), empty: make(chan struct{})}, nil
}

func standard[T int | time.Duration](v, def T) T {
	if v == 0 {
		return def
	}
	return v
}

// Serve accepts connections until Shutdown, which makes it return nil. It closes the listener.
func (p *Proxy) Serve(l net.Listener) error {
	return p.listeners.Serve(l, func(c net.Conn) { go p.PassInTurn(c) })
}

// inTurn is the endpoints, beginning with the one whose turn it is.
func (p *Proxy) inTurn() []string {
	n := len(p.endpoints)
	if n < 2 {
		return p.endpoints
	}
	at := int((p.turn.Add(1) - 1) % uint32(n))
	return append(p.endpoints[at:n:n], p.endpoints[:at]...)
}

// Pass connects to the first endpoint that takes a connection and passes bytes until it is over. It closes conn.
func (p *Proxy) Pass(conn net.Conn, endpoints []string) {
	s := newSession(p, conn)
	if !p.admit(s) {
		return
	}
	defer p.leave(s)
	server, err := p.dial(endpoints)
	if err != nil {
		p.opts.Log.Warn("endpoint unreachable", "code", CodeUnreachable, "client", conn.RemoteAddr().String(), "error", err)
		s.cut(Unreachable)
		return
	}
	s.join(server)
}

// PassInTurn is Pass with the endpoints of the proxy.
func (p *Proxy) PassInTurn(conn net.Conn) { p.Pass(conn, p.inTurn()) }

// Join is Pass with a connection to the endpoint that is open already. It closes both.
func (p *Proxy) Join(conn, server net.Conn) {
	s := newSession(p, conn)
	if !p.admit(s) {
		reset(server)
		return
	}
	defer p.leave(s)
	s.join(server)
}

// Dial connects to an endpoint as Pass does.
func (p *Proxy) dial(endpoints []string) (net.Conn, error) {
	var errs []error
	for _, e := range endpoints {
		ctx, cancel := context.WithTimeout(p.ctx, p.opts.Limits.DialTime)
		conn, err := p.opts.Dial(ctx, "tcp", e)
		cancel()
		if err == nil {
			return conn, nil
		}
		errs = append(errs, err)
	}
	if len(errs) == 0 {
		errs = append(errs, errors.New("no endpoint is known"))
	}
	return nil, errors.Join(errs...)
}

// admit counts a session in, or breaks its connection.
func (p *Proxy) admit(s *session) bool {
	p.mu.Lock()
	draining, full := p.listeners.Closed(), len(p.sessions) >= p.opts.Limits.Conns
	if !draining && !full {
		p.sessions[s] = struct{}{}
	}
	p.mu.Unlock()
	p.opts.Opened()
	switch {
	case draining:
		s.cut(Cut)
	case full:
		p.opts.Log.Warn("too many connections", "code", CodeFull, "limit", p.opts.Limits.Conns)
		s.cut(Full)
	default:
		return true
	}
	p.opts.Ended(s.report())
	return false
}

// leave forgets a session that has ended.
func (p *Proxy) leave(s *session) {
	p.opts.Ended(s.report())
	p.mu.Lock()
	defer p.mu.Unlock()
	delete(p.sessions, s)
	if p.listeners.Closed() && len(p.sessions) == 0 {
		p.closeEmpty()
	}
}

// closeEmpty is called with mu held.
func (p *Proxy) closeEmpty() {
	select {
	case <-p.empty:
	default:
		close(p.empty)
	}
}

// Shutdown stops accepting and waits for the connections to end. When ctx ends first, it breaks those that are left and
// says how many they were.
func (p *Proxy) Shutdown(ctx context.Context) error {
	p.mu.Lock()
	errs := []error{p.listeners.Close()}
	if len(p.sessions) == 0 {
		p.closeEmpty()
	}
	p.mu.Unlock()
	select {
	case <-p.empty:
	case <-ctx.Done():
		errs = append(errs, fmt.Errorf("shut down: %d raw connections cut: %w", p.kill(), ctx.Err()))
	}
	p.cancel()
	p.pipes.close()
	return errors.Join(errs...)
}

// kill breaks what is left and waits for it: nothing but the kernel is waited for.
func (p *Proxy) kill() int {
	p.cancel()
	p.mu.Lock()
	n := len(p.sessions)
	for s := range p.sessions {
		s.cut(Cut)
	}
	p.mu.Unlock()
	<-p.empty
	return n
}
