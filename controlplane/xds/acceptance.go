package xds

import (
	"context"
	"time"

	discovery "github.com/envoyproxy/go-control-plane/envoy/service/discovery/v3"
	"github.com/envoyproxy/go-control-plane/pkg/resource/v3"
	rpc "google.golang.org/genproto/googleapis/rpc/status"
)

// frozenBeats is how many heartbeats may pass before a sidecar that answers nothing is shown as frozen. The server sends
// nothing of a type while a response of it is unanswered: such a sidecar keeps its last policies and does not know.
const frozenBeats = 2

// reasonMax bounds what a sidecar may have us keep and show.
const reasonMax = 1 << 10

// answer is what a stream owes for one type. It owes one answer at most.
type answer struct {
	nonce   string // of the response that is not answered; empty: there is none
	sent    time.Time
	version string // of the cache when it was sent
}

// acceptance is how a stream has taken the policies.
type acceptance struct {
	accepted string // version of the set that was accepted last
	refused  string // version of the set that was refused last; empty: the last answer was no refusal
	reason   string
	since    time.Time
}

// Acceptance is how one sidecar has taken the policies.
type Acceptance struct {
	Accepted string    // version of the set that it accepted last; empty: none
	Refused  string    // version of the set that it refused since; empty: none
	Reason   string    // of the refusal
	Since    time.Time // of the last answer
	Frozen   bool      // it has not answered for two heartbeats
}

// OnStreamDeltaResponse implements delta.Callbacks.
func (o *observer) OnStreamDeltaResponse(id int64, r *discovery.DeltaDiscoveryRequest, res *discovery.DeltaDiscoveryResponse) {
	(*Server)(o).sent(deltaID(id), r.GetTypeUrl(), res.GetNonce(), res.GetSystemVersionInfo())
}

// OnStreamResponse implements sotw.Callbacks.
func (o *observer) OnStreamResponse(_ context.Context, id int64, r *discovery.DiscoveryRequest, res *discovery.DiscoveryResponse) {
	(*Server)(o).sent(sotwID(id), r.GetTypeUrl(), res.GetNonce(), res.GetVersionInfo())
}

func (s *Server) sent(id, typ, nonce, version string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if x := s.streams[id]; x != nil && x.types[typ] != nil {
		*x.types[typ] = answer{nonce: nonce, sent: s.opt.Now(), version: version}
	}
}

// answered takes note of an ACK or NACK; a request that answers nothing changes nothing.
func (s *Server) answered(id, typ, nonce string, refusal *rpc.Status) {
	if !s.note(id, typ, nonce, refusal) {
		return
	}
	policies := typ == resource.ExtensionConfigType
	s.opt.Answered(policies, refusal == nil)
	if refusal != nil {
		s.opt.Log.Warn("resources refused", "stream", id, "type", typ, "reason", shorten(refusal.GetMessage()))
	}
	if policies {
		s.opt.Changed()
	}
}

func (s *Server) note(id, typ, nonce string, refusal *rpc.Status) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	x := s.streams[id]
	owed := x.types[typ]
	if nonce == "" || owed.nonce != nonce {
		return false
	}
	owed.nonce = ""
	if typ != resource.ExtensionConfigType {
		return true
	}
	x.since = s.opt.Now()
	set := s.sets[owed.version]
	if refusal != nil {
		x.refused, x.reason = set, shorten(refusal.GetMessage())
		return true
	}
	x.accepted, x.refused, x.reason = set, "", ""
	return true
}

func shorten(text string) string {
	if len(text) > reasonMax {
		return text[:reasonMax] + "..."
	}
	return text
}

// Acceptance returns how a stream has taken the policies, false when it is none of a sidecar.
func (s *Server) Acceptance(id string) (Acceptance, bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	x := s.streams[id]
	if x == nil || !x.joined {
		return Acceptance{}, false
	}
	a := Acceptance{Accepted: x.accepted, Refused: x.refused, Reason: x.reason, Since: x.since}
	for _, owed := range x.types {
		if owed.nonce != "" && s.opt.Now().Sub(owed.sent) >= frozenBeats*s.opt.Beat {
			a.Frozen = true
		}
	}
	return a, true
}

// Policies returns the version of the set in force; empty: there is none.
func (s *Server) Policies() string {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.policies
}

// Streams counts the open streams of sidecars, and of others.
func (s *Server) Streams() (sidecars, others int) {
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, x := range s.streams {
		if x.joined {
			sidecars++
		} else {
			others++
		}
	}
	return sidecars, others
}
