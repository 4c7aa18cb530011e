package interceptor

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"slices"
	"strconv"
	"strings"
	"time"

	"txmesh/policies"
	"txmesh/txn"
	"txmesh/txn/barrier"
)

func (g *Gate) verdict(s barrier.State, op txn.Op, late bool) barrier.Verdict {
	v := barrier.Judge(s, op, late)
	if g.Observe.BarrierVerdict != nil {
		g.Observe.BarrierVerdict(v.String())
	}
	return v
}

// servedExchange is a forward call at the home of its branch.
type servedExchange struct {
	branch  string
	row     row
	serving *serving
}

// serveForward is the forward call of a branch as it reaches the callee's sidecar.
func (g *Gate) serveForward(ctx context.Context, r Request, c carried, n string) Verdict {
	home, branch := r.Header(HeaderHome), BranchName(c.context.ID, n)
	late := c.err != nil
	stripUnsigned(r)
	switch {
	case !isBranchNumber(n):
		return Verdict{Answer: problem(CodeBadHeader, HeaderBranch+" "+strconv.Quote(r.Header(HeaderBranch))+
			" does not end in the number of a branch", c.context.ID)}
	case home == "" && late:
		return Verdict{Answer: problem(CodeExpired, "it ended at "+c.context.Expires.UTC().Format(time.RFC3339), c.context.ID)}
	case home == "":
		return g.serveJoined(r, c)
	case home != g.Home:
		return Verdict{Answer: problem(CodeNotHome, "branch "+branch+" lives at sidecar "+home+", this is "+g.Home, c.context.ID)}
	case !g.enter(branch):
		g.verdict(barrier.Running, txn.Forward, late)
		return Verdict{Answer: problem(CodeRunning, "branch "+branch, c.context.ID, [2]string{"retry-after", "1"})}
	}
	v := g.guardForward(ctx, r, c, branch, late)
	if v.Ticket == nil {
		g.leave(branch)
	}
	return v
}

// isBranchNumber reports whether n is a number as owners write it. Rows are kept under it.
func isBranchNumber(n string) bool {
	v, err := strconv.ParseUint(n, 10, 32)
	return err == nil && strconv.FormatUint(v, 10) == n
}

// guardForward holds the branch. A ticket keeps it until after.
func (g *Gate) guardForward(ctx context.Context, r Request, c carried, branch string, late bool) Verdict {
	known, state, err := g.load(ctx, branch)
	if err != nil {
		return Verdict{Answer: problem(CodeJournal, err.Error(), c.context.ID)}
	}
	if g.verdict(state, txn.Forward, late) == barrier.Resolve {
		if known, state, err = g.resolveByKey(ctx, branch, known); err != nil {
			return Verdict{Answer: problem(CodeJournal, err.Error(), c.context.ID)}
		}
	}
	switch barrier.Judge(state, txn.Forward, late) {
	case barrier.Run:
		return g.runForward(ctx, r, c, branch)
	case barrier.Early:
		return Verdict{Answer: problem(CodeRunning, "branch "+branch, c.context.ID, [2]string{"retry-after", "1"})}
	case barrier.Replay:
		return Verdict{Answer: replayed(known, branch, c.context.ID)}
	case barrier.Resolve:
		return Verdict{Answer: problem(CodeCrashed, "branch "+branch, c.context.ID)}
	default:
		return Verdict{Answer: problem(CodeLate, "branch "+branch, c.context.ID)}
	}
}

func replayed(r row, branch string, id txn.ID) *Answer {
	if r.Reply == nil || r.Cut {
		return problem(CodeCrashed, "branch "+branch+" was answered, the answer was not kept", id)
	}
	a := &Answer{Status: r.Reply.Status, Body: r.Reply.Body}
	for _, name := range slices.Sorted(mapKeys(r.Reply.Trailer)) {
		a.Trailer = append(a.Trailer, [2]string{strings.ToLower(name), r.Reply.Trailer.Get(name)})
	}
	for _, name := range slices.Sorted(mapKeys(r.Reply.Header)) {
		for _, v := range r.Reply.Header[name] {
			a.Header = append(a.Header, [2]string{strings.ToLower(name), v})
		}
	}
	if len(a.Trailer) == 0 {
		a.Header = append(a.Header, [2]string{"content-length", fmt.Sprint(len(a.Body))})
	}
	a.Header = append(a.Header, [2]string{HeaderReplayed, "true"})
	return a
}

func mapKeys(h http.Header) func(func(string) bool) {
	return func(yield func(string) bool) {
		for k := range h {
			if !yield(k) {
				return
			}
		}
	}
}

