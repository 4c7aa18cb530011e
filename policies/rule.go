package policies

import (
	"fmt"
	"strings"
	"time"

	"txmesh/txn"
)

const (
	whyNoAnswer = "a query runs when the answer is lost"
	whyHeld     = "a held call has no answer yet"
)

func callKeys() []string {
	return []string{
		"name", "match", "key", "timeout", "undo", "reserve", "hold", "irreversible", "query", "outcome", "barrier", "onUnknown",
		"undoRetry", "required", "onAmbiguous", "onLostContext", "async",
	}
}

func (p *policyReader) newCall(m match, at pos) *Call {
	return &Call{
		Policy: p.d.namespace + "/" + p.d.name, Shadow: p.shadow, Document: p.d.hash, source: p.d.source, match: m, at: at,
		Ambiguous: p.ambiguous, Lost: p.lost, Retry: p.retry,
		recorded: &tree{}, reads: &tree{}, keyReads: &tree{},
	}
}

func (p *policyReader) readCall(n *node) {
	f := p.fields(n, n.at, "call", callKeys()...)
	if f.n == nil {
		return
	}
	name := p.ruleName(f)
	m, ok := p.readMatch(f)
	c := p.newCall(m, f.at)
	c.Name = name
	see := sight{request: true, pattern: m.pattern, journaled: true, why: "the key is made before there is an answer", input: m.grpc.input()}
	c.key = p.readKey(f, see, c.keyReads)
	c.Timeout = f.duration("timeout", 0)
	c.Retry = p.readRetry(f, p.retry)
	c.Required = Required(f.choice("required", 0, "InFlight", "Always", "Never"))
	c.Ambiguous = Reaction(f.choice("onAmbiguous", int(p.ambiguous), "Reject", "Ignore"))
	c.Lost = Reaction(f.choice("onLostContext", int(p.lost), "Reject", "Report"))
	c.Async = Async(f.choice("async", 0, "Refuse", "Detach"))
	c.outcome = p.outcomes(f, c.reads, sight{request: true, response: true, pattern: m.pattern, asked: true,
		input: m.grpc.input(), output: m.grpc.output()})
	p.recordAsked(c, c.reads) // an answer that is found later is judged by the same rules
	p.readKind(c, f)
	p.readQuery(c, f)
	p.settle(c, f)
	c.wants = c.callWants()
	p.described(c.at, c.Name, m, c.wants, c.recorded, c.reads, c.keyReads)
	if ok {
		p.judge(c, f)
		p.set.calls.add(c, m, p.rank(c.Name))
	}
}

// readKind reads exactly one of undo, reserve, hold and irreversible.
func (p *policyReader) readKind(c *Call, f fields) {
	var given []string
	for _, k := range []string{"undo", "reserve", "hold", "irreversible"} {
		if f.has(k) {
			given = append(given, k)
		}
	}
	switch {
	case len(given) == 0:
		p.fault(f.at, codeOneOf, "call %s has none of undo, reserve, hold and irreversible", c.Name)
		return
	case len(given) > 1:
		p.fault(f.place(given[1]), codeOneOf, "call %s has %s; a call is settled in one way", c.Name, strings.Join(given, " and "))
	}
	switch given[0] {
	case "undo":
		c.Kind = Undo
		p.readUndo(c, f)
	case "reserve":
		c.Kind = Reserve
		r := p.fields(f.get("reserve"), f.place("reserve"), "call.reserve", "confirm", "cancel")
		p.readSettling(c, r, "confirm", txn.Commit, true)
		p.readSettling(c, r, "cancel", txn.Undo, true)
	case "hold":
		c.Kind = Hold
		p.readHold(c, f)
	case "irreversible":
		c.Kind = Irreversible
		r := p.fields(f.get("irreversible"), f.place("irreversible"), "call.irreversible", "reason")
		if !r.has("reason") {
			p.fault(r.at, codeMissing, "call.irreversible has no reason")
		}
		c.Reason = r.string("reason")
	}
}

