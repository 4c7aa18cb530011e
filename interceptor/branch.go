package interceptor

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"strconv"
	"strings"
	"time"

	"txmesh/policies"
	"txmesh/txn"
)

// outbound is a call of the application. Without a context and outside of every rule it passes untouched.
func (g *Gate) outbound(ctx context.Context, p Port, r Request) Verdict {
	c := g.carried(r)
	if c.present && c.header && c.err != nil {
		return Verdict{Answer: refusedContext(c)}
	}
	set := g.Policies.Current()
	rule := set.Call(targetOf(p.Service, r))
	if rule == nil {
		var err error
		if rule, err = inline(p, r); err != nil {
			return Verdict{Answer: problem(CodeBadHeader, err.Error(), "")}
		}
	}
	j, ok, ambiguous := g.join(r, c)
	if named := r.Header(HeaderStart); named != "" && !ok {
		start, err := startNamed(set, named)
		if err != nil {
			return Verdict{Answer: problem(CodeBadHeader, err.Error(), "")}
		}
		strip(r)
		if start.Shadow {
			g.shadowed(start.Name)
			return Verdict{}
		}
		return g.root(ctx, r, start, set.Names(p.Service, r.Host()))
	}
	switch {
	case rule != nil && rule.Shadow:
		g.shadowed(rule.Name)
		return g.passOn(r, j, ok, true)
	case rule == nil:
		return g.passOn(r, j, ok, set.Names(p.Service, r.Host()))
	case ok && j.op != txn.Forward:
		return g.passOn(r, j, ok, true)
	case ok:
		return g.branch(ctx, p, r, rule, j)
	case c.present && errors.Is(c.err, ErrExpired):
		return Verdict{Answer: refusedContext(c)}
	default:
		return g.contextless(r, rule, ambiguous)
	}
}

func refusedContext(c carried) *Answer {
	if errors.Is(c.err, ErrExpired) {
		return problem(CodeExpired, "it ended at "+c.context.Expires.UTC().Format(time.RFC3339), c.context.ID)
	}
	return problem(CodeForged, "tx-context carries no valid signature", "")
}

// inline makes a rule out of the application's own headers, where no policy names the call.
func inline(p Port, r Request) (*policies.Call, error) {
	for _, h := range [...]string{headerUndo, headerConfirm, headerCancel, headerHold} {
		if r.Header(h) != "" {
			return policies.Inline(p.Service, r.Header)
		}
	}
	return nil, nil
}

// join finds the transaction of a call: by the context that it carries, else by what ties it to a request that the
// application is serving.
func (g *Gate) join(r Request, c carried) (j joined, ok, ambiguous bool) {
	if c.present && c.err == nil {
		j = joined{context: c.context}
		if c.context.Parent != "" {
			j.parents = []string{c.context.Parent}
		}
		return j, true, false
	}
	keys := traceKeys(r)
	if len(keys) == 0 {
		return joined{}, false, false
	}
	return g.joins.find(g.Now(), keys)
}

// passOn forwards a call that is no branch. Context goes on to services that policies name, so that their calls can
// still be branches; it stays away from everybody else, and from calls made while something is undone.
func (g *Gate) passOn(r Request, j joined, ok, named bool) Verdict {
	if !ok {
		if r.Header(headerBaggage) != "" || r.Header(HeaderContext) != "" {
			strip(r)
		}
		return Verdict{}
	}
	strip(r)
	switch {
	case j.op != txn.Forward:
		if r.Header(HeaderIdempotency) == "" {
			r.SetHeader(HeaderIdempotency, quoted(j.branch+"-"+strconv.Itoa(j.nth)))
		}
	case named:
		g.carry(r, j.context)
	}
	return Verdict{}
}

func quoted(s string) string { return `"` + s + `"` }

