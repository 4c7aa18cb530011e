package interceptor

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"net/http"
	"strconv"
	"time"

	"github.com/fxamacker/cbor/v2"

	"txmesh/policies"
	"txmesh/txn"
)

// rootExchange is an inbound request that opened a transaction: its answer decides.
type rootExchange struct {
	id      txn.ID
	key     string
	start   *policies.Start
	request *policies.Message
	serving *serving
	grpc    bool
}

// startNamed finds the start rule that tx-start names: `namespace/policy`, or `namespace/policy/rule` where the policy
// has several.
func startNamed(set *policies.Set, name string) (*policies.Start, error) {
	var found *policies.Start
	for _, s := range set.Starts() {
		switch {
		case s.Policy+"/"+s.Name == name:
			return s, nil
		case s.Policy == name && found != nil:
			return nil, fmt.Errorf("tx-start %q names a policy with several start rules: add /%s or another", name, s.Name)
		case s.Policy == name:
			found = s
		}
	}
	if found == nil {
		return nil, fmt.Errorf("tx-start %q names no start rule: write namespace/policy, or namespace/policy/rule", name)
	}
	return found, nil
}

// root opens a transaction for a request that a start rule names, or answers a repeated one from the journal. The
// context goes along only if the request stays inside the mesh.
func (g *Gate) root(ctx context.Context, r Request, start *policies.Start, inside bool) Verdict {
	if r.Header("upgrade") != "" {
		return Verdict{Answer: problem(CodeUpgrade, "start rule "+start.Name, "")}
	}
	start, refused := g.describedStart(ctx, start)
	if refused != nil {
		return Verdict{Answer: refused}
	}
	msg, refused := g.requestMessage(r, start.Reads().RequestBody)
	if refused != nil {
		return Verdict{Answer: refused}
	}
	key, err := start.Key(msg)
	if err != nil {
		return Verdict{Answer: problem(CodeRule, "rule "+start.Name+": key: "+err.Error(), "")}
	}
	if key != "" {
		if msg, refused = g.requestMessage(r, true); refused != nil {
			return Verdict{Answer: refused}
		}
		key = rootKey(start, r, key)
		if answer := g.repeated(ctx, start, key, msg); answer != nil {
			return Verdict{Answer: answer}
		}
	}
	id, timeout := g.NewID(), sooner(start.Timeout, r)
	spec, err := g.newSpec(id, start, key, msg, timeout)
	if err == nil && start.Own != nil {
		err = g.keepDocument(ctx, start.Own)
	}
	if err != nil {
		g.endRoot(key)
		return Verdict{Answer: problem(CodeRule, "rule "+start.Name+": "+err.Error(), "")}
	}
	now := g.Now()
	c := Context{ID: id, Expires: now.Add(timeout)}
	if start.Own != nil {
		c.Parent = "0"
	}
	if inside {
		g.carry(r, c)
	}
	spec.Join = g.traced(r)
	if _, err := g.Coordinator.Do(ctx, id, txn.Begin{Spec: spec}); err != nil {
		g.endRoot(key)
		g.Log.Warn("transaction not begun", "rule", start.Name, "error", err)
		return Verdict{Answer: problem(CodeNotTaking, err.Error(), "", [2]string{"retry-after", "1"})}
	}
	s := &serving{context: c, keys: spec.Join}
	g.joins.enter(now, s)
	return Verdict{Ticket: &Ticket{Timeout: timeout, Hold: true, Outlive: true,
		state: &rootExchange{id: id, key: key, start: start, request: msg, serving: s, grpc: isGRPC(r)}}}
}

// rootKey scopes the client's key to the rule and to who sent it.
func rootKey(start *policies.Start, r Request, key string) string {
	caller := ""
	if auth := r.Header("authorization"); auth != "" {
		sum := sha256.Sum256([]byte(auth))
		caller = hex.EncodeToString(sum[:8])
	}
	return start.Policy + "/" + start.Name + "/" + caller + "/" + key
}

func (g *Gate) newSpec(id txn.ID, start *policies.Start, key string, msg *policies.Message, timeout time.Duration) (txn.Spec, error) {
	spec := txn.Spec{ID: id, Mode: txn.Intercepted, Plan: txn.Intercepted.Plan(), Timeout: timeout,
		Key: key, Name: start.Policy + "/" + start.Name}
	if key != "" {
		spec.Print = fingerprint(msg)
	}
	own := start.Own
	if own == nil {
		return spec, nil
	}
	values, err := own.Record(msg)
	if err != nil {
		return spec, err
	}
	note := BranchNote{Document: own.Document, Rule: own.Name, Service: g.Service, Values: values, Own: true,
		Deadline: g.Now().Add(timeout)}
	b := txn.Branch{ID: "0", Name: own.Name, Note: note.Encode(), Timeout: timeout, Retry: own.Retry}
	for _, op := range [...]txn.Op{txn.Commit, txn.Undo, txn.Ask} {
		b.Ops[op] = has(own.Has(op))
	}
	b.Unanswered, b.Ops[txn.Ask] = unanswered(own, b)
	spec.Branches = []txn.Branch{b}
	return spec, nil
}

