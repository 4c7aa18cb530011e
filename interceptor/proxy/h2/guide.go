package h2

import (
	"time"

	"golang.org/x/net/http2"

	"txmesh/interceptor"
)

// guide asks the Gate about a request, which may take its time, and leads a tagged one to its After.
func (s *stream) guide() {
	var b batch
	defer b.flush()
	s.mu.Lock()
	defer s.mu.Unlock()
	s.consult(&b)
}

// consult is called with mu held, by a goroutine that may wait.
func (s *stream) consult(b *batch) {
	var v interceptor.Verdict
	if s.srv.opts.Gate != nil && s.tunnel != blind {
		s.mu.Unlock() // what the Gate sees locks by itself
		v = s.srv.opts.Gate.Before(s.srv.ctx, s.target.Port, (*request)(s))
		s.mu.Lock()
	}
	s.ticket = v.Ticket
	s.decided(v, b)
}

// decided does what the Gate has said of a request; called with mu held.
func (s *stream) decided(v interceptor.Verdict, b *batch) {
	switch {
	case v.Ticket != nil:
		s.lead(b)
	case v.Answer != nil:
		s.guided = false
		s.reply(v.Answer, b)
	case s.failure != nil:
		s.guided = false
		s.conclude(s.failure, b)
	case s.downDone:
		s.guided = false
		s.lease.Done()
		s.settle(b)
	default:
		s.guided = false
		s.admit(b)
	}
}

// lead runs a tagged exchange. Called with mu held, by a goroutine that may wait.
func (s *stream) lead(b *batch) {
	t := s.ticket
	limit := t.Timeout
	if limit == 0 {
		limit = s.exchangeLimit()
	}
	if t.Endpoint != "" && t.Endpoint != s.target.Port.Endpoint {
		s.lease.Done()
		s.target = Target{Port: s.target.Port}
		s.target.Port.Endpoint = t.Endpoint
	}
	s.toDown.keepEnd = true
	if s.downDone && !t.Hold {
		s.toDown.drop(b)
	}
	s.within(limit)
	f := s.failure
	if f == nil && s.downDone && !t.Outlive {
		f = &Failure{Code: CodeGone}
	}
	if f == nil && s.homeless() {
		f = s.await(t.First, b)
	}
	s.lease.Fix() // a tagged call goes to one endpoint, or nowhere
	if f == nil {
		s.mu.Unlock()
		f = s.connect(b)
		s.mu.Lock()
	}
	for f == nil && s.failure == nil && !s.arrived() {
		s.cond.Wait()
	}
	if f == nil && !s.arrived() {
		f = s.failure
	}
	s.finish(f, b)
}

// arrived reports that there is what After waits for.
func (s *stream) arrived() bool {
	return s.status != 0 && (s.holds() || s.toDown.ended)
}

// holds reports that After sees the answer before the client does.
func (s *stream) holds() bool { return s.ticket.Hold || s.open }

// finish calls After, once, and lets the client see how the exchange ended; called with mu held.
func (s *stream) finish(f *Failure, b *batch) {
	t, rest := s.ticket, s.pause()
	var err error
	var res interceptor.Response
	if f != nil {
		s.cut(http2.ErrCodeCancel, b)
		err, _ = s.srv.opts.Explain(*f)
	} else {
		res = (*response)(s)
	}
	s.mu.Unlock()
	b.flush()
	a := s.srv.opts.Gate.After(s.srv.ctx, t, res, err)
	s.mu.Lock()
	s.guided = false
	s.toDown.keepEnd = false
	if s.downDone {
		s.toDown.drop(b) // nobody reads it any more
	}
	switch {
	case a != nil && !s.answered:
		s.reply(a, b)
	case f != nil:
		s.conclude(f, b)
	case s.failure != nil && !s.toDown.ended:
		s.conclude(s.failure, b)
	default:
		if rest > 0 && !s.toDown.ended {
			s.deadline = time.Now().Add(rest)
			s.timer = time.AfterFunc(rest, s.expire)
		}
		if s.answered {
			s.toDown.pump(b)
		} else {
			s.release(b)
		}
		s.settle(b)
	}
}

// pause stops the time of the exchange, which does not count what the Gate takes, and says what is left of it.
func (s *stream) pause() time.Duration {
	if s.timer == nil {
		return 0
	}
	s.timer.Stop()
	s.timer = nil
	return max(time.Until(s.deadline), time.Millisecond)
}