// contextless is a call that a rule names and that no transaction could be found for.
func (g *Gate) contextless(r Request, rule *policies.Call, ambiguous bool) Verdict {
	if ambiguous {
		if g.Observe.ContextAmbiguous != nil {
			g.Observe.ContextAmbiguous(rule.Name)
		}
		if rule.Ambiguous == policies.Refuse {
			return Verdict{Answer: problem(CodeAmbiguous, "rule "+rule.Name+": two transactions in flight share its trace-id", "")}
		}
	}
	inFlight := g.joins.inFlight(g.Now())
	if inFlight && !ambiguous && g.Observe.ContextLost != nil {
		g.Observe.ContextLost(rule.Name)
	}
	needed := rule.Required == policies.Always || rule.Required == policies.InFlight && inFlight && !ambiguous
	if needed && rule.Lost == policies.Refuse {
		return Verdict{Answer: problem(CodeLost, "rule "+rule.Name+" makes this call a branch, and it names no transaction", "")}
	}
	strip(r)
	return Verdict{}
}

// branchExchange is an outbound call that is a branch.
type branchExchange struct {
	context Context // of the call: its parent is the branch itself
	branch  string
	call    string // txn.Enlist.Call
	rule    *policies.Call
	request *policies.Message
	atHome  bool // a barrier's home knows the branch
	durable bool // the answer must be durable before the application sees it (L13)
	held    bool // Ticket.Hold
}

// branch has a call journaled before it leaves (L2).
func (g *Gate) branch(ctx context.Context, p Port, r Request, rule *policies.Call, j joined) Verdict {
	if r.Header("upgrade") != "" {
		return Verdict{Answer: problem(CodeUpgrade, "rule "+rule.Name, j.context.ID)}
	}
	rule, undescribed := g.describedCall(ctx, p, rule, j)
	if undescribed != nil {
		return Verdict{Answer: undescribed}
	}
	reads := rule.Reads()
	msg, refused := g.requestMessage(r, reads.RequestBody || rule.Kind == policies.Hold)
	if refused != nil {
		return Verdict{Answer: refused}
	}
	b, err := g.newBranch(p, r, rule, msg, j)
	switch {
	case errors.Is(err, errPeerUnknown):
		return Verdict{Answer: problem(CodePeerUnknown, "rule "+rule.Name+": "+err.Error(), j.context.ID, [2]string{"retry-after", "1"})}
	case err != nil:
		return Verdict{Answer: problem(CodeRule, "rule "+rule.Name+": "+err.Error(), j.context.ID)}
	}
	if err := g.keepDocument(ctx, rule); err != nil {
		return Verdict{Answer: problem(CodeJournal, "rule "+rule.Name+": "+err.Error(), j.context.ID)}
	}
	call := g.callName()
	if b.Key == "" {
		b.Key = call // no call of the application repeats it
	}
	e := txn.Enlist{Branch: b, Calling: rule.Kind != policies.Hold, Call: call}
	if rule.Kind == policies.Hold {
		e.Answered = txn.OK
	}
	placed, err := g.Branches.Enlist(ctx, j.context.ID, e)
	if err != nil {
		return g.notEnlisted(r, rule, j, err)
	}
	name := BranchName(j.context.ID, placed.Branch)
	if rule.Kind == policies.Hold {
		return Verdict{Answer: heldAnswer(r, [2]string{HeaderID, string(j.context.ID)}, [2]string{HeaderBranch, name})}
	}
	t := &Ticket{Timeout: b.Timeout, Outlive: true}
	// The first Enlist settled the home, which may not be what this one proposed.
	x := &branchExchange{branch: placed.Branch, call: call, rule: rule, request: msg, atHome: placed.Home != "", durable: keepsAnswer(rule, placed.Home),
		context: Context{ID: j.context.ID, Parent: placed.Branch, Expires: j.context.Expires}}
	if placed.Home != "" && !IsSharedHome(placed.Home) {
		endpoint, known := g.Peers.EndpointOf(placed.Home)
		if !known {
			err := errors.New("branch " + name + " lives at sidecar " + placed.Home + ", which is not known at present")
			x.after(ctx, g, nil, err) // the call does not leave: nobody must wait for its answer
			return Verdict{Answer: problem(CodeOwner, err.Error(), j.context.ID)}
		}
		t.Endpoint = endpoint
	}
	t.Hold = x.durable || reads.ResponseBody
	x.held, t.state = t.Hold, x
	g.dress(r, x.context, name, placed.Home)
	return Verdict{Ticket: t}
}