func (p *policyReader) laterSight(c *Call) sight {
	return sight{request: true, response: true, pattern: c.match.pattern, journaled: true,
		input: c.match.grpc.input(), output: c.match.grpc.output()}
}

func (p *policyReader) readUndo(c *Call, f fields) {
	s := opSpec{what: f.path("undo"), method: "POST", see: p.laterSight(c), extra: []string{"when"}}
	o, _ := p.op(f.get("undo"), f.place("undo"), s)
	p.adopt(c, txn.Undo, o)
}

func (p *policyReader) readSettling(c *Call, f fields, key string, as txn.Op, required bool) {
	if !f.has(key) {
		if required {
			p.fault(f.at, codeMissing, "%s has no %s", f.what, key)
		}
		return
	}
	o, _ := p.op(f.get(key), f.place(key), opSpec{what: f.path(key), method: "POST", see: p.laterSight(c)})
	p.adopt(c, as, o)
}

func (p *policyReader) readHold(c *Call, f fields) {
	see := sight{request: true, pattern: c.match.pattern, journaled: true, why: whyHeld, input: c.match.grpc.input()}
	s := opSpec{what: "call.hold", see: see, extra: []string{"orderBy", "keepHeaders"}, held: true, answer: c.match.grpc.output()}
	o, h := p.op(f.get("hold"), f.place("hold"), s)
	if h.has("body") || h.has("form") {
		p.fault(h.at, codeOneOf, "call.hold sends the body that was held; it has no body of its own")
	}
	// A transaction that began under a document with this key must still end.
	if n := h.get("orderBy"); n != nil && !p.trusting {
		p.fault(n.at, codeReserved, "call.hold.orderBy is not supported yet: held calls are kept in order within a transaction alone; number the messages in their body, and let the receiver order them")
	}
	c.heldHeaders = []string{"accept", "accept-language", "content-encoding", "content-language", "content-type", "grpc-encoding"}
	for _, n := range h.strings("keepHeaders") {
		name := strings.ToLower(n.text())
		p.settable(named{name: name, value: &template{at: n.at}}, h)
		c.heldHeaders = append(c.heldHeaders, name)
	}
	p.adopt(c, txn.Commit, o)
}

// adopt gives a call an op and adds what it reads to what is recorded.
func (p *policyReader) adopt(c *Call, as txn.Op, o *op) {
	if o.auth != nil {
		o.auth.Bearer.Namespace = p.d.namespace
	}
	c.ops[as] = o
	c.recorded.merge(o.recorded)
	c.recordsHost = c.recordsHost || o.path != nil && o.path.isLocation()
	if o.when == nil {
		return
	}
	reads := o.when.reads
	if reads.reads("response") && !reads.reads("request") && !reads.reads("path") {
		c.undoBeforehand = true
		return
	}
	c.recorded.merge(reads)
}

func (p *policyReader) readQuery(c *Call, f fields) {
	if !f.has("query") {
		return
	}
	see := sight{request: true, pattern: c.match.pattern, journaled: true, why: whyNoAnswer, input: c.match.grpc.input()}
	s := opSpec{what: f.path("query"), method: "GET", see: see, extra: []string{"answer", "absentAfter"}}
	o, q := p.op(f.get("query"), f.place("query"), s)
	p.adopt(c, txn.Ask, o)
	c.AbsentAfter = q.duration("absentAfter", time.Minute)
	if n := q.text("answer"); n != nil {
		selects := sight{request: true, response: true, pattern: c.match.pattern, journaled: true,
			input: c.match.grpc.input(), output: o.grpc.output()}
		c.answer = p.compileText(n.text(), n.at, n.inner, q.path("answer"), selects)
		if c.answer != nil {
			p.recordAsked(c, c.answer.reads)
		}
	}
}

// recordAsked adds what is read of the request to what is recorded of it.
func (p *policyReader) recordAsked(c *Call, reads *tree) {
	for _, side := range []string{"request", "path"} {
		if reads.reads(side) {
			c.recorded.child(side).merge(reads.at(side))
		}
	}
}

