// Package outbound makes the calls that the engine asks for: undo, confirm, delivery and query, over HTTP/1.1 and gRPC. It
// is the only place where an answer becomes an outcome. The rule that made a branch is compiled again from the policy
// document journaled under its hash; a branch with a barrier row is settled through its home, all others at the
// service itself. Calls of transactions that a door began are made as the door says (direct.go), and the door reads the
// answer. It decides nothing, retries nothing, follows no redirect and keeps no state but compiled rules. Start at
// Caller.Call.
package outbound

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/http"
	"syscall"
	"time"

	"txmesh/interceptor"
	"txmesh/policies"
	"txmesh/txn"
)

// ErrDocument says that a policy document is not kept (any more). Documents wraps it.
var ErrDocument = errors.New("policy document is not kept")

// Documents gives policy documents by their hash.
type Documents interface {
	Get(ctx context.Context, hash string) (policies.Source, error)
}

// Homes settles a branch at its home, here or at a peer. An error means that the home may have been reached or not.
type Homes interface {
	Settle(ctx context.Context, c interceptor.HomeCall) (interceptor.HomeReply, error)
}

// Places says where services listen, host:port each; none: not known at present.
type Places interface {
	Endpoints(service string) []string
	EndpointsOfHost(host string) []string
}

// Options is what a Caller is made of.
type Options struct {
	Documents      Documents
	Homes          Homes
	Places         Places
	Keys           *interceptor.Keys
	Doors          map[string]interceptor.Door // by Spec.Door
	SecretsDir     string
	BodyMax        int // bytes of an answer
	AllowLinkLocal bool
	Now            func() time.Time
	Control        Control           // of every connection; nil: nothing is done
	Secure         Secure            // nil: nothing is
	Transport      http.RoundTripper // default: connections of its own; simulations have their own network
}

// Control is that of net.Dialer: it sees each socket before it connects.
type Control func(network, address string, c syscall.RawConn) error

// Secure makes TLS of a connection to the endpoint of a service where it takes that; else it returns conn. It closes conn
// when it fails.
type Secure func(ctx context.Context, conn net.Conn, endpoint string) (net.Conn, error)

// Caller implements engine.Caller. It is safe for many goroutines.
type Caller struct {
	opt   Options
	rules rules
	wire  *wire
	grpc  grpcConns
}

// New returns a Caller. Close it to drop its idle connections.
func New(opt Options) *Caller {
	c := &Caller{opt: opt, rules: rules{docs: opt.Documents, byName: map[ruleName]*policies.Call{}},
		wire: newWire(opt.AllowLinkLocal, opt.BodyMax, opt.Control)}
	c.wire.transport.secure = opt.Secure
	c.grpc = newGRPCConns(c.wire.transport)
	if opt.Transport != nil {
		c.wire.trip = opt.Transport
	}
	return c
}

// BreakOff ends all calls that run with an error, for an engine that is about to close. Later calls work.
func (c *Caller) BreakOff() {
	c.wire.transport.breakOff()
	c.grpc.close()
}

// Close drops idle connections.
func (c *Caller) Close() {
	c.wire.transport.CloseIdleConnections()
	c.grpc.close()
}

// branch is what a call is about.
type branch struct {
	call txn.Call
	note interceptor.BranchNote
	rule *policies.Call
}

// verdict is what is said to the engine.
type verdict struct {
	out    txn.Outcome
	result []byte
	cause  string
}

func unknown(cause string) verdict { return verdict{out: txn.Unknown, cause: cause} }

// impossible is a call that no repeat can make right: the op halts, and an operator sees why. A query that cannot be
// made must not count as "no effect".
func impossible(op txn.Op, err error) verdict {
	if op == txn.Ask {
		return verdict{out: txn.None, cause: err.Error()}
	}
	return verdict{out: txn.Refused, cause: err.Error()}
}

// Call makes one call within the context's deadline. It never returns an outcome that was not seen.
func (c *Caller) Call(ctx context.Context, call txn.Call) (txn.Outcome, []byte, string) {
	v := c.call(ctx, call)
	return v.out, v.result, v.cause
}

func (c *Caller) call(ctx context.Context, call txn.Call) verdict {
	if call.Door != "" {
		return c.callDirect(ctx, call)
	}
	if call.Branch == "" || call.Op == txn.Forward || call.Op == txn.Tell {
		return impossible(call.Op, fmt.Errorf("%s of %q is not made by this sidecar", call.Op, call.Branch))
	}
	note, err := interceptor.DecodeNote(call.Note)
	if err != nil {
		return impossible(call.Op, err)
	}
	rule, err := c.rules.find(ctx, note.Document, note.Rule)
	switch {
	case errors.Is(err, errStore):
		return unknown(err.Error())
	case err != nil:
		return impossible(call.Op, err)
	}
	b := branch{call, note, rule}
	if call.Op == txn.Ask {
		return c.ask(ctx, b)
	}
	return c.settle(ctx, b)
}

