package h2

import (
	"context"
	"errors"
	"strconv"
	"time"

	"txmesh/interceptor"
	"txmesh/interceptor/traffic"
	"txmesh/policies"
)

// enter gives a new request an endpoint and asks the Gate, in this order: what cannot be taken is refused before the Gate
// has begun anything for it. What may be an op is not: only the Gate can tell. Called with mu held.
func (s *stream) enter(b *batch) {
	if s.target.Cluster == nil || s.mayBeOp() {
		s.ask(b)
		return
	}
	f, wait := s.choose()
	switch {
	case wait:
		s.guided = true
		s.down.guides.Go(s.queue)
	case f != nil:
		s.conclude(f, b)
	default:
		s.ask(b)
	}
}

func (s *stream) mayBeOp() bool {
	return s.target.Port.Direction == interceptor.Inbound && s.srv.opts.Gate != nil && (*request)(s).Header("tx-op") != ""
}

// homeless reports that no endpoint was chosen yet.
func (s *stream) homeless() bool { return s.target.Cluster != nil && !s.lease.Held() }

func (s *stream) wish(first bool) traffic.Ask {
	r := (*request)(s)
	return traffic.Ask{Method: r.Method(), Path: r.Path(), First: first}
}

// choose gives the request an endpoint, or says that it has to wait for one; called with mu held.
func (s *stream) choose() (f *Failure, wait bool) {
	l, err := s.target.Cluster.TryPick(s.wish(false))
	if errors.Is(err, traffic.ErrBusy) {
		return nil, true
	}
	return s.took(l, err), false
}

func (s *stream) took(l traffic.Lease, err error) *Failure {
	if err != nil {
		return s.srv.opts.NoPlace(s.target.Port.Service, err)
	}
	s.lease = l
	s.target.Port.Endpoint = l.Endpoint()
	return nil
}

// await gives the request an endpoint when its turn comes, unless the client goes away. Called with mu held, by a
// goroutine that may wait.
func (s *stream) await(first bool, b *batch) *Failure {
	if s.downDone && !s.outlives() {
		return &Failure{Code: CodeGone}
	}
	ctx, cancel := context.WithCancel(s.srv.ctx)
	defer cancel()
	s.quit = cancel
	cluster, wish := s.target.Cluster, s.wish(first)
	s.mu.Unlock()
	b.flush()
	l, err := cluster.Pick(ctx, wish)
	s.mu.Lock()
	s.quit = nil
	if err != nil && s.downDone {
		return &Failure{Code: CodeGone}
	}
	f := s.took(l, err)
	if f == nil {
		f = s.failure
	}
	return f
}

// queue waits for the turn of a new request, and asks the Gate then.
func (s *stream) queue() { s.later((*stream).consult) }

// admitLater waits for the turn of a request that only seemed to be an op.
func (s *stream) admitLater() {
	s.later(func(s *stream, b *batch) { s.decided(interceptor.Verdict{}, b) })
}

func (s *stream) later(next func(*stream, *batch)) {
	var b batch
	defer b.flush()
	s.mu.Lock()
	defer s.mu.Unlock()
	if f := s.await(false, &b); f != nil {
		s.guided = false
		s.conclude(f, &b)
		return
	}
	next(s, &b)
}

// admit sends an untagged request on its way; called with mu held.
func (s *stream) admit(b *batch) {
	if s.homeless() {
		f, wait := s.choose()
		switch {
		case wait:
			s.guided = true
			s.down.guides.Go(s.admitLater)
			return
		case f != nil:
			s.conclude(f, b)
			return
		}
	}
	s.within(s.exchangeLimit())
	s.dispatch(b)
}

// exchangeLimit is how long an exchange may take if its ticket says nothing.
func (s *stream) exchangeLimit() time.Duration {
	if limit := s.lease.Request(); limit > 0 {
		return limit
	}
	return s.srv.opts.Limits.Exchange
}

func (s *stream) terms() terms {
	return terms{connect: s.lease.Connect(), idle: s.lease.Idle(), conns: s.lease.Conns()}
}

// pass tells of an endpoint that could not be reached, and goes on to another one if the policy has it.
func (s *stream) pass(ctx context.Context, f *Failure) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.report(f)
	if f.Endpoint == "" || ctx.Err() != nil || !s.lease.Elsewhere() {
		return false
	}
	s.target.Port.Endpoint = s.lease.Endpoint()
	return true
}

// report tells the cluster of a failure. An endpoint is not to blame for a client without patience, nor for a full one. How a
// tunnel ends is nobody's business.
func (s *stream) report(f *Failure) {
	if s.open || s.impatient && !time.Now().Before(s.deadline) {
		return
	}
	switch f.Code {
	case CodeUnreachable, CodeNotHTTP2, CodeBroken, CodeAnswer, CodeTime:
		s.lease.Report(traffic.Failed)
	}
}

// judgeHead tells the cluster what the head of an answer says of its endpoint, and returns the reason that there is to
// repeat the request; 0: none. Where it is gRPC's and there is more, the trailers say it, too late for a repeat.
func (s *stream) judgeHead(status int, h fieldList, bare bool) policies.RetryOn {
	if status < 500 && !bare && isGRPC(h.get("content-type")) {
		return 0
	}
	return s.judge(status, h)
}

// judge is judgeHead for a list of fields that says all. gRPC's UNAVAILABLE is the 503 of others.
func (s *stream) judge(status int, h fieldList) policies.RetryOn {
	if h.get("grpc-status") == strconv.Itoa(grpcUnavailable) {
		status = 503
	}
	outcome, why := traffic.OK, policies.RetryOn(0)
	if status >= 500 {
		outcome, why = s.srv.opts.Judge(status, h.get("tx-error"))
	}
	s.lease.Report(outcome)
	return why
}

// again sends an untagged request to another endpoint, if the policy allows to repeat it for this reason and there is all
// of it. Its client has seen nothing of an answer, and its stream to the old endpoint has ended. Called with mu held.
func (s *stream) again(why policies.RetryOn) bool {
	if why == 0 || !s.movable() || !s.toUp.ended && s.tunnel == noTunnel || s.srv.ctx.Err() != nil {
		return false
	}
	if !s.deadline.IsZero() && !time.Now().Before(s.deadline) || !s.lease.Next(why) {
		return false
	}
	s.target.Port.Endpoint = s.lease.Endpoint()
	return true
}

// movable reports that a request can be sent once more as it was: what has left of it is at hand, what follows still comes.
func (s *stream) movable() bool { return !s.guided && !s.noReplay && !s.downDone && s.status == 0 }