// settle reads barrier and onUnknown, whose defaults depend on what the rule has.
func (p *policyReader) settle(c *Call, f fields) {
	def := Proxy
	if c.match.service == "" {
		def = NoBarrier
	}
	c.Barrier = Barrier(f.choice("barrier", int(def), "None", "Proxy", "Key", "Database"))
	unknown := txn.ResolveStop
	if c.Has(txn.Ask) || c.keepsAnswers() {
		unknown = txn.ResolveAsk
	}
	c.OnUnknown = []txn.Resolve{txn.ResolveAsk, txn.ResolveUndo, txn.ResolveStop}[f.choice("onUnknown", order(unknown), "Query", "Undo", "Stop")]
}

func order(r txn.Resolve) int {
	switch r {
	case txn.ResolveAsk:
		return 0
	case txn.ResolveUndo:
		return 1
	case txn.ResolveStop:
		return 2
	default:
		panic(fmt.Sprintf("resolve %d is none of three", r))
	}
}

// judge reports rules that are sound in each part and still cannot be kept.
func (p *policyReader) judge(c *Call, f fields) {
	wrong := c.Barrier == Proxy && c.match.service == ""
	if wrong {
		p.fault(f.place("barrier"), codeBarrier, "barrier Proxy at host %s: a host of a third party has no sidecar", c.match.host)
	}
	keeps := wrong || c.keepsAnswers() // what follows from the fault is not reported with it
	for _, o := range []txn.Op{txn.Commit, txn.Undo} {
		if !c.ReadsAnswer(o) || !c.ops[o].recorded.reads("response") {
			continue
		}
		at := f.at
		if c.ops[o].path != nil {
			at = c.ops[o].path.at
		}
		switch {
		case !keeps && !c.Has(txn.Ask):
			p.fault(at, codeLostAnswer, "%s of %s reads the response, which may be lost, and there is neither a query nor a barrier that finds it again", c.opName(o), c.Name)
		case !keeps && c.ops[o].recorded.reads("response", "headers"):
			p.fault(at, codeLostAnswer, "%s of %s reads a response header, which a query cannot find again", c.opName(o), c.Name)
		}
	}
	if c.OnUnknown == txn.ResolveAsk && !c.Has(txn.Ask) && !keeps {
		p.fault(f.place("onUnknown"), codeNoQuery, "%s asks when the outcome is unknown, and has neither a query nor a barrier to ask", c.Name)
	}
	if c.Barrier == NoBarrier && (c.Kind == Undo || c.Kind == Reserve) {
		p.warn(f.at, codeNoBarrier, "call %s has no barrier: a repeated or late call takes effect again", c.Name)
	}
	switch c.match.method {
	case "GET", "HEAD", "OPTIONS", "TRACE":
		p.warn(f.at, codeSafeMethod, "call %s matches %s, which should change nothing", c.Name, c.match.method)
	}
}

// readOwn reads the undo, confirm and query of the root's own writes. nil: the rule has none.
func (p *policyReader) readOwn(f fields, s *Start) *Call {
	if !f.has("undo") && !f.has("confirm") {
		for _, k := range []string{"query", "barrier", "onUnknown", "undoRetry"} {
			if f.has(k) {
				p.fault(f.place(k), codeMissing, "start %s has %s but neither undo nor confirm", s.Name, k)
			}
		}
		return nil
	}
	c := p.newCall(s.match, s.at)
	c.Name, c.Kind, c.root = s.Name, Undo, true
	c.Retry = p.readRetry(f, p.retry)
	if f.has("confirm") {
		c.Kind = Reserve
	}
	if f.has("undo") {
		p.readUndo(c, f)
	}
	p.readSettling(c, f, "confirm", txn.Commit, false)
	p.readQuery(c, f)
	p.settle(c, f)
	p.judge(c, f)
	c.wants = c.callWants()
	return c
}