// settle carries out an undo, a confirm or the delivery of a held call.
func (c *Caller) settle(ctx context.Context, b branch) verdict {
	req, err := b.rule.Render(b.call.Op, b.note.Values, b.call.Answer)
	if errors.Is(err, policies.ErrNoAnswer) && (b.call.Home != "" || b.rule.Has(txn.Ask)) {
		known := c.ask(ctx, b)
		if known.out != txn.OK {
			return withoutAnswer(b.call.Op, known)
		}
		b.call.Answer, b.call.Outcome = known.result, txn.OK
		req, err = b.rule.Render(b.call.Op, b.note.Values, b.call.Answer)
	}
	switch {
	case errors.Is(err, policies.ErrNothing):
		return verdict{out: txn.OK, cause: "nothing to undo: undo.when is false"}
	case err != nil:
		return impossible(b.call.Op, err)
	}
	out, err := c.outgoing(req, b)
	if err != nil {
		return impossible(b.call.Op, err)
	}
	if b.call.Home != "" {
		return c.settleAtHome(ctx, b, out)
	}
	return c.judge(b, c.direct(ctx, b, req, out))
}

// withoutAnswer is the end of an op that reads an answer which could not be found out.
func withoutAnswer(op txn.Op, asked verdict) verdict {
	switch {
	case asked.out == txn.Refused && op == txn.Undo:
		return verdict{out: txn.OK, cause: "nothing to undo: " + asked.cause}
	case asked.out == txn.None || asked.out == txn.Refused:
		return verdict{out: txn.Refused, cause: "the answer of the forward call cannot be found out: " + asked.cause}
	}
	return asked
}

func (c *Caller) settleAtHome(ctx context.Context, b branch, out *interceptor.Outgoing) verdict {
	r, err := c.opt.Homes.Settle(ctx, b.homeCall(b.call.Op, out))
	if err != nil {
		return unknown(err.Error())
	}
	if r.Reply == nil {
		return verdict{out: r.Outcome, cause: r.Cause}
	}
	return c.judge(b, answer{reply: r.Reply})
}

func (b branch) homeCall(op txn.Op, out *interceptor.Outgoing) interceptor.HomeCall {
	return interceptor.HomeCall{Home: b.call.Home, Branch: interceptor.BranchName(b.call.Tx, b.call.Branch), Op: op,
		Known: b.call.Outcome, Attempt: b.call.Attempt, Deadline: b.note.Deadline,
		Judged: b.rule.HasOutcome(op), Request: out}
}

// judge reads the answer to an undo, a confirm or a delivery.
func (c *Caller) judge(b branch, a answer) verdict {
	switch {
	case a.err != nil && errors.Is(a.err, errForbidden):
		return impossible(b.call.Op, a.err)
	case a.err != nil:
		return unknown(a.err.Error())
	case a.fromSidecar():
		return a.ofSidecar()
	}
	out, cause := b.rule.Outcome(b.call.Op, nil, a.message())
	return verdict{out: out, cause: cause}
}

// ask finds out what the forward call did. OK carries the values of its answer that later ops read.
func (c *Caller) ask(ctx context.Context, b branch) verdict {
	var req *policies.Request
	var out *interceptor.Outgoing
	if b.rule.Has(txn.Ask) {
		var err error
		if req, err = b.rule.Render(txn.Ask, b.note.Values, nil); err == nil {
			out, err = c.outgoing(req, b)
		}
		if err != nil {
			return impossible(txn.Ask, err)
		}
	}
	if b.call.Home != "" {
		return c.askHome(ctx, b, out)
	}
	if req == nil {
		return impossible(txn.Ask, fmt.Errorf("rule %s has no query, and no sidecar keeps a row of this call", b.rule.Name))
	}
	b.call.Op = txn.Ask
	return c.readQuery(b, c.direct(ctx, b, req, out))
}

func (c *Caller) askHome(ctx context.Context, b branch, out *interceptor.Outgoing) verdict {
	r, err := c.opt.Homes.Settle(ctx, b.homeCall(txn.Ask, out))
	switch {
	case err != nil:
		return unknown(err.Error())
	case r.Reply == nil:
		return verdict{out: r.Outcome, cause: r.Cause}
	case r.ByQuery:
		return c.readQuery(b, answer{reply: r.Reply})
	}
	a := answer{reply: r.Reply}
	res, cause := b.rule.RecordedOutcome(b.note.Values, a.message())
	if res != txn.OK {
		return verdict{out: res, cause: cause}
	}
	values, err := b.rule.RecordAnswer(a.message())
	if err != nil {
		return impossible(txn.Ask, err)
	}
	return verdict{out: txn.OK, result: values}
}

// readQuery reads the answer of the policy's query. "Not there" may come too early to be believed.
func (c *Caller) readQuery(b branch, a answer) verdict {
	switch {
	case a.err != nil && errors.Is(a.err, errForbidden):
		return impossible(txn.Ask, a.err)
	case a.err != nil:
		return unknown(a.err.Error())
	case a.fromSidecar():
		return a.ofSidecar()
	}
	out, values, cause, err := b.rule.Query(b.note.Values, a.message())
	if err != nil {
		return impossible(txn.Ask, err)
	}
	if out == txn.Refused && b.rule.AbsentAfter > 0 &&
		(b.call.Since.IsZero() || c.opt.Now().Sub(b.call.Since) < b.rule.AbsentAfter) {
		return verdict{out: txn.Pending, cause: cause + "; believed after absentAfter " + b.rule.AbsentAfter.String()}
	}
	return verdict{out: out, result: values, cause: cause}
}