// repeated answers a request whose key is known. Without an answer it has reserved the key until endRoot.
func (g *Gate) repeated(ctx context.Context, start *policies.Start, key string, msg *policies.Message) *Answer {
	if !g.beginRoot(key) {
		return problem(CodeInProgress, "rule "+start.Name, "", [2]string{"retry-after", "1"},
			[2]string{HeaderStatus, txn.Open.String()})
	}
	id, err := g.Coordinator.Find(ctx, key)
	if errors.Is(err, txn.ErrUnknown) {
		return nil
	}
	defer g.endRoot(key)
	if err != nil {
		return problem(CodeJournal, "rule "+start.Name+": "+err.Error(), "")
	}
	s, err := g.Coordinator.State(ctx, id)
	if err != nil {
		return problem(CodeJournal, "rule "+start.Name+": "+err.Error(), id)
	}
	if s.Spec.Print != fingerprint(msg) {
		return problem(CodeOtherInput, "rule "+start.Name+": the first request with this key differs", id)
	}
	return g.replay(s, policies.IsGRPC(msg.Header("content-type")))
}

// replay answers a repeated root request by what the journal holds of the first one.
func (g *Gate) replay(s txn.State, grpc bool) *Answer {
	status := [2]string{HeaderStatus, s.Phase.String()}
	if !s.Decided() {
		return problem(CodeInProgress, "", s.Spec.ID, [2]string{"retry-after", "1"}, status)
	}
	a, err := decodeAnswer(s.Answer)
	switch {
	case err == nil && a != nil:
		a.Header = append(a.Header, [2]string{HeaderID, string(s.Spec.ID)}, status)
	case !s.Commit:
		a = problem(CodeAborted, s.Reason, s.Spec.ID, status)
	case grpc:
		a = emptyMessage([2]string{HeaderID, string(s.Spec.ID)}, status)
	default:
		a = &Answer{Status: 200, Header: [][2]string{{"content-length", "0"}, {HeaderID, string(s.Spec.ID)}, status}}
	}
	a.Header = append(a.Header, [2]string{HeaderReplayed, "true"})
	return a
}

func (g *Gate) beginRoot(key string) bool {
	g.mu.Lock()
	defer g.mu.Unlock()
	if g.roots[key] {
		return false
	}
	g.roots[key] = true
	return true
}

func (g *Gate) endRoot(key string) {
	g.mu.Lock()
	defer g.mu.Unlock()
	delete(g.roots, key)
}

// after decides: the decision is durable before the answer leaves.
func (x *rootExchange) after(ctx context.Context, g *Gate, res Response, err error) *Answer {
	defer g.endRoot(x.key)
	defer g.joins.leave(g.Now(), x.serving)
	d, own, unjudged := x.judge(g, res, err)
	if x.start.Own != nil {
		if err := g.Branches.Returned(ctx, x.id, own, false); err != nil {
			g.Log.Warn("answer of the root's own branch not reported", "tx", x.id, "error", err)
		}
	}
	s, err := g.Coordinator.Do(ctx, x.id, d)
	if err == nil && !s.Decided() {
		s, err = g.Coordinator.Wait(ctx, x.id, func(s txn.State) bool { return s.Decided() })
	}
	switch {
	case err != nil && !errors.Is(err, txn.ErrDecided):
		g.Log.Error("decision not recorded", "tx", x.id, "error", err)
		return problem(CodeJournal, "the outcome is not known yet: "+err.Error(), x.id)
	case err != nil:
		if s, err = g.Coordinator.State(ctx, x.id); err != nil {
			return problem(CodeJournal, "the outcome is not known yet: "+err.Error(), x.id)
		}
	}
	s = x.settle(ctx, g, s)
	return x.reply(g, res, s, d.Commit, unjudged)
}