// runForward notes durably that the call was started, then lets it through.
func (g *Gate) runForward(ctx context.Context, r Request, c carried, branch string) Verdict {
	x := &servedExchange{branch: branch, serving: &serving{context: c.context}}
	x.row = row{State: barrier.Running, Deadline: c.context.Expires, Method: r.Method(), Path: r.Path()}
	if rule := g.Policies.Current().Call(g.ownTarget(r)); rule != nil && rule.Barrier == policies.Key {
		x.row.Request = g.repeatable(r)
	}
	r.DelHeader(HeaderHome)
	g.carry(r, c.context)
	x.row.Join = g.traced(r)
	x.serving.keys = x.row.Join
	if g.Runners != nil {
		var err error
		if x.row.Runner, err = g.Runners.Name(); err != nil {
			return Verdict{Answer: problem(CodeJournal, err.Error(), c.context.ID)}
		}
	}
	if err := g.save(ctx, branch, &x.row, true); err != nil {
		g.doubt(branch, true)
		return Verdict{Answer: problem(CodeJournal, err.Error(), c.context.ID)}
	}
	g.certain(branch)
	g.joins.enter(g.Now(), x.serving)
	return Verdict{Ticket: &Ticket{Hold: true, Outlive: true, state: x}}
}

// repeatable keeps a request so that it can be made again under its key, or nil: credentials are never kept, and
// without them the answer would be another one.
func (g *Gate) repeatable(r Request) *Outgoing {
	if r.Header("authorization") != "" || r.Header("cookie") != "" || r.Header(HeaderIdempotency) == "" {
		return nil
	}
	body, err := r.Body(g.AnswerMax)
	if err != nil {
		return nil
	}
	o := &Outgoing{Method: r.Method(), Host: r.Host(), Path: r.Path(), Query: r.Query(), Header: http.Header{},
		Body: slices.Clone(body)}
	r.EachHeader(func(name, value string) {
		if isKeptHeader(name) || strings.EqualFold(name, HeaderIdempotency) || strings.EqualFold(name, "accept") {
			o.Header.Add(name, value)
		}
	})
	return o
}

// isKeptHeader says which headers are journaled with an answer or a request: none that carries credentials,
// belongs to one connection or to the protocol itself.
func isKeptHeader(name string) bool {
	switch strings.ToLower(name) {
	case "content-type", "content-encoding", "content-language", "content-disposition", "location", "etag",
		"last-modified", "retry-after", "cache-control", "vary", "grpc-encoding":
		return true
	default:
		return false
	}
}

// after records the answer before anybody sees it. What is not known stays started: unknown.
func (x *servedExchange) after(ctx context.Context, g *Gate, res Response, err error) *Answer {
	defer g.leave(x.branch)
	defer g.joins.leave(g.Now(), x.serving)
	if err != nil {
		x.withdraw(ctx, g, err)
		return nil
	}
	reply := &Reply{Status: res.Status(), Header: http.Header{}}
	res.EachHeader(func(name, value string) {
		if isKeptHeader(name) {
			reply.Header.Add(name, value)
		}
	})
	body, err := res.Body(g.BodyMax)
	switch {
	case errors.Is(err, ErrBodyTooLarge):
		x.row.Cut = true
	case err != nil:
		g.rest(ctx, x.branch, &x.row)
		return nil // broken off: the forwarder breaks it off towards the caller too
	default:
		reply.Body = slices.Clone(body)
		for _, t := range statusOf(res) {
			if reply.Trailer == nil {
				reply.Trailer = http.Header{}
			}
			reply.Trailer.Set(t[0], t[1])
		}
	}
	r, settled := answered(x.row, reply)
	if !settled {
		g.rest(ctx, x.branch, &x.row)
		return nil
	}
	if err := g.save(ctx, x.branch, &r, true); err != nil {
		return problem(CodeJournal, err.Error(), x.serving.context.ID)
	}
	return nil
}

// withdraw takes "started" back when the application was certainly sent nothing, as while it is down: the call never
// took effect here. Should this be lost in a crash, the outcome is unknown, as it would be without it.
func (x *servedExchange) withdraw(ctx context.Context, g *Gate, err error) {
	var unsent interface{ NotSent() bool }
	if !errors.As(err, &unsent) || !unsent.NotSent() {
		g.rest(ctx, x.branch, &x.row)
		return
	}
	if err := g.Rows.Save(ctx, x.branch, x.row.stored, nil, false); err != nil {
		g.doubt(x.branch, true)
		g.Log.Warn("a call that was not sent counts as started", "branch", x.branch, "error", err)
	}
}

