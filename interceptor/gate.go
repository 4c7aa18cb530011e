package interceptor

import (
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"log/slog"
	"sync"
	"time"

	"txmesh/policies"
	"txmesh/txn"
)

// Options is what a Gate works with. All seams are required; zero numbers take the defaults named.
type Options struct {
	Self        string // owner id of this sidecar
	Incarnation string // differs with every start of the process
	Home        string // where barrier rows of this sidecar live; default Self
	Service     string // namespace/name of the application beside it
	Keys        *Keys
	Coordinator Coordinator
	Branches    Branches
	Peers       Peers
	Rows        Rows
	Runners     Runners // of a SharedHome; nil: this sidecar alone runs what is in Rows
	App         App
	Policies    Policies
	Types       Types     // of messages of gRPC, for rules whose documents do not describe them; nil: nobody knows
	Documents   Documents // keeps the documents of rules that are in no set; nil: nobody does
	NewID       func() txn.ID
	Now         func() time.Time // default time.Now
	Random      func([]byte)     // default crypto/rand
	Log         *slog.Logger
	Observe     Observer
	BodyMax     int           // bytes buffered of any message, default 1 MiB
	AnswerMax   int           // bytes of a root's answer kept for replay, default 64 KiB
	Linger      time.Duration // how long late calls of an answered request are still recognised, default 30 s
	PublicURL   string        // base of the status resource in Location; empty: no Location
}

// Observer hears what the Gate counts. Nil functions are not called.
type Observer struct {
	ContextLost      func(rule string)
	ContextAmbiguous func(rule string)
	ContextForged    func()
	CarrierOverflow  func()
	BarrierVerdict   func(verdict string)
	Shadowed         func(rule string)
	Denied           func(act policies.Act, caller string)
}

// Gate decides for every request what the transaction protocol makes of it. It is safe for many goroutines; two
// Gates in one process share nothing.
type Gate struct {
	Options
	joins *joins

	mu       sync.Mutex
	roots    map[string]bool   // guarded by mu: keys of root requests being served
	busy     map[string]bool   // guarded by mu: branches with a call running at their home
	doubts   map[string]*doubt // guarded by mu: by branch
	enlisted uint64            // guarded by mu: counts Enlists of this incarnation
}

// New returns a Gate, or an error that names what is missing.
func New(o Options) (*Gate, error) {
	for _, need := range []struct {
		name    string
		missing bool
	}{
		{"Self", o.Self == ""}, {"Service", o.Service == ""}, {"Keys", o.Keys == nil},
		{"Coordinator", o.Coordinator == nil}, {"Branches", o.Branches == nil}, {"Peers", o.Peers == nil},
		{"Rows", o.Rows == nil}, {"App", o.App == nil}, {"Policies", o.Policies == nil}, {"NewID", o.NewID == nil},
	} {
		if need.missing {
			return nil, fmt.Errorf("gate: option %s is missing", need.name)
		}
	}
	if o.Home == "" {
		o.Home = o.Self
	}
	if o.Now == nil {
		o.Now = time.Now
	}
	if o.Random == nil {
		o.Random = func(b []byte) { _, _ = rand.Read(b) } // never fails (crypto/rand since Go 1.24)
	}
	if o.Log == nil {
		o.Log = slog.New(slog.DiscardHandler)
	}
	if o.BodyMax <= 0 {
		o.BodyMax = 1 << 20
	}
	if o.AnswerMax <= 0 {
		o.AnswerMax = 64 << 10
	}
	if o.Linger <= 0 {
		o.Linger = 30 * time.Second
	}
	return &Gate{Options: o, joins: newJoins(o.Linger), roots: map[string]bool{}, busy: map[string]bool{}, doubts: map[string]*doubt{}}, nil
}

// exchange is what the Gate remembers of a request until After.
type exchange interface {
	after(ctx context.Context, g *Gate, res Response, err error) *Answer
}

// Before looks at a request before it is forwarded. It may change its headers. When it returns a Ticket, every
// fact that must be durable before the request leaves is durable.
func (g *Gate) Before(ctx context.Context, p Port, r Request) Verdict {
	if p.Direction == Inbound {
		return g.inbound(ctx, p, r)
	}
	return g.outbound(ctx, p, r)
}

// After takes the end of a request that Before gave a Ticket for: its response, or why there is none. A non-nil
// Answer takes the response's place.
func (g *Gate) After(ctx context.Context, t *Ticket, res Response, err error) *Answer {
	// What happened must be recorded even if nobody waits for the answer any more.
	return t.state.(exchange).after(context.WithoutCancel(ctx), g, res, err)
}

// carried is the transaction context that a request carries.
type carried struct {
	context Context
	err     error // nil, ErrForged, ErrExpired
	present bool
	header  bool // in tx-context, not only in baggage
}

func (g *Gate) carried(r Request) carried {
	raw, header := rawContext(r)
	if raw == "" {
		return carried{}
	}
	c, err := g.Keys.Verify(raw, g.Now())
	if errors.Is(err, ErrForged) && g.Observe.ContextForged != nil {
		g.Observe.ContextForged()
	}
	return carried{context: c, err: err, present: true, header: header}
}

