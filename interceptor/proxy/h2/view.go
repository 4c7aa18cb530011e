package h2

import (
	"errors"
	"strings"
	"time"

	"txmesh/interceptor"
)

var errStreamed = errors.New("body was streamed: only a ticket with Hold can read it")

// request is a stream as the Gate sees it before it leaves.
type request stream

var _ interceptor.Request = (*request)(nil)

func (r *request) Method() string { return r.head.get(":method") }
func (r *request) Host() string   { return r.head.authority() }

func (r *request) Path() string {
	path, _, _ := strings.Cut(r.head.get(":path"), "?")
	return path
}

func (r *request) Query() string {
	_, query, _ := strings.Cut(r.head.get(":path"), "?")
	return query
}

func (r *request) Header(name string) string {
	if name = strings.ToLower(name); name == "host" {
		return r.Host()
	}
	return r.head[r.pseudo:].get(name)
}

func (r *request) Headers(name string) []string {
	if name = strings.ToLower(name); name == "host" {
		return []string{r.Host()}
	}
	return r.head[r.pseudo:].all(name)
}

func (r *request) SetHeader(name, value string)          { r.head = r.head.edit(name, &value) }
func (r *request) DelHeader(name string)                 { r.head = r.head.edit(name, nil) }
func (r *request) EachHeader(f func(name, value string)) { r.head.each(f) }

func (r *request) Body(most int) ([]byte, error) {
	if r.tunnel != noTunnel {
		return nil, nil // what follows is none
	}
	return (*stream)(r).body(&r.toUp, most)
}

// response is a stream as the Gate sees it when its answer has come.
type response stream

var _ interceptor.Response = (*response)(nil)

func (r *response) Status() int                           { return r.status }
func (r *response) Header(name string) string             { return r.answer[1:].get(strings.ToLower(name)) }
func (r *response) SetHeader(name, value string)          { r.answer = r.answer.edit(name, &value) }
func (r *response) DelHeader(name string)                 { r.answer = r.answer.edit(name, nil) }
func (r *response) EachHeader(f func(name, value string)) { r.answer.each(f) }

// Trailer returns a field behind the body. A gRPC response that has no body has its trailers in the header.
func (r *response) Trailer(name string) string {
	r.mu.Lock()
	defer r.mu.Unlock()
	name = strings.ToLower(name)
	if !r.toDown.ended {
		return ""
	}
	if r.bare {
		return r.answer[1:].get(name)
	}
	return r.toDown.trailer.get(name)
}

func (r *response) Body(most int) ([]byte, error) {
	if r.ticket == nil || !r.ticket.Hold {
		return nil, errStreamed
	}
	return (*stream)(r).body(&r.toDown, most)
}

// body waits until the whole body has come, or more than most bytes of it, and keeps what has come.
func (s *stream) body(d *pipe, most int) ([]byte, error) {
	var b batch
	defer b.flush()
	s.mu.Lock()
	defer s.mu.Unlock()
	d.wanted = most
	d.give(&b)
	defer func() { d.wanted = 0 }()
	if d == &s.toUp {
		s.welcome(&b)
	}
	s.unlocked(b.flush)
	for !d.ended && s.failure == nil && len(d.waiting()) <= most && !d.longer(most) {
		if d == &s.toUp {
			s.waitFor(s.srv.opts.Limits.BufferTime)
		} else {
			s.cond.Wait()
		}
	}
	switch {
	case len(d.waiting()) > most || d.longer(most):
		return nil, interceptor.ErrBodyTooLarge
	case !d.ended:
		s.bodyBroke = true
		err, _ := s.srv.opts.Explain(*s.failure)
		return nil, err
	}
	d.kept = true
	return d.waiting(), nil
}

// waitFor waits for news, and calls it a failure when nothing of the body comes for that long; called with mu held.
func (s *stream) waitFor(silence time.Duration) {
	before := len(s.toUp.pending)
	timer := time.AfterFunc(silence, func() {
		s.mu.Lock()
		if !s.toUp.ended && s.failure == nil && len(s.toUp.pending) == before {
			s.failure = &Failure{Code: CodeSlow, Detail: "body"}
			s.cond.Broadcast()
		}
		s.mu.Unlock()
	})
	s.cond.Wait()
	timer.Stop()
}

func (s *stream) unlocked(f func()) {
	s.mu.Unlock()
	f()
	s.mu.Lock()
}

// welcome sends the 100 that the client waits for, when the Gate wants the body before the endpoint has it.
func (s *stream) welcome(b *batch) {
	if s.toUp.ended || s.toUp.total > 0 || s.downDone || !strings.EqualFold(s.head.get("expect"), "100-continue") {
		return
	}
	s.head = s.head.without("expect")
	s.down.headersTo(s.downID, b, false, fieldList{{Name: ":status", Value: "100"}})
}