// answered files an application's reply to the forward call. The owner judges it by its rule; here only the
// built-in table counts, because Refused must mean that nothing took effect.
func answered(r row, reply *Reply) (row, bool) {
	switch out, _ := policies.BuiltinOutcome(txn.Forward, reply.Message()); out {
	case txn.OK:
		r.State = barrier.Done
	case txn.Refused:
		r.State = barrier.Refused
	default:
		return r, false
	}
	r.Reply, r.Request, r.Runner = reply, nil, ""
	return r, true
}

// resolveByKey finds out how a crashed forward call ended, by making it again under its own key: the application
// answers as it did the first time. It changes nothing where the request was not kept.
func (g *Gate) resolveByKey(ctx context.Context, branch string, r row) (row, barrier.State, error) {
	if r.Request == nil {
		return r, barrier.Crashed, nil
	}
	again := *r.Request
	again.Header = r.Request.Header.Clone()
	id, n, _ := SplitBranchName(branch)
	again.Header.Set(HeaderID, string(id))
	again.Header.Set(HeaderBranch, branch)
	again.Header.Set(HeaderOp, OpForward)
	again.Header.Set(headerTraceparent, g.newTraceparent())
	if err := g.run(ctx, branch, &r); err != nil {
		return r, barrier.Crashed, err
	}
	defer g.rest(ctx, branch, &r)
	// Should the application not have done it before, it does it now. What it calls meanwhile is a branch below this
	// one, or refused where the transaction is decided: nobody could undo it otherwise.
	s := &serving{context: Context{ID: id, Parent: n, Expires: r.Deadline},
		keys: []string{"trace:" + traceID(again.Header.Get(headerTraceparent))}}
	g.joins.enter(g.Now(), s)
	defer g.joins.leave(g.Now(), s)
	reply, err := g.App.Send(ctx, &again)
	if err != nil {
		return r, barrier.Crashed, nil // still unknown: the application does not answer
	}
	done, settled := answered(r, reply)
	if !settled {
		return r, barrier.Crashed, nil
	}
	err = g.save(ctx, branch, &done, true)
	r = done
	return done, done.State, err
}

// Settle carries out an op at the home of its branch, for the owner of the transaction.
func (g *Gate) Settle(ctx context.Context, c HomeCall) HomeReply {
	if c.Home != g.Home {
		return HomeReply{Outcome: txn.Unknown, Cause: "branch " + c.Branch + " lives at sidecar " + c.Home + ", this is " + g.Home}
	}
	if !g.enter(c.Branch) {
		g.verdict(barrier.Running, c.Op, false)
		return HomeReply{Outcome: txn.Pending, Cause: "a call of this branch is still running"}
	}
	defer g.leave(c.Branch)
	r, state, err := g.load(ctx, c.Branch)
	if err == nil && g.verdict(state, c.Op, false) == barrier.Resolve {
		r, state, err = g.resolve(ctx, c, r)
	}
	if err != nil {
		return HomeReply{Outcome: txn.Unknown, Cause: err.Error()}
	}
	if state == barrier.Refused && c.Known == txn.OK && c.Op != txn.Ask {
		state = barrier.Done // the owner judged the recorded answer by its rule, which goes before the built-in table
	}
	return g.settle(ctx, c, r, state)
}

// resolve finds out what a crashed forward call did: by the owner's knowledge, else by the application's key. The
// policy's query is answered in settle, because only the owner can read its answer.
func (g *Gate) resolve(ctx context.Context, c HomeCall, r row) (row, barrier.State, error) {
	if c.Known == txn.OK {
		return r, barrier.Done, nil
	}
	if c.Op == txn.Ask && c.Request != nil {
		return r, barrier.Crashed, nil
	}
	return g.resolveByKey(ctx, c.Branch, r)
}

func (g *Gate) settle(ctx context.Context, c HomeCall, r row, state barrier.State) HomeReply {
	switch barrier.Judge(state, c.Op, false) {
	case barrier.Run:
		return g.runOp(ctx, c, r)
	case barrier.Replay:
		return recorded(c.Op, r, state)
	case barrier.Empty:
		return g.bury(ctx, c, r, txn.OK, "nothing to undo: the call never took effect here")
	case barrier.Absent:
		return g.bury(ctx, c, r, txn.Refused, "the call never arrived, and is refused from now on")
	case barrier.Refuse:
		return HomeReply{Outcome: txn.Refused, Cause: "no forward call stands here: " + state.String()}
	case barrier.Early:
		return HomeReply{Outcome: txn.Pending, Cause: "a call of this branch is still running"}
	case barrier.Resolve:
		return g.unresolved(ctx, c, r)
	default:
		panic("interceptor: unknown verdict")
	}
}