// keepDocument makes a rule durable that is in no policy file: one that the application's headers made.
func (g *Gate) keepDocument(ctx context.Context, rule *policies.Call) error {
	if _, inForce := g.Policies.Current().Document(rule.Document); inForce || g.Documents == nil {
		return nil
	}
	return g.Documents.Keep(ctx, rule.Document, rule.Source())
}

// dress gives a forward call the headers of the protocol.
func (g *Gate) dress(r Request, c Context, name, home string) {
	strip(r)
	g.carry(r, c)
	r.SetHeader(HeaderBranch, name)
	r.SetHeader(HeaderOp, OpForward)
	r.SetHeader(HeaderAttempt, "1")
	if home != "" {
		r.SetHeader(HeaderHome, home)
	}
	if r.Header(HeaderIdempotency) == "" {
		r.SetHeader(HeaderIdempotency, quoted(name))
	}
}

// errPeerUnknown says that a barrier's home cannot be named yet. Without its barrier the branch would not be safe.
var errPeerUnknown = errors.New("some peers were never heard of, and one of them may listen at")

// newBranch describes a call as a branch: what its later ops need, where its barrier row lives, what to do when its
// answer is lost.
func (g *Gate) newBranch(p Port, r Request, rule *policies.Call, msg *policies.Message, j joined) (txn.Branch, error) {
	values, err := rule.Record(msg)
	if err != nil {
		return txn.Branch{}, err
	}
	key, err := rule.Key(msg)
	if err != nil {
		return txn.Branch{}, err
	}
	b := txn.Branch{Name: rule.Name, After: j.parents, Timeout: rule.Timeout, Retry: rule.Retry, Join: traceKeys(r)}
	if b.Timeout == 0 && isGRPC(r) {
		b.Timeout = txn.Intercepted.Plan().CallTimeout
	}
	b.Timeout = sooner(b.Timeout, r)
	if key != "" {
		b.Key = rule.Name + "/" + key
		b.Print = fingerprint(msg)
	}
	note := BranchNote{Document: rule.Document, Rule: rule.Name, Service: p.Service, Values: values,
		Deadline: j.context.expiry()}
	if p.Service == "" {
		note.Host = r.Host()
	}
	b.Note = note.Encode()
	for _, op := range [...]txn.Op{txn.Commit, txn.Undo, txn.Ask} {
		b.Ops[op] = has(rule.Has(op))
	}
	if rule.Kind == policies.Hold {
		b.InOrder = true
		return b, nil
	}
	if rule.Barrier == policies.Proxy || rule.Barrier == policies.Key {
		var known bool
		if b.Home, known = g.Peers.HomeOf(p.Endpoint); !known {
			return b, fmt.Errorf("%w %s", errPeerUnknown, p.Endpoint)
		}
	}
	b.Unanswered, b.Ops[txn.Ask] = unanswered(rule, b)
	b.KeepAnswer = keepsAnswer(rule, b.Home)
	return b, nil
}

// keepsAnswer reports whether only the owner keeps an answer that later ops read.
func keepsAnswer(rule *policies.Call, home string) bool {
	return home == "" && (rule.ReadsAnswer(txn.Undo) || rule.ReadsAnswer(txn.Commit))
}

// unanswered says what to do when the outcome of the call is not known: the home knows, or the policy's query finds
// out; without either an undo is sent only where the policy or the service's own barrier makes it harmless.
func unanswered(rule *policies.Call, b txn.Branch) (txn.Resolve, []byte) {
	ask := b.Ops[txn.Ask]
	if b.Home != "" {
		ask = has(true)
	}
	switch {
	case rule.OnUnknown == txn.ResolveUndo || rule.Barrier == policies.Database:
		return txn.ResolveUndo, ask
	case rule.OnUnknown == txn.ResolveStop || ask == nil:
		return txn.ResolveStop, ask
	default:
		return txn.ResolveAsk, ask
	}
}

