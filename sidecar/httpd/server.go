// Package httpd serves an http.Handler as net/http does, on fasthttp, which spends half of the time on a small request.
// What differs is in the comment of Server. It knows no route and no document; who made it answers what is no request.
// Start at Server; request.go is what a handler sees, response.go what becomes of its answer.
package httpd

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"runtime/debug"
	"sync"
	"sync/atomic"
	"time"

	"github.com/valyala/fasthttp"
)

// Options is what a Server is made of.
type Options struct {
	Handler http.Handler
	// Refuse answers what never reached the handler or broke it: 400 for no HTTP, 408 for what came too slowly, 431 for a
	// head that is too large, 500 for a panic.
	Refuse      func(w http.ResponseWriter, status int, detail string)
	ConnContext func(ctx context.Context, c net.Conn) context.Context // may be nil
	HeaderTime  time.Duration                                         // from the first byte of a head to its last
	BodyTime    time.Duration                                         // of a body, from the end of its head
	Idle        time.Duration                                         // of a connection, between requests
	HeaderBytes int                                                   // also what each connection holds for reading
	Log         *slog.Logger
}

// Server serves one listener. It differs from http.Server in this:
//
//   - The context of a request does not end when its client goes away: nobody reads while a handler runs. A handler
//     that waits must have a bound of its own.
//   - An answer leaves when its handler has returned, as a whole and with its Content-Length. There is no http.Flusher.
//   - The handler runs when the first byte of a body is there. With Expect: 100-continue the client is told to go on.
//   - A panic is answered with 500 before the connection closes.
type Server struct {
	opt Options
	srv fasthttp.Server

	closed   atomic.Bool
	mu       sync.Mutex // guards listener
	listener net.Listener
}

// New returns a server that serves nothing yet.
func New(opt Options) *Server {
	if opt.ConnContext == nil {
		opt.ConnContext = func(ctx context.Context, _ net.Conn) context.Context { return ctx }
	}
	s := &Server{opt: opt}
	// There is no time-out for writing: handlers wait, and what they make may be long.
	s.srv = fasthttp.Server{Handler: s.serve, ErrorHandler: s.unreadable, HeaderReceived: s.bodyTime,
		ReadTimeout: opt.HeaderTime, IdleTimeout: opt.Idle, ReadBufferSize: opt.HeaderBytes,
		StreamRequestBody: true, MaxRequestBodySize: firstBytes, DisablePreParseMultipartForm: true, LazyRequestTime: true,
		NoDefaultServerHeader: true, NoDefaultContentType: true, SecureErrorLogMessage: true, Logger: silent{}}
	return s
}

// Serve answers the connections of a listener until Shutdown, which makes it return nil.
func (s *Server) Serve(l net.Listener) error {
	s.mu.Lock()
	s.listener = listener{l, s.opt.ConnContext}
	s.mu.Unlock()
	if s.closed.Load() {
		return l.Close()
	}
	return s.srv.Serve(s.listener)
}

// Shutdown closes the listener and idle connections, and waits for running requests until ctx ends.
func (s *Server) Shutdown(ctx context.Context) error {
	s.closed.Store(true)
	s.mu.Lock()
	var err error
	if s.listener != nil {
		err = s.listener.Close() // fasthttp closes only what its Serve has seen
	}
	s.mu.Unlock()
	if shut := s.srv.ShutdownWithContext(ctx); !errors.Is(shut, net.ErrClosed) {
		err = errors.Join(err, shut)
	}
	return err
}

// firstBytes is how much of a body fasthttp reads before the handler runs: as little as it can. How much is read at all
// is the handler's to say, once it knows who asks.
const firstBytes = 1

// bodyTime gives a body a time of its own.
func (s *Server) bodyTime(h *fasthttp.RequestHeader) fasthttp.RequestConfig {
	if n := h.ContentLength(); n == 0 || n == identity {
		return fasthttp.RequestConfig{}
	}
	return fasthttp.RequestConfig{ReadTimeout: s.opt.BodyTime}
}

// identity is fasthttp's Content-Length of a request that says nothing of a body.
const identity = -2

// serve answers one request.
func (s *Server) serve(ctx *fasthttp.RequestCtx) {
	c := ctx.Conn().(*conn)
	x := &exchange{}
	r, err := x.request(ctx, c)
	if err != nil {
		s.unreadable(ctx, err)
		ctx.SetConnectionClose()
		return
	}
	s.handle(x, r)
	c.unread = !x.body.end()
	x.response.send(&ctx.Response)
	if c.unread || x.broken || s.closed.Load() { // fasthttp forgets a Shutdown whose time is over
		ctx.SetConnectionClose()
	}
}

// handle runs the handler. One that panics has answered nothing.
func (s *Server) handle(x *exchange, r *http.Request) {
	defer func() {
		if v := recover(); v != nil {
			s.opt.Log.Error("handler panicked", "method", r.Method, "path", r.URL.Path, "panic", fmt.Sprint(v), "stack", string(debug.Stack()))
			x.broken, x.response = true, response{}
			s.opt.Refuse(&x.response, http.StatusInternalServerError, "")
		}
	}()
	s.opt.Handler.ServeHTTP(&x.response, r)
}

// unreadable answers what is no request. Who has said nothing gets no answer: its next request could take it for its own.
func (s *Server) unreadable(ctx *fasthttp.RequestCtx, err error) {
	c := ctx.Conn().(*conn)
	if !c.heard {
		_ = c.Close() // whatever is written now is lost
		return
	}
	status := http.StatusBadRequest
	if _, large := errors.AsType[*fasthttp.ErrSmallBuffer](err); large {
		status = http.StatusRequestHeaderFieldsTooLarge
	} else if timeout, ok := errors.AsType[net.Error](err); ok && timeout.Timeout() {
		status = http.StatusRequestTimeout
	}
	var w response
	s.opt.Refuse(&w, status, err.Error())
	w.send(&ctx.Response)
	c.unread = true
}

// listener accepts connections that the server knows more of.
type listener struct {
	net.Listener
	context func(context.Context, net.Conn) context.Context
}

// Accept implements net.Listener.
func (l listener) Accept() (net.Conn, error) {
	c, err := l.Listener.Accept()
	if err != nil {
		return nil, err
	}
	return &conn{Conn: c, ctx: l.context(context.Background(), c), remote: c.RemoteAddr().String()}, nil
}

// conn is a connection with what all its requests have in common.
type conn struct {
	net.Conn
	ctx    context.Context
	remote string
	host   string // of the last request
	heard  bool   // at least one byte
	unread bool   // more was sent than will be read
}

// Read implements net.Conn.
func (c *conn) Read(p []byte) (int, error) {
	n, err := c.Conn.Read(p)
	c.heard = c.heard || n > 0
	return n, err
}

// How long, and how much, a client is read whose request was answered before its end.
const (
	lingerTime  = 500 * time.Millisecond
	lingerBytes = 4 << 20
)

// Close lets a client that still sends read its answer first: a reset would overtake it.
func (c *conn) Close() error {
	if c.unread && c.SetReadDeadline(time.Now().Add(lingerTime)) == nil {
		c.unread = false
		// It ends by the deadline at the latest; there is nothing to learn.
		_, _ = io.CopyN(io.Discard, c.Conn, lingerBytes)
	}
	return c.Conn.Close()
}

// silent drops what fasthttp has to say of clients that go away.
type silent struct{}

// Printf implements fasthttp.Logger.
func (silent) Printf(string, ...any) {}
