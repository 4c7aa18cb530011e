package raw

import (
	"errors"
	"io"
	"net"
	"sync"
	"sync/atomic"
	"time"
)

// lastWords is how long what one side has already said may take to reach the other after the other way broke.
const lastWords = 5 * time.Second

// errWrite says that the receiving side takes no more.
var errWrite = errors.New("the other side takes no more")

// session is one connection and its counterpart. Each direction has a goroutine of its own, which after the end of its
// direction goes on to watch whether its side breaks.
type session struct {
	p        *Proxy
	toServer flow
	toClient flow
	last     atomic.Int64 // when a byte moved, in nanoseconds
	halves   atomic.Int32 // directions that came to their end

	mu     sync.Mutex // guards below
	client net.Conn
	server net.Conn // nil: not connected yet
	over   bool
	end    End
	timer  *time.Timer // looks for silence; nil before join
}

// flow is one direction.
type flow struct {
	from, to net.Conn
	fin      *atomic.Bool // from was told that nothing more comes
	tell     *atomic.Bool // to was told
	moved    atomic.Int64
	copied   atomic.Int64
}

func newSession(p *Proxy, client net.Conn) *session { return &session{p: p, client: client} }

// join passes bytes both ways until it is over.
func (s *session) join(server net.Conn) {
	s.last.Store(time.Now().UnixNano())
	s.mu.Lock()
	s.server = server
	if s.over { // while it was dialled
		reset(server)
		s.mu.Unlock()
		return
	}
	s.timer = time.AfterFunc(s.p.opts.Limits.Idle, s.silence)
	s.mu.Unlock()
	var toldClient, toldServer atomic.Bool
	up, down := &s.toServer, &s.toClient
	up.from, up.to, up.fin, up.tell = s.client, server, &toldClient, &toldServer
	down.from, down.to, down.fin, down.tell = server, s.client, &toldServer, &toldClient
	done := make(chan struct{})
	go func() {
		defer close(done)
		s.run(up)
	}()
	s.run(down)
	<-done
	s.finish(Closed, func(c net.Conn) { c.Close() }) // unless it has ended otherwise
}

// run passes one direction to its end.
func (s *session) run(f *flow) {
	err := s.pass(f)
	switch {
	case errors.Is(err, io.EOF):
	case errors.Is(err, errWrite):
		// Who reads from the broken side, or watches it, finds out when it has read all that came before. It may be
		// unable to hand that on.
		time.AfterFunc(lastWords, func() { s.cut(Reset) })
		return
	default:
		s.cut(Reset)
		return
	}
	f.tell.Store(true)
	if half, ok := f.to.(interface{ CloseWrite() error }); ok {
		_ = half.CloseWrite() // if it is gone, the other direction finds out
	}
	if s.halves.Add(1) == 2 {
		s.finish(Closed, func(c net.Conn) { c.Close() })
		return
	}
	if broke(f.from) && !f.fin.Load() { // one that was told the end too is closed, not broken
		s.cut(Reset)
	}
}

// pass moves bytes until there are no more, which is io.EOF, or one side breaks.
func (s *session) pass(f *flow) error {
	if from, to := tcp(f.from), tcp(f.to); from != nil && to != nil {
		if err := s.splice(f, from, to); !errors.Is(err, errNoSplice) {
			return err
		}
	}
	return s.copy(f)
}

func tcp(c net.Conn) *net.TCPConn {
	t, _ := c.(*net.TCPConn)
	return t
}

// count notes bytes that have been taken from a side.
func (s *session) count(f *flow, n int) {
	f.moved.Add(int64(n))
	s.last.Store(time.Now().UnixNano())
}

// silence cuts the session if nothing has moved for too long, and else comes again.
func (s *session) silence() {
	rest := s.p.opts.Limits.Idle - time.Since(time.Unix(0, s.last.Load()))
	if rest <= 0 {
		s.cut(Idle)
		return
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if !s.over {
		s.timer.Reset(rest)
	}
}

// cut breaks both connections, whatever runs on them.
func (s *session) cut(e End) { s.finish(e, reset) }

// finish ends both connections, once.
func (s *session) finish(e End, end func(net.Conn)) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.over {
		return
	}
	s.over, s.end = true, e
	if s.timer != nil {
		s.timer.Stop()
	}
	end(s.client)
	if s.server != nil {
		end(s.server)
	}
}

func (s *session) report() Report {
	s.mu.Lock()
	defer s.mu.Unlock()
	return Report{End: s.end, Sent: s.toServer.moved.Load(), Received: s.toClient.moved.Load(),
		Copied: s.toServer.copied.Load() + s.toClient.copied.Load()}
}

// reset closes a connection so that the other side sees it break.
func reset(c net.Conn) {
	if l, ok := c.(interface{ SetLinger(sec int) error }); ok {
		_ = l.SetLinger(0) // the close that follows is all that can be done
	}
	c.Close() // it shall break
}