// incarnationInCall is how much of the incarnation tells calls apart that one sidecar made before and after a restart: 60
// bits. Every call that is a branch is journaled with its name.
const incarnationInCall = 12

// callName tells one forward call from every other, and makes its Enlist repeatable: sidecar, incarnation, counter.
func (g *Gate) callName() string {
	g.mu.Lock()
	defer g.mu.Unlock()
	g.enlisted++
	return g.Self + "/" + g.Incarnation[:min(len(g.Incarnation), incarnationInCall)] + "/" + strconv.FormatUint(g.enlisted, 36)
}

func fingerprint(m *policies.Message) string {
	h := sha256.New()
	for _, part := range []string{m.Method, m.Path, m.Query} {
		h.Write([]byte(strconv.Itoa(len(part)) + ":" + part))
	}
	body := m.Body
	if policies.IsGRPC(m.Header("content-type")) {
		body = policies.CanonicalBody(body, m.Header("grpc-encoding"))
	}
	h.Write(body)
	return hex.EncodeToString(h.Sum(nil)[:12])
}

// requestMessage shows a request to a rule, with its body if the rule reads it.
func (g *Gate) requestMessage(r Request, body bool) (*policies.Message, *Answer) {
	m := &policies.Message{Method: r.Method(), Path: r.Path(), Query: r.Query(), Header: snapshot(r)}
	grpc := isGRPC(r)
	if !body && !grpc {
		return m, nil
	}
	data, err := r.Body(g.BodyMax)
	if grpc && (err == nil || !errors.Is(err, ErrBodyTooLarge)) {
		m.Body = data
		return m, notUnary(r, data, err)
	}
	switch {
	case errors.Is(err, ErrBodyTooLarge):
		return nil, problem(CodeTooLarge, "the body has more than "+strconv.Itoa(g.BodyMax)+" bytes", "")
	case err != nil:
		return nil, &Answer{Status: 400, Header: [][2]string{{"content-length", "0"}, {"connection", "close"}}}
	}
	m.Body = data
	return m, nil
}

// snapshot keeps the headers as they came, because the Gate changes them before rules look at them again. The first of
// a name counts.
func snapshot(r interface {
	EachHeader(func(name, value string))
}) func(string) string {
	h := make([][2]string, 0, headersUsual)
	r.EachHeader(func(name, value string) { h = append(h, [2]string{name, value}) })
	return func(name string) string {
		for i := range h {
			if strings.EqualFold(h[i][0], name) {
				return h[i][1]
			}
		}
		return ""
	}
}

// headersUsual is how many headers most requests have at most.
const headersUsual = 8

// notEnlisted answers a call whose branch could not be journaled: it must not leave.
func (g *Gate) notEnlisted(r Request, rule *policies.Call, j joined, err error) Verdict {
	id := j.context.ID
	switch {
	case errors.Is(err, txn.ErrDecided), errors.Is(err, txn.ErrUnknown):
		if rule.Async == policies.Detach {
			strip(r)
			return Verdict{}
		}
		return Verdict{Answer: problem(CodeDecided, "rule "+rule.Name+": the call was not forwarded", id)}
	case errors.Is(err, txn.ErrConflict):
		return Verdict{Answer: problem(CodeConflict, "rule "+rule.Name+": the key was used for another call of this transaction", id)}
	case errors.Is(err, ErrDenied):
		return Verdict{Answer: problem(CodeDenied, "rule "+rule.Name+": "+err.Error(), id)}
	case errors.Is(err, ErrMismatch):
		g.Log.Warn("branch not enlisted", "tx", id, "rule", rule.Name, "error", err)
		return Verdict{Answer: problem(CodeMismatch, "rule "+rule.Name+": "+err.Error(), id)}
	case errors.Is(err, ErrBranches):
		return Verdict{Answer: problem(CodeBranches, "rule "+rule.Name+": "+err.Error(), id)}
	case OwnerOf(id) != g.Self:
		g.Log.Warn("branch not enlisted", "tx", id, "rule", rule.Name, "error", err)
		return Verdict{Answer: problem(CodeOwner, "rule "+rule.Name+": "+err.Error(), id)}
	default:
		g.Log.Warn("branch not enlisted", "tx", id, "rule", rule.Name, "error", err)
		return Verdict{Answer: problem(CodeJournal, "rule "+rule.Name+": "+err.Error(), id)}
	}
}

