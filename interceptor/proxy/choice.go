package proxy

import (
	"context"
	"errors"
	"time"

	"txmesh/interceptor"
	"txmesh/interceptor/traffic"
	"txmesh/policies"
)

// mayBeOp reports whether an inbound request says that it is an op of a transaction. It has the right of way, but only
// the Gate can tell whether that is true.
func (s *session) mayBeOp(t *target) bool {
	return t.port.Direction == interceptor.Inbound && s.srv.opts.Gate != nil && len(s.req.head.get("tx-op")) > 0
}

// choose gives the request an endpoint, perhaps after its turn in the queue. What cannot be taken is refused before the
// Gate has begun anything for it.
func (s *session) choose(t *target, first bool) *Error {
	if t.cluster == nil {
		return nil
	}
	var err error
	s.lease, err = t.cluster.Pick(s.srv.ctx, traffic.Ask{Method: s.req.Method(), Path: s.req.Path(), First: first, Alone: true})
	if err != nil {
		return noPlace(t.port.Service, err)
	}
	t.port.Endpoint = s.lease.Endpoint()
	return nil
}

// noPlace says why a request was given no endpoint.
func noPlace(service string, err error) *Error {
	e := &Error{Endpoint: service, cause: err}
	switch {
	case errors.Is(err, traffic.ErrFull):
		e.fault = faultFull
	case errors.Is(err, traffic.ErrWaited):
		e.fault = faultWaited
	case errors.Is(err, traffic.ErrNoEndpoint):
		e.fault = faultNowhere
	case errors.Is(err, context.Canceled):
		e.fault, e.cause, e.detail = faultUnreachable, nil, "shutting down"
	default:
		panic("proxy: no endpoint for a reason that nobody knows: " + err.Error())
	}
	return e
}

// converse sends the request and waits for the head of its response, at the next endpoint again where that is allowed.
func (s *session) converse(endpoint string) *Error {
	s.whole = s.req.body.done
	whole := s.deadline
	for {
		perTry := s.lease.PerTry()
		if perTry > 0 {
			if until := time.Now().Add(perTry); whole.IsZero() || until.Before(whole) {
				s.deadline = until
			}
		}
		err := s.send(endpoint)
		if err == nil {
			err = s.await()
		}
		s.deadline = whole
		if !s.again(s.judge(err)) {
			if err == nil && perTry > 0 {
				readUntil(s.up.conn, whole)
				writeUntil(s.up.conn, whole)
			}
			return err
		}
		endpoint = s.lease.Endpoint()
	}
}

// judge tells the cluster how the endpoint behaved, and returns the reason that there is to repeat the request; 0: none.
func (s *session) judge(err *Error) policies.RetryOn {
	outcome, why := traffic.OK, policies.RetryOn(0)
	switch {
	case err != nil:
		outcome, why = ofError(err)
	case s.res.head.status >= 500:
		outcome, why = ofStatus(s.res.head.status, string(s.res.head.get("tx-error")))
	}
	s.lease.Report(outcome)
	return why
}

func ofError(err *Error) (traffic.Outcome, policies.RetryOn) {
	switch {
	case err.fault == faultUnreachable && !err.sent:
		return traffic.Failed, policies.ConnectFailure
	case err.fault == faultBroken:
		return traffic.Failed, policies.Reset
	case err.fault == faultTime:
		return traffic.Failed, policies.TimedOut
	case err.fault == faultAnswer:
		return traffic.Failed, 0
	}
	return traffic.Unjudged, 0 // the client is to blame
}

// ofStatus reads an answer of 5xx. Some are of the endpoint's sidecar, and say that its application has seen nothing;
// that it takes no more is no fault of it.
func ofStatus(status int, code string) (traffic.Outcome, policies.RetryOn) {
	codes := Codes()
	switch code {
	case codes[faultConns].Code, codes[faultFull].Code, codes[faultWaited].Code, codes[faultQueue].Code:
		return traffic.Unjudged, policies.NotSent
	case codes[faultUnreachable].Code, codes[faultNowhere].Code:
		return traffic.Failed, policies.NotSent
	}
	if status >= 502 && status <= 504 {
		return traffic.Failed, policies.GatewayError
	}
	return traffic.Failed, 0
}

// again makes the request ready for another endpoint, if the policy allows to send it again and there is all of it. The
// client has seen nothing of an answer.
func (s *session) again(why policies.RetryOn) bool {
	if why == 0 || why != policies.ConnectFailure && !s.whole || s.srv.killed.Load() || s.cause.Load() != nil {
		return false
	}
	if !s.deadline.IsZero() && !time.Now().Before(s.deadline) || !s.lease.Next(why) {
		return false
	}
	s.breakUp()
	s.uploaded.Store(false)
	s.finishing.Store(0)
	s.res.reset()
	return true
}
