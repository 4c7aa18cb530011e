package policies

import (
	"slices"
	"strings"
	"time"

	"txmesh/txn"
)

// grants says which namespace may make rules for which service of another: "owner/service to" or "owner/* to".
type grants map[string]bool

func (g grants) allow(service, to string) bool {
	owner, _, _ := strings.Cut(service, "/")
	return g[service+" "+to] || g[owner+"/* "+to]
}

// link compiles every document and indexes the rules.
func (c *compiler) link(docs []*document) *Set {
	s := &Set{docs: map[string]Source{}}
	given := grants{}
	for _, d := range docs {
		if d.kind == kindGrant {
			c.readGrant(d, given)
		}
	}
	access := &accessReader{c, map[string][]accessRule{}, map[string][]accessRule{}, 0}
	for _, d := range docs {
		if d.kind == kindAccess {
			access.readAccess(d)
		}
	}
	s.access, s.accessRules = access.compiled(), access.count
	for _, d := range docs {
		s.written = append(s.written, Document{Kind: d.kind, Namespace: d.namespace, Name: d.name, Text: d.written})
		if d.kind == kindPolicy {
			p := &policyReader{compiler: c, d: d, grants: given, set: s}
			p.read()
			s.docs[d.hash] = d.source
		}
	}
	c.warnSame(s)
	return s
}

// readGrant reads spec {to: [namespace], services: [name]}; without services all are granted.
func (c *compiler) readGrant(d *document, g grants) {
	f := c.fields(d.spec, d.specAt, "spec", "to", "services")
	f.requiredMapping("to")
	services := []string{"*"}
	if f.has("services") {
		services = nil
		for _, n := range f.strings("services") {
			services = append(services, n.text())
		}
	}
	for _, to := range f.strings("to") {
		for _, s := range services {
			g[d.namespace+"/"+s+" "+to.text()] = true
		}
	}
}

// warnSame reports rules that match exactly the same requests.
func (c *compiler) warnSame(s *Set) {
	seen := map[string]string{}
	for _, r := range s.starts.all {
		c.warnRepeat(seen, "start "+r.match.shape(), r.Policy+"/"+r.Name, r.at)
	}
	for _, r := range s.calls.all {
		c.warnRepeat(seen, "call "+r.match.shape(), r.Policy+"/"+r.Name, r.at)
	}
}

func (c *compiler) warnRepeat(seen map[string]string, match, name string, at pos) {
	if first, ok := seen[match]; ok {
		c.warn(at, codeSameMatch, "%s matches the same requests as %s", name, first)
		return
	}
	seen[match] = name
}

// shape is the match without the names of its variables.
func (m match) shape() string {
	var b strings.Builder
	b.WriteString(m.service + " " + m.host + " " + m.method + " ")
	for _, s := range m.pattern.segments {
		switch {
		case s.rest:
			b.WriteString("/{...}")
		case s.name != "":
			b.WriteString("/{}")
		default:
			b.WriteString("/" + escapeSegment(s.literal))
		}
	}
	return b.String()
}

// policyReader compiles one TransactionPolicy.
type policyReader struct {
	*compiler
	d      *document
	grants grants
	set    *Set

	shadow    bool
	ambiguous Reaction
	lost      Reaction
	retry     txn.Retry
	names     map[string]pos
}

func (p *policyReader) read() {
	f := p.fields(p.d.spec, p.d.specAt, "spec", "mode", "start", "calls", "onAmbiguous", "onLostContext", "undoRetry", "descriptors")
	if f.n == nil {
		return
	}
	p.readDescriptors(f)
	p.names = map[string]pos{}
	p.shadow = f.choice("mode", 0, "Enforce", "Shadow") == 1
	p.ambiguous = Reaction(f.choice("onAmbiguous", p.reaction(), "Reject", "Ignore"))
	p.lost = Reaction(f.choice("onLostContext", p.reaction(), "Reject", "Report"))
	p.retry = p.readRetry(f, txn.Retry{Delay: 200 * time.Millisecond, DelayMax: 30 * time.Second, StuckAfter: time.Hour})
	if !f.has("start") && !f.has("calls") {
		p.fault(f.at, codeMissing, "spec has neither start nor calls")
	}
	for _, n := range f.list("start") {
		p.readStart(n)
	}
	for _, n := range f.list("calls") {
		p.readCall(n)
	}
}

// reaction is the default: Enforce rejects, Shadow only reports.
func (p *policyReader) reaction() int {
	if p.shadow {
		return int(Pass)
	}
	return int(Refuse)
}

func (p *policyReader) readRetry(f fields, def txn.Retry) txn.Retry {
	r := p.fields(f.get("undoRetry"), f.place("undoRetry"), f.path("undoRetry"), "delay", "maxDelay", "stuckAfter")
	out := txn.Retry{
		Delay: r.duration("delay", def.Delay), DelayMax: r.duration("maxDelay", def.DelayMax), StuckAfter: r.duration("stuckAfter", def.StuckAfter),
	}
	if out.DelayMax < out.Delay {
		if r.has("maxDelay") && r.has("delay") {
			p.fault(r.get("maxDelay").at, codeDuration, "%s is %v, less than delay %v", r.path("maxDelay"), out.DelayMax, out.Delay)
		}
		out.DelayMax = out.Delay
	}
	return out
}

// ruleName reads the name, which is the rule's handle everywhere, and refuses a second use in the document.
func (p *policyReader) ruleName(f fields) string {
	f.required("name")
	name := f.name("name")
	if first, ok := p.names[name]; ok && name != "" {
		p.fault(f.get("name").at, codeDuplicate, "rule %q is already defined at line %d", name, first.line)
	}
	p.names[name] = f.place("name")
	return name
}

