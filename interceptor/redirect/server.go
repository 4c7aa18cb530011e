package redirect

import (
	"context"
	"fmt"
	"log/slog"
	"net"
	"net/netip"
	"sync"
	"time"

	"txmesh/interceptor/accept"
)

const (
	detectTime   = 200 * time.Millisecond
	dialTime     = 5 * time.Second
	connsMax     = 10000
	silentAtMost = 24 * time.Hour
)

// Way is what became of a connection.
type Way uint8

// The ways.
const (
	AsHTTP  Way = iota // to the Gate
	AsRaw              // passed without a look: no policy names the port
	AsTLS              // passed after a look: it is encrypted
	AsOther            // passed after a look: it is no HTTP
	AsLate             // passed after a look: the server spoke first
	Looped             // refused: it leads back to this process
	Unknown            // refused: the kernel does not know its destination
	Gone               // ended before it was clear what it is
	Full               // refused: too many are being looked at
	NumWays
)

// String is the way as metrics name it.
func (w Way) String() string {
	names := [NumWays]string{"http", "raw", "tls", "other", "server_first", "loop", "unknown", "gone", "full"}
	if w >= NumWays {
		panic(fmt.Sprintf("redirect: way %d", uint8(w)))
	}
	return names[w]
}

// Route is what the wiring knows of a destination.
type Route struct {
	Endpoint string // host:port to connect to
	Service  string // namespace/name behind it; empty: unknown
	HTTP     bool   // it speaks HTTP, whatever comes first
	Named    bool   // it may speak HTTP, because a policy names it: look at the first bytes
}

// Options is what a Server is made of. All functions are called by many goroutines.
type Options struct {
	Log   *slog.Logger
	Guard *Guard
	Route func(dst netip.AddrPort) Route // must not block
	Fixed func() Route                   // instead of Route, where connections come by themselves; nil: they are redirected
	Own   func(dst netip.AddrPort) bool  // whether a destination is a port of this process
	HTTP  func(*Conn)                    // takes the connection over; it may block
	Raw   func(conn net.Conn, endpoint string)
	Join  func(conn, server net.Conn)
	Dial  func(ctx context.Context, network, address string) (net.Conn, error)
	Took  func(Way)
	// DetectTime is how long a client of a named port may be silent before the server is asked to speak; 0: 200 ms.
	DetectTime time.Duration
	DialTime   time.Duration // of that; 0: 5 s
	Conns      int           // that are being looked at; 0: 10000
}

// Server accepts redirected connections. Create it with New; it is safe for many goroutines.
type Server struct {
	opts   Options
	ctx    context.Context // of dials
	cancel context.CancelFunc
	all    sync.WaitGroup // connections that are being looked at

	listeners *accept.Listeners // closed: draining

	mu      sync.Mutex // guards the rest, and the end of the listeners
	looking map[*net.TCPConn]struct{}
}

// New returns a server. It opens nothing.
func New(o Options) (*Server, error) {
	if err := Supported(); err != nil {
		return nil, err
	}
	if o.DetectTime <= 0 {
		o.DetectTime = detectTime
	}
	if o.DialTime <= 0 {
		o.DialTime = dialTime
	}
	if o.Conns <= 0 {
		o.Conns = connsMax
	}
	ctx, cancel := context.WithCancel(context.Background())
	return &Server{opts: o, ctx: ctx, cancel: cancel, listeners: accept.New(o.Log), looking: make(map[*net.TCPConn]struct{})}, nil
}

// Serve accepts connections until Shutdown, which makes it return nil. It closes the listener.
func (s *Server) Serve(l net.Listener) error {
	return s.listeners.Serve(l, func(c net.Conn) { s.admit(c.(*net.TCPConn)) })
}

// Shutdown stops accepting and breaks the connections that nobody serves yet. Those that it has handed on are not its own.
func (s *Server) Shutdown(context.Context) error {
	s.mu.Lock()
	s.cancel()
	err := s.listeners.Close()
	for c := range s.looking {
		_ = c.SetReadDeadline(past()) // wakes who looks
	}
	s.mu.Unlock()
	s.all.Wait()
	return err
}

func past() time.Time { return time.Unix(1, 0) }

// admit gives a connection a goroutine.
func (s *Server) admit(c *net.TCPConn) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.listeners.Closed() {
		s.refuse(c, Gone)
		return
	}
	if len(s.looking) >= s.opts.Conns {
		s.opts.Log.Warn("too many redirected connections of which nobody knows yet what they are", "limit", s.opts.Conns)
		s.refuse(c, Full)
		return
	}
	s.looking[c] = struct{}{}
	s.all.Add(1)
	go s.take(c)
}

// done hands a connection on: it is looked at no longer. It reports false if the server shuts down.
func (s *Server) done(c *net.TCPConn) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	if _, ok := s.looking[c]; ok {
		delete(s.looking, c)
		s.all.Done()
	}
	return !s.listeners.Closed()
}

// refuse breaks a connection.
func (s *Server) refuse(c *net.TCPConn, w Way) {
	s.opts.Took(w)
	_ = c.SetLinger(0) // the close that follows is all that can be done
	_ = c.Close()      // it shall break
}

// take finds out where a connection wants to go and gives it to who takes it there.
func (s *Server) take(c *net.TCPConn) {
	defer s.done(c)
	if s.opts.Fixed != nil {
		s.route(c, s.opts.Fixed())
		return
	}
	dst, err := original(c)
	from, to := addrPort(c.RemoteAddr()), addrPort(c.LocalAddr())
	switch {
	case err != nil:
		s.opts.Log.Warn("connection without original destination refused: it was not redirected; call this port through a rule of the firewall only",
			"code", CodeUnknown, "client", from.String(), "error", err)
		s.refuse(c, Unknown)
		return
	case dst == to || s.opts.Own(dst):
		s.opts.Log.Error("connection to a port of the sidecar itself refused: exclude that port from redirection",
			"code", CodeLoop, "client", from.String(), "destination", dst.String())
		s.refuse(c, Looped)
		return
	case s.opts.Guard.notice(ends{from, dst}, accepted):
		s.opts.Log.Error("own connection refused: it was redirected back here; run the sidecar under the excluded user id, or set its mark",
			"code", CodeLoop, "client", from.String(), "destination", dst.String())
		s.refuse(c, Looped)
		return
	}
	s.route(c, s.opts.Route(dst))
}

func (s *Server) route(c *net.TCPConn, r Route) {
	switch {
	case r.HTTP:
		s.http(c, r)
	case r.Named:
		s.look(c, r)
	default:
		s.raw(c, r, AsRaw)
	}
}

func (s *Server) http(c *net.TCPConn, r Route) {
	if !s.done(c) {
		s.refuse(c, Gone)
		return
	}
	s.opts.Took(AsHTTP)
	s.opts.HTTP(&Conn{c, r})
}

func (s *Server) raw(c *net.TCPConn, r Route, w Way) {
	if !s.done(c) {
		s.refuse(c, Gone)
		return
	}
	s.opts.Took(w)
	s.opts.Raw(c, r.Endpoint)
}