// after reports what the call answered. An answer that a later op reads is durable before the application sees it.
func (x *branchExchange) after(ctx context.Context, g *Gate, res Response, err error) *Answer {
	ev := txn.Returned{Branch: x.branch, Op: txn.Forward, Outcome: txn.Unknown, Call: x.call}
	var answer *Answer
	switch {
	case err == nil:
		answer = x.judge(g, res, &ev)
	case !x.atHome && notSent(err):
		// This call certainly had no effect. Where there is a home, its word is taken for all calls of the branch: this
		// is not its word.
		ev.Outcome, ev.Cause = txn.Refused, err.Error()
	default:
		ev.Cause = err.Error()
	}
	if err := g.Branches.Returned(ctx, x.context.ID, ev, x.durable); err != nil {
		g.Log.Warn("answer of a branch not reported", "tx", x.context.ID, "branch", x.branch, "error", err)
		if x.durable && ev.Outcome == txn.OK {
			return problem(CodeJournal, "rule "+x.rule.Name+": the answer could not be kept", x.context.ID)
		}
	}
	return answer
}

func (x *branchExchange) judge(g *Gate, res Response, ev *txn.Returned) *Answer {
	if code := res.Header(HeaderError); code != "" {
		ev.Outcome, ev.Cause = ofSidecar(Code(code), res)
		return nil
	}
	msg, err := g.responseMessage(res, x.rule.Reads().ResponseBody || x.held && isGRPC(res))
	if err != nil {
		ev.Cause = err.Error()
		return problem(CodeUnjudgeable, "rule "+x.rule.Name+": "+err.Error(), x.context.ID)
	}
	ev.Outcome, ev.Cause = x.rule.Outcome(txn.Forward, x.request, msg)
	if ev.Outcome != txn.OK {
		return nil
	}
	if ev.Result, err = x.rule.RecordAnswer(msg); err != nil {
		ev.Outcome, ev.Cause = txn.Unknown, err.Error()
		return problem(CodeUnjudgeable, "rule "+x.rule.Name+": "+err.Error(), x.context.ID)
	}
	return nil
}

// ofSidecar judges an answer that a sidecar on the way made itself: no rule of a policy speaks of it, and all that it
// can say for certain is that the call did not go on.
func ofSidecar(code Code, res Response) (txn.Outcome, string) {
	msg := &policies.Message{Status: res.Status(), Header: res.Header, Trailer: res.Trailer}
	out, _ := policies.BuiltinOutcome(txn.Forward, msg)
	switch {
	case code == CodeRunning:
		out = txn.Pending // gRPC has no word for it
	case out == txn.OK, code == CodeInProgress:
		out = txn.Unknown
	}
	return out, "a sidecar " + msg.Said() + " " + string(code)
}

func (g *Gate) responseMessage(res Response, body bool) (*policies.Message, error) {
	m := &policies.Message{Status: res.Status(), Header: res.Header, Trailer: res.Trailer}
	if !body {
		return m, nil
	}
	data, err := res.Body(g.BodyMax)
	if err == nil && len(data) > 0 && isGRPC(res) {
		err = policies.CheckUnary(data)
	}
	if err != nil {
		return nil, err
	}
	m.Body = data
	return m, nil
}