// recorded answers from the row: for Ask what the forward call answered, for a repeated undo that it is done.
func recorded(op txn.Op, r row, state barrier.State) HomeReply {
	switch {
	case op != txn.Ask:
		return HomeReply{Outcome: txn.OK, Cause: "done before"}
	case state == barrier.Undone:
		return HomeReply{Outcome: txn.Refused, Cause: "the call never took effect, or was undone"}
	case r.Reply == nil || r.Cut:
		return HomeReply{Outcome: txn.None, Cause: "the answer was too long to be kept"}
	case state == barrier.Refused:
		return HomeReply{Outcome: txn.Refused, Reply: r.Reply}
	default:
		return HomeReply{Outcome: txn.OK, Reply: r.Reply}
	}
}

// bury notes durably that the forward call must never run: a late one would have nobody to undo it.
func (g *Gate) bury(ctx context.Context, c HomeCall, r row, out txn.Outcome, cause string) HomeReply {
	r.State, r.Request, r.Runner = barrier.Undone, nil, ""
	if r.Deadline.IsZero() {
		r.Deadline = Context{Expires: c.Deadline}.expiry() // no context of the call outlives its row
	}
	if err := g.save(ctx, c.Branch, &r, true); err != nil {
		return HomeReply{Outcome: txn.Unknown, Cause: err.Error()}
	}
	return HomeReply{Outcome: out, Cause: cause}
}

const nobodyKnows = "the forward call was started and how it ended is not known (a crash, a break or a 5xx), and the rule has " +
	"neither query nor barrier: Key"

// unresolved is the end of the line: the policy's query if there is one, else nobody can know.
func (g *Gate) unresolved(ctx context.Context, c HomeCall, r row) HomeReply {
	switch {
	case c.Op == txn.Ask && c.Request != nil:
		reply, err := g.sendOp(ctx, c, OpQuery)
		if err != nil {
			return HomeReply{Outcome: txn.Unknown, Cause: err.Error()}
		}
		return HomeReply{Outcome: txn.OK, Reply: reply, ByQuery: true}
	case r.Request != nil:
		return HomeReply{Outcome: txn.Unknown, Cause: "the application does not answer under the call's key"}
	case c.Op == txn.Ask:
		return HomeReply{Outcome: txn.None, Cause: nobodyKnows}
	default:
		return HomeReply{Outcome: txn.Refused, Cause: nobodyKnows}
	}
}

// runOp passes a commit or an undo to the application. An undo that is done is noted; should the note be lost, or be
// left out because only the owner can judge the answer, the same undo goes out again under the same key.
func (g *Gate) runOp(ctx context.Context, c HomeCall, r row) HomeReply {
	word := OpUndo
	if c.Op == txn.Commit {
		word = OpConfirm
	}
	if c.Request == nil {
		return HomeReply{Outcome: txn.Refused, Cause: "the owner sent no request for this op"}
	}
	if err := g.run(ctx, c.Branch, &r); err != nil {
		return HomeReply{Outcome: txn.Unknown, Cause: err.Error()}
	}
	defer func() { g.rest(ctx, c.Branch, &r) }()
	reply, err := g.sendOp(ctx, c, word)
	if err != nil {
		return HomeReply{Outcome: txn.Unknown, Cause: err.Error()}
	}
	out, cause := policies.BuiltinOutcome(c.Op, reply.Message())
	if out == txn.OK && c.Op == txn.Undo && !c.Judged {
		r.State, r.Request, r.Runner = barrier.Undone, nil, ""
		if err := g.save(ctx, c.Branch, &r, false); err != nil {
			return HomeReply{Outcome: txn.Unknown, Cause: err.Error()}
		}
	}
	return HomeReply{Outcome: out, Reply: reply, Cause: cause}
}

// sendOp calls the application for the engine. Calls that the application makes meanwhile are never branches.
func (g *Gate) sendOp(ctx context.Context, c HomeCall, word string) (*Reply, error) {
	out := *c.Request
	out.Header = c.Request.Header.Clone()
	if out.Header == nil {
		out.Header = http.Header{}
	}
	id, _, _ := SplitBranchName(c.Branch)
	trace := g.newTraceparent()
	out.Header.Set(HeaderID, string(id))
	out.Header.Set(HeaderBranch, c.Branch)
	out.Header.Set(HeaderOp, word)
	out.Header.Set(HeaderAttempt, fmt.Sprint(c.Attempt))
	out.Header.Set(HeaderIdempotency, quoted(c.Branch+"-"+word))
	out.Header.Set(headerTraceparent, trace)
	s := &serving{op: c.Op, branch: c.Branch + "-" + word, keys: []string{"trace:" + traceID(trace)}}
	g.joins.enter(g.Now(), s)
	defer g.joins.leave(g.Now(), s)
	return g.App.Send(ctx, &out)
}