// judge turns the application's answer into a decision, and into the outcome of branch 0. A request that was not
// answered, or whose answer cannot be judged, aborts.
func (x *rootExchange) judge(g *Gate, res Response, err error) (d txn.Decide, own txn.Returned, unjudged *Answer) {
	own = txn.Returned{Branch: "0", Op: txn.Forward, Outcome: txn.Unknown}
	if err != nil {
		own.Cause = err.Error()
		return txn.Decide{Reason: "not answered: " + err.Error()}, own,
			problem(CodeUnanswered, err.Error(), x.id)
	}
	msg, err := g.responseMessage(res, x.start.Reads().ResponseBody || isGRPC(res))
	if err == nil {
		d.Commit, err = x.start.Commits(x.request, msg)
	}
	if err == nil && x.start.Own != nil {
		own.Outcome, own.Cause = x.start.Own.Outcome(txn.Forward, x.request, msg)
		own.Result, err = x.start.Own.RecordAnswer(msg)
	}
	if err != nil {
		own.Outcome, own.Cause = txn.Unknown, err.Error()
		return txn.Decide{Reason: "answer could not be judged: " + err.Error()}, own,
			problem(CodeUnjudgeable, err.Error(), x.id)
	}
	if !d.Commit {
		d.Reason = "root " + msg.Said()
	}
	if x.key != "" {
		d.Answer = g.keepAnswer(res)
	}
	return d, own, nil
}

// settle waits as long as the start rule's reply says.
func (x *rootExchange) settle(ctx context.Context, g *Gate, s txn.State) txn.State {
	reply := x.start.Reply
	if s.Commit && reply.OnCommit == policies.AtDecision || !s.Commit && reply.OnAbort == policies.AtDecision {
		return s
	}
	ctx, cancel := context.WithTimeout(ctx, reply.Max)
	defer cancel()
	ended, err := g.Coordinator.Wait(ctx, x.id, func(s txn.State) bool { return s.Phase.Done() || s.Phase == txn.Stuck })
	if err != nil {
		return s // still settling: the caller is told so
	}
	return ended
}

// reply answers the root request: with the application's own answer where it agrees with the outcome.
func (x *rootExchange) reply(g *Gate, res Response, s txn.State, agreed bool, unjudged *Answer) *Answer {
	status := [2]string{HeaderStatus, s.Phase.String()}
	switch {
	case s.Commit:
		res.SetHeader(HeaderID, string(x.id))
		res.SetHeader(HeaderStatus, s.Phase.String())
		return nil
	case s.Phase == txn.Stuck:
		return problem(CodeStuck, stuckCause(s), x.id, status)
	case s.Phase == txn.Aborting && x.start.Reply.OnAbort == policies.AfterUndo:
		a := problem(CodeStillUndo, "aborted: "+s.Reason, x.id, status, [2]string{"retry-after", "5"})
		if x.grpc {
			a.Status = http.StatusConflict // gRPC has no success that says "not yet": ABORTED
		}
		if g.PublicURL != "" {
			a.Header = append(a.Header, [2]string{"location", g.PublicURL + "/v1/transactions/" + string(x.id)})
		}
		return a
	case unjudged != nil:
		unjudged.Header = append(unjudged.Header, status)
		return unjudged
	case agreed:
		return problem(CodeAborted, s.Reason, x.id, status)
	}
	res.SetHeader(HeaderID, string(x.id))
	res.SetHeader(HeaderStatus, s.Phase.String())
	return nil
}

func stuckCause(s txn.State) string {
	for _, b := range s.Branches {
		for op, k := range b.Known {
			if k.Halted {
				return txn.Op(op).String() + " of branch " + b.ID + " (" + b.Name + "): " + k.Cause
			}
		}
	}
	return s.Reason
}

// kept is a root's answer in the journal.
type kept struct {
	Status  int         `cbor:"1,keyasint"`
	Header  [][2]string `cbor:"2,keyasint,omitempty"`
	Body    []byte      `cbor:"3,keyasint,omitempty"`
	Trailer [][2]string `cbor:"4,keyasint,omitempty"` // of gRPC
}

// keepAnswer encodes the answer for replay, or nil where it is too long to be kept. Cookies are never kept.
func (g *Gate) keepAnswer(res Response) []byte {
	k := kept{Status: res.Status()}
	body, err := res.Body(g.AnswerMax)
	if err != nil {
		return nil
	}
	k.Body = body
	res.EachHeader(func(name, value string) {
		if isKeptHeader(name) {
			k.Header = append(k.Header, [2]string{name, value})
		}
	})
	k.Trailer = statusOf(res)
	b, err := cbor.Marshal(k)
	if err != nil {
		panic(err) // plain data always marshals
	}
	return b
}

func decodeAnswer(b []byte) (*Answer, error) {
	if len(b) == 0 {
		return nil, nil
	}
	var k kept
	if err := cbor.Unmarshal(b, &k); err != nil {
		return nil, err
	}
	a := &Answer{Status: k.Status, Header: k.Header, Body: k.Body, Trailer: k.Trailer}
	if len(k.Trailer) == 0 {
		a.Header = append(a.Header, [2]string{"content-length", strconv.Itoa(len(k.Body))})
	}
	return a, nil
}
