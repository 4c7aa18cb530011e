package proxy

import (
	"context"
	"errors"
	"fmt"
	"net"
	"sync"
	"sync/atomic"
	"time"

	"txmesh/interceptor"
	"txmesh/interceptor/accept"
	"txmesh/interceptor/proxy/h2"
	"txmesh/interceptor/traffic"
)

// killRest is how long Shutdown waits for exchanges that it has cut.
const killRest = 5 * time.Second

// toldMax bounds how many clients at a time are told that there are too many. More are closed without a word.
const toldMax = 256

// target is where a request goes: to a destination whose endpoint is still to be chosen, or to port.Endpoint itself.
type target struct {
	port    interceptor.Port
	cluster *traffic.Cluster // nil: nothing is known of the destination
}

// router says where a request goes. It may rewrite the start line.
type router interface {
	route(r *request) (target, *Error)
	// routeTo is route for a request of HTTP/2, which names an authority.
	routeTo(authority string) (target, *Error)
	// connectTo is route for a CONNECT.
	connectTo(authority string) (target, *Error)
}

// server accepts connections and keeps account of them. Inbound, Upstream and Forward differ by their router.
type server struct {
	opts   Options
	router router
	bufs   *buffers
	pool   *pool
	h2     *h2.Server

	ctx    context.Context // of Before and of dials; it ends when Shutdown loses patience
	cancel context.CancelFunc

	listeners *accept.Listeners // closed: draining
	killed    atomic.Bool
	turning   sync.WaitGroup // clients being told that there are too many; each takes lingerTime at most
	told      atomic.Int32   // how many they are

	mu       sync.Mutex // guards the rest, and the end of the listeners
	sessions map[*session]struct{}
	empty    chan struct{} // closed when draining and no session is left
}

func newServer(o Options, r router) *server {
	ctx, cancel := context.WithCancel(context.Background())
	bufs := newBuffers()
	s := &server{
		opts: o, router: r, bufs: bufs, pool: newPool(o, bufs), ctx: ctx, cancel: cancel,
		listeners: accept.New(o.Log),
		sessions:  make(map[*session]struct{}),
		empty:     make(chan struct{}),
	}
	s.h2 = newHTTP2(s)
	return s
}

// serve accepts until shutdown, after which it returns nil.
func (s *server) serve(l net.Listener) error { return s.listeners.Serve(l, s.admit) }

// draining reports whether what comes now comes too late.
func (s *server) draining() bool { return s.listeners.Closed() }

// admit starts a session, or says that there are too many.
func (s *server) admit(conn net.Conn) {
	ss := newSession(s, conn)
	s.mu.Lock()
	full := len(s.sessions) >= s.opts.Limits.Conns
	if s.draining() {
		s.mu.Unlock()
		conn.Close() // nothing was read from it
		return
	}
	if full {
		s.turning.Add(1)
	} else {
		s.sessions[ss] = struct{}{}
	}
	s.mu.Unlock()
	if full {
		go ss.turnAway(s.told.Add(1) > toldMax)
		return
	}
	go ss.serve()
}

// count tells of an error once, whoever is told of it besides. It is the only place that does.
func (s *server) count(err *Error) *Error {
	if !err.counted {
		err.counted = true
		s.opts.Refused(err.Code())
	}
	return err
}

// leave forgets a session that has ended.
func (s *server) leave(ss *session) {
	s.mu.Lock()
	delete(s.sessions, ss)
	if s.draining() && len(s.sessions) == 0 {
		s.closeEmpty()
	}
	s.mu.Unlock()
}

// closeEmpty is called with mu held.
func (s *server) closeEmpty() {
	select {
	case <-s.empty:
	default:
		close(s.empty)
	}
}

// shutdown stops accepting, lets running exchanges end and closes. When ctx ends first, the rest is cut: each
// ticket still gets its After, with an error.
func (s *server) shutdown(ctx context.Context) error {
	s.mu.Lock()
	errs := []error{s.listeners.Close()}
	for ss := range s.sessions {
		ss.dismiss()
	}
	if len(s.sessions) == 0 {
		s.closeEmpty()
	}
	s.mu.Unlock()
	select {
	case <-s.empty:
	case <-ctx.Done():
		errs = append(errs, s.kill(ctx.Err()))
	}
	s.cancel()
	s.pool.close()
	s.h2.Close()
	s.turning.Wait()
	return errors.Join(errs...)
}

// kill cuts all sessions and waits a little for them to tell the Gate.
func (s *server) kill(cause error) error {
	s.killed.Store(true)
	s.cancel()
	s.mu.Lock()
	n := len(s.sessions)
	for ss := range s.sessions {
		ss.cut()
	}
	s.mu.Unlock()
	s.h2.Close()
	select {
	case <-s.empty:
		return fmt.Errorf("shut down: %d connections cut: %w", n, cause)
	case <-time.After(killRest):
	}
	s.mu.Lock()
	left := len(s.sessions)
	s.mu.Unlock()
	return fmt.Errorf("shut down: %d connections cut, %d still waiting for the gate: %w", n, left, cause)
}