// inbound is a request from the network to the application. Headers of the protocol count only under a context
// that this mesh signed; all others are stripped.
func (g *Gate) inbound(ctx context.Context, p Port, r Request) Verdict {
	c := g.carried(r)
	c.present = c.present && !errors.Is(c.err, ErrForged)
	id, n, branched := SplitBranchName(r.Header(HeaderBranch))
	branched = branched && c.present && id == c.context.ID
	if op := r.Header(HeaderOp); branched && op != "" && op != OpForward {
		return g.serveOp(r, c)
	}
	start, err := g.startOf(p, r)
	if err != nil {
		return Verdict{Answer: problem(CodeBadHeader, err.Error(), "")}
	}
	opens := start != nil && !start.Shadow
	switch {
	case c.present && opens && start.Nested == policies.NestedReject:
		return Verdict{Answer: problem(CodeNested, "start rule "+start.Name+" rejects it", c.context.ID)}
	case branched:
		if denied := g.denied(policies.Join, p, r); denied != nil {
			return Verdict{Answer: denied}
		}
		return g.serveForward(ctx, r, c, n)
	case c.present && c.err != nil && c.header:
		// It was made for a transaction that is over: what it calls would stand outside of it.
		return Verdict{Answer: refusedContext(c)}
	case c.present && c.err == nil && (!opens || start.Nested == policies.NestedJoin):
		if denied := g.denied(policies.Join, p, r); denied != nil {
			return Verdict{Answer: denied}
		}
		strip(r)
		return g.serveJoined(r, c)
	}
	strip(r)
	if opens {
		if denied := g.denied(policies.Begin, p, r); denied != nil {
			return Verdict{Answer: denied}
		}
		return g.root(ctx, r, start, true)
	}
	if start != nil {
		g.shadowed(start.Name)
	}
	return Verdict{}
}

// startOf returns the start rule of an inbound request, or nil. A trusted gateway may name it.
func (g *Gate) startOf(p Port, r Request) (*policies.Start, error) {
	set := g.Policies.Current()
	if named := r.Header(HeaderStart); named != "" && p.Trusted {
		return startNamed(set, named)
	}
	return set.Start(g.ownTarget(r)), nil
}

// denied holds who opens or joins a transaction to the access policies of this service; nil: the caller may.
func (g *Gate) denied(act policies.Act, p Port, r Request) *Answer {
	if g.Policies.Current().Access(g.Service).Allows(act, p.Caller, g.ownTarget(r)) {
		return nil
	}
	if g.Observe.Denied != nil {
		g.Observe.Denied(act, p.Caller)
	}
	caller := p.Caller
	if caller == "" {
		caller = "a caller without certificate"
	}
	return problem(CodeDenied, act.String()+" at "+g.Service+" is not allowed to "+caller, "")
}

func (g *Gate) shadowed(rule string) {
	if g.Observe.Shadowed != nil {
		g.Observe.Shadowed(rule)
	}
}

func targetOf(service string, r Request) policies.Target {
	return policies.Target{Service: service, Host: r.Host(), Method: r.Method(), Path: r.Path(), GRPC: isGRPC(r)}
}

func (g *Gate) ownTarget(r Request) policies.Target {
	return targetOf(g.Service, r)
}

// serveJoined passes a request that belongs to a transaction and is no branch at a home: the calls that the
// application makes meanwhile join.
func (g *Gate) serveJoined(r Request, c carried) Verdict {
	s := &serving{context: c.context}
	g.carry(r, c.context)
	s.keys = g.traced(r)
	g.joins.enter(g.Now(), s)
	return Verdict{Ticket: &Ticket{state: (*joinedExchange)(s)}}
}

// joinedExchange only has to be taken out of the joins at its end.
type joinedExchange serving

func (e *joinedExchange) after(_ context.Context, g *Gate, _ Response, _ error) *Answer {
	g.joins.leave(g.Now(), (*serving)(e))
	return nil
}

// serveOp passes an engine's call that no barrier is in charge of. What the application calls meanwhile is never a
// branch, so the context stays outside.
func (g *Gate) serveOp(r Request, c carried) Verdict {
	stripUnsigned(r)
	s := &serving{context: c.context, op: txn.Undo, branch: r.Header(HeaderBranch) + "-" + r.Header(HeaderOp)}
	r.DelHeader(HeaderContext)
	setBaggage(r, "")
	s.keys = g.traced(r)
	g.joins.enter(g.Now(), s)
	return Verdict{Ticket: &Ticket{state: (*joinedExchange)(s), Outlive: true}}
}

// carry puts the context on a request in both forms.
func (g *Gate) carry(r Request, c Context) {
	signed := g.Keys.Sign(c)
	r.SetHeader(HeaderContext, signed)
	r.SetHeader(HeaderID, string(c.ID))
	if !setBaggage(r, signed) && g.Observe.CarrierOverflow != nil {
		g.Observe.CarrierOverflow()
	}
}

// traced returns the keys that calls of the application can be joined by, and gives the request a traceparent if
// it has none, so that traced applications have something to pass on.
func (g *Gate) traced(r Request) []string {
	if traceID(r.Header(headerTraceparent)) == "" {
		r.SetHeader(headerTraceparent, g.newTraceparent())
	}
	return traceKeys(r)
}

func (g *Gate) newTraceparent() string {
	var b [24]byte
	g.Random(b[:])
	return newTraceparent(b)
}

// Restore fills the map of late calls after a restart, before any listener opens: from the transactions that are
// open here, and from the barrier's rows of foreign ones.
func (g *Gate) Restore(ctx context.Context, open []txn.State) error {
	now := g.Now()
	for _, s := range open {
		if len(s.Spec.Join) > 0 && (s.Expires.IsZero() || now.Before(s.Expires)) {
			g.joins.remember(now, &serving{keys: s.Spec.Join, context: Context{ID: s.Spec.ID, Expires: s.Expires}})
		}
	}
	return g.Rows.Each(ctx, func(branch string, data []byte) bool {
		id, n, ok := SplitBranchName(branch)
		r, err := decodeRow(data)
		if ok && err == nil && now.Before(r.Deadline) {
			g.joins.remember(now, &serving{keys: r.Join, context: Context{ID: id, Parent: n, Expires: r.Deadline}})
		}
		return true
	})
}
