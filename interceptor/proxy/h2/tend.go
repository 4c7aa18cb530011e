package h2

import (
	"time"

	"golang.org/x/net/http2"
)

// enter and leave keep account of connections. The first one starts who tends them.
func (s *Server) enter(l *link) {
	s.mu.Lock()
	s.links[l] = struct{}{}
	s.mu.Unlock()
	s.once.Do(func() { s.tends.Go(s.tend) })
}

func (s *Server) leave(l *link) {
	s.mu.Lock()
	delete(s.links, l)
	s.mu.Unlock()
}

// tend closes connections that rest too long, and those whose peer has died.
func (s *Server) tend() {
	ticker := time.NewTicker(s.tick())
	defer ticker.Stop()
	for {
		select {
		case <-s.ctx.Done():
			return
		case now := <-ticker.C:
			s.mu.Lock()
			links := make([]*link, 0, len(s.links))
			for l := range s.links {
				links = append(links, l)
			}
			s.mu.Unlock()
			for _, l := range links {
				l.look(now)
			}
		}
	}
}

// look decides about one connection.
func (l *link) look(now time.Time) {
	var b batch
	defer b.flush()
	if n := l.activity.Load(); n != l.seen {
		l.seen, l.active, l.pinged = n, now, false
		return
	}
	silent := now.Sub(l.active)
	limits := &l.srv.opts.Limits
	idle := l.frames.rest()
	l.mu.Lock()
	streams := len(l.streams)
	ask := streams > 0 && silent >= limits.PingAfter && l.dead == nil && !l.pinged
	if ask {
		l.say(l.fr.WritePing(false, [8]byte{'a', 'l', 'i', 'v', 'e', '?'}), &b)
	}
	l.mu.Unlock()
	switch {
	case ask:
		l.pinged = true
	case streams > 0 && l.pinged && silent >= 2*limits.PingAfter:
		l.fail(errDead, &b)
	case streams == 0 && silent >= idle:
		last := uint32(0)
		if l.client {
			l.mu.Lock()
			last = l.next
			l.mu.Unlock()
		}
		l.sendGoAway(last, http2.ErrCodeNo, "", &b)
	}
}

// tickMost is four times what a connection may outlast the idle time of a policy.
const tickMost = 4 * time.Second

// tick is how often connections are looked at.
func (s *Server) tick() time.Duration {
	l := &s.opts.Limits
	return max(min(l.Idle, l.EndpointIdle, l.PingAfter, tickMost)/4, 5*time.Millisecond)
}