func (p *policyReader) rank(name string) precedence {
	return precedence{created: p.d.created, name: p.d.namespace + "/" + p.d.name + "/" + name}
}

// readMatch reads who is called. ok says that the rule can be indexed.
func (p *policyReader) readMatch(f fields) (m match, ok bool) {
	m.pattern = &pattern{any: true}
	if !f.has("match") {
		p.fault(f.at, codeMissing, "%s has no match", f.what)
		return m, false
	}
	g := p.fields(f.get("match"), f.place("match"), f.path("match"), "service", "host", "method", "path", "grpc")
	m.service, m.host = p.service(g), p.host(g)
	if g.has("grpc") {
		p.without(g, "method", "path")
		if m.grpc = p.grpcMethod(g, true); m.grpc == nil {
			return m, false
		}
		m.method, m.pattern = "POST", m.grpc.pattern()
	} else {
		m.method = p.method(g, "method", "")
	}
	if n := g.text("path"); n != nil && m.grpc == nil {
		pattern, err := parsePattern(n.text())
		if err != nil {
			p.fault(n.at, codePattern, "%s: %v", g.what, err)
			return m, false
		}
		m.pattern = pattern
	}
	m.weight = m.pattern.weight()
	if m.service == "" && m.host == "" {
		if !g.has("service") && !g.has("host") {
			p.fault(g.at, codeMatch, "%s has neither service nor host", g.what)
		}
		return m, false
	}
	return m, true
}

// service reads `name` or `namespace/name` and asks for a grant where it is another's.
func (p *policyReader) service(g fields) string {
	n := g.text("service")
	if n == nil {
		return ""
	}
	owner, name, other := strings.Cut(n.text(), "/")
	if !other {
		owner, name = p.d.namespace, owner
	}
	if !nameForm.MatchString(owner) || !nameForm.MatchString(name) {
		p.fault(n.at, codeName, "%s %q is neither a name nor namespace/name", g.path("service"), n.text())
		return ""
	}
	service := owner + "/" + name
	if owner != p.d.namespace && !p.trusting && !p.grants.allow(service, p.d.namespace) {
		p.fault(n.at, codeGrant, "service %s belongs to namespace %s, which grants it to nobody in %s", service, owner, p.d.namespace)
	}
	return service
}

func (p *policyReader) host(g fields) string {
	n := g.text("host")
	if n == nil {
		return ""
	}
	h := strings.ToLower(n.text())
	if strings.ContainsAny(h, "/ @?#*{}") {
		p.fault(n.at, codeMatch, "%s %q is not a host, with or without a port", g.path("host"), n.text())
		return ""
	}
	return h
}

func (p *policyReader) readStart(n *node) {
	keys := []string{"name", "match", "timeout", "key", "commitWhen", "reply", "nested", "undo", "confirm", "query", "barrier", "onUnknown", "undoRetry"}
	f := p.fields(n, n.at, "start", keys...)
	if f.n == nil {
		return
	}
	s := &Start{Policy: p.d.namespace + "/" + p.d.name, Shadow: p.shadow, Document: p.d.hash, source: p.d.source, at: f.at, reads: &tree{}}
	s.Name = p.ruleName(f)
	m, ok := p.readMatch(f)
	s.match = m
	s.Timeout = f.duration("timeout", 30*time.Second)
	s.Nested = Nested(f.choice("nested", 0, "Join", "New", "Reject"))
	asked := sight{request: true, pattern: m.pattern, journaled: true, why: "the key is made before there is an answer", input: m.grpc.input()}
	s.key = p.readKey(f, asked, s.reads)
	if c := f.text("commitWhen"); c != nil {
		s.commitWhen = p.condition(c, "start.commitWhen", sight{request: true, response: true, pattern: m.pattern,
			input: m.grpc.input(), output: m.grpc.output()})
		if s.commitWhen != nil {
			s.reads.merge(s.commitWhen.reads)
		}
	}
	s.Reply = p.readReply(f)
	s.Own = p.readOwn(f, s)
	s.wants = s.startWants()
	p.described(s.at, s.Name, m, s.wants, s.reads)
	if ok {
		p.set.starts.add(s, m, p.rank(s.Name))
	}
}

// readKey reads `key`; written out as the default it means the default, with its quoted forms.
func (p *policyReader) readKey(f fields, see sight, reads *tree) *expr {
	n := f.text("key")
	if n == nil {
		return nil
	}
	e := p.keyed(n, f.path("key"), see)
	if e == nil {
		return nil
	}
	if slices.ContainsFunc([]string{`"`, `'`}, func(q string) bool {
		return e.text == "request.headers["+q+"idempotency-key"+q+"]"
	}) {
		return nil
	}
	reads.merge(e.reads)
	return e
}

func (p *policyReader) readReply(f fields) Reply {
	r := p.fields(f.get("reply"), f.place("reply"), "start.reply", "onCommit", "onAbort", "max")
	out := Reply{OnCommit: AtDecision, OnAbort: AfterUndo, Max: r.duration("max", 5*time.Second)}
	if r.choice("onCommit", 0, "AtDecision", "AfterConfirm") == 1 {
		out.OnCommit = AfterConfirm
	}
	if r.choice("onAbort", 0, "AfterUndo", "AtDecision") == 1 {
		out.OnAbort = AtDecision
	}
	return out
}
