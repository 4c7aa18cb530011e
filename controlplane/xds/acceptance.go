package xds

import (
	"context"
	"time"

	core "github.com/envoyproxy/go-control-plane/envoy/config/core/v3"
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
		now := s.opt.Now()
		*x.types[typ] = answer{nonce: nonce, sent: now, version: version}
		if s.look.IsZero() {
			s.look = s.freezes(now)
		}
	}
}

// answered takes note of an ACK or NACK; a request that answers nothing changes nothing.
func (s *Server) answered(id, typ, nonce string, refusal *rpc.Status) {
	known, changed := s.note(id, typ, nonce, refusal)
	if !known {
		return
	}
	s.opt.Answered(typ == resource.ExtensionConfigType, refusal == nil)
	if refusal != nil {
		s.opt.Log.Warn("resources refused", "stream", id, "type", typ, "reason", shorten(refusal.GetMessage()))
	}
	if changed != nil {
		s.opt.Changed(changed)
	}
}

// note returns whether it is an answer, and the sidecar if its acceptance is another by it.
func (s *Server) note(id, typ, nonce string, refusal *rpc.Status) (known bool, changed *core.Node) {
	s.mu.Lock()
	defer s.mu.Unlock()
	x, now := s.streams[id], s.opt.Now()
	owed := x.types[typ]
	if nonce == "" || owed.nonce != nonce {
		return false, nil
	}
	owed.nonce = ""
	thawed := x.frozen && !s.frozen(x, now)
	if thawed {
		x.frozen, s.look = false, now // it may owe another answer
	}
	policies := typ == resource.ExtensionConfigType
	if policies {
		x.take(s.sets[owed.version], now, refusal)
	}
	if x.joined && (policies || thawed) {
		changed = x.node
	}
	return true, changed
}

func (a *acceptance) take(set string, now time.Time, refusal *rpc.Status) {
	a.since = now
	if refusal != nil {
		a.refused, a.reason = set, shorten(refusal.GetMessage())
		return
	}
	a.accepted, a.refused, a.reason = set, "", ""
}

// freezes is when who owes an answer since a time is frozen.
func (s *Server) freezes(since time.Time) time.Time { return since.Add(frozenBeats * s.opt.Beat) }

// owing is since when the stream owes its oldest answer; zero: none.
func (x *stream) owing() (oldest time.Time) {
	for _, owed := range x.types {
		if owed.nonce != "" && (oldest.IsZero() || owed.sent.Before(oldest)) {
			oldest = owed.sent
		}
	}
	return oldest
}

// frozen is called with mu held.
func (s *Server) frozen(x *stream, now time.Time) bool {
	since := x.owing()
	return !since.IsZero() && !now.Before(s.freezes(since))
}

// Look tells by Options.Changed of the sidecars that have frozen. It may be called often: it goes through the streams
// only when one of them owes an answer for so long that it may have.
func (s *Server) Look() {
	for _, n := range s.newlyFrozen() {
		s.opt.Changed(n)
	}
}

func (s *Server) newlyFrozen() (nodes []*core.Node) {
	s.mu.Lock()
	defer s.mu.Unlock()
	now := s.opt.Now()
	if s.look.IsZero() || now.Before(s.look) {
		return nil
	}
	s.look = time.Time{}
	for _, x := range s.streams {
		since := x.owing()
		switch at := s.freezes(since); {
		case !x.joined || x.frozen || since.IsZero():
		case !now.Before(at):
			x.frozen = true
			nodes = append(nodes, x.node)
		case s.look.IsZero() || at.Before(s.look):
			s.look = at
		}
	}
	return nodes
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
	return Acceptance{Accepted: x.accepted, Refused: x.refused, Reason: x.reason, Since: x.since, Frozen: s.frozen(x, s.opt.Now())}, true
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
	return s.sidecars, len(s.streams) - s.sidecars
}
