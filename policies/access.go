package policies

import (
	"fmt"
	"regexp"
	"slices"
	"strings"
)

// Act is what a caller may do with transactions. Access policies name them.
type Act uint8

// Begin opens a transaction, Join takes part in one, Decide commits or aborts one over the API, Operate acts on stuck ones.
const (
	Begin Act = iota
	Join
	Decide
	Operate
)

// Acts lists all acts.
func Acts() []Act { return []Act{Begin, Join, Decide, Operate} }

// String is the word of an act in documents and metrics.
func (a Act) String() string { return actWords()[a] }

func actWords() []string { return []string{"start", "join", "decide", "operate"} }

// Access says who may do what at a service. It never changes; nil lets everybody do everything.
type Access struct{ rules []accessRule }

// accessRule allows some callers some acts.
type accessRule struct {
	from     []callerPattern
	may      []Act
	requests *branch[bool] // of Begin; nil: all
}

// Allows reports whether a caller may do something. The caller is a SPIFFE id that a certificate has proved, empty
// where none has; the target is read for Begin alone.
func (a *Access) Allows(act Act, caller string, t Target) bool {
	return a == nil || slices.ContainsFunc(a.rules, func(r accessRule) bool {
		return slices.Contains(r.may, act) && r.covers(caller) && (act != Begin || r.takes(t))
	})
}

func (r accessRule) covers(caller string) bool {
	return slices.ContainsFunc(r.from, func(p callerPattern) bool { return p.matches(caller) })
}

func (r accessRule) takes(t Target) bool {
	if r.requests == nil {
		return true
	}
	path, ok := strings.CutPrefix(t.Path, "/")
	return ok && r.requests.find(path, true, t) != nil
}

// callerPattern is a SPIFFE id, in which * stands for one segment of the path and ** at its end for the rest. Without
// trust domain it is of any that the sidecar lets in.
type callerPattern struct {
	anybody  bool // also who has proved nothing
	domain   string
	segments []string
}

const spiffeScheme = "spiffe://"

func (p callerPattern) matches(caller string) bool {
	if p.anybody {
		return true
	}
	rest, ok := strings.CutPrefix(caller, spiffeScheme)
	domain, path, slash := strings.Cut(rest, "/")
	if !ok || p.domain != "" && domain != p.domain || slash != (len(p.segments) > 0) {
		return false
	}
	for i, s := range p.segments {
		if s == "**" {
			return path != "" // nothing stands behind it
		}
		part, after, more := strings.Cut(path, "/")
		if part == "" || s != "*" && s != part || more != (i < len(p.segments)-1) {
			return false
		}
		path = after
	}
	return true
}

// ServiceOf is the service that a SPIFFE id names, namespace/name; empty: the id is of another form and names none.
func ServiceOf(id string) string {
	rest, ok := strings.CutPrefix(id, spiffeScheme)
	parts := strings.Split(rest, "/")
	if !ok || len(parts) != 5 || parts[1] != "ns" || parts[3] != "sa" {
		return ""
	}
	return parts[2] + "/" + parts[4]
}

var (
	trustDomainForm = regexp.MustCompile(`^[a-z0-9._-]{1,255}$`)
	segmentForm     = regexp.MustCompile(`^[a-zA-Z0-9._-]+$`)
)

// parseCaller reads *, a SPIFFE pattern, or the name of a service.
func parseCaller(text, namespace string) (callerPattern, error) {
	if text == "*" {
		return callerPattern{anybody: true}, nil
	}
	rest, isID := strings.CutPrefix(text, spiffeScheme)
	if !isID {
		owner, name, other := strings.Cut(text, "/")
		if !other {
			owner, name = namespace, owner
		}
		if !nameForm.MatchString(owner) || !nameForm.MatchString(name) {
			return callerPattern{}, fmt.Errorf("%q is neither a SPIFFE id, nor the name of a service, nor *", text)
		}
		return callerPattern{segments: []string{"ns", owner, "sa", name}}, nil
	}
	domain, path, slash := strings.Cut(rest, "/")
	if !trustDomainForm.MatchString(domain) {
		return callerPattern{}, fmt.Errorf("%q has the trust domain %q, which none can be", text, domain)
	}
	p := callerPattern{domain: domain}
	if !slash {
		return p, nil
	}
	p.segments = strings.Split(path, "/")
	for i, s := range p.segments {
		switch {
		case s == "*" || s == "**" && i == len(p.segments)-1:
		case s == "." || s == ".." || !segmentForm.MatchString(s):
			return callerPattern{}, fmt.Errorf("%q has the segment %q; * stands for a whole segment, ** for the rest at the end", text, s)
		}
	}
	return p, nil
}

// accessReader gathers the access policies by the services that they govern.
type accessReader struct {
	*compiler
	named map[string][]accessRule // by namespace/name
	whole map[string][]accessRule // by namespace
	count int
}

// readAccess reads spec {services: [name], rules: [{from, may, requests}]}; without services all of the namespace
// are governed.
func (a *accessReader) readAccess(d *document) {
	f := a.fields(d.spec, d.specAt, "spec", "services", "rules")
	if f.n == nil {
		return
	}
	if !f.has("rules") {
		a.fault(f.at, codeMissing, "spec has no rules; an empty list allows nothing to anybody")
	}
	var rules []accessRule
	for i, n := range f.list("rules") {
		rules = append(rules, a.readRule(n, fmt.Sprintf("rules[%d]", i), d.namespace))
	}
	if !f.has("services") {
		a.whole[d.namespace] = append(a.whole[d.namespace], rules...)
		return
	}
	for _, n := range f.strings("services") {
		if !nameForm.MatchString(n.text()) {
			a.fault(n.at, codeName, "spec.services: %q is not the name of a service of namespace %s", n.text(), d.namespace)
			continue
		}
		service := d.namespace + "/" + n.text()
		a.named[service] = append(a.named[service], rules...)
	}
}

func (a *accessReader) readRule(n *node, what, namespace string) accessRule {
	var r accessRule
	a.count++
	f := a.fields(n, n.at, what, "from", "may", "requests")
	if f.n == nil {
		return r
	}
	for _, k := range []string{"from", "may"} {
		if len(f.list(k)) == 0 && (!f.has(k) || f.get(k).kind == sequence || f.get(k).null()) {
			a.fault(f.place(k), codeMissing, "%s has no %s", what, k)
		}
	}
	for _, c := range f.strings("from") {
		p, err := parseCaller(c.text(), namespace)
		if err != nil {
			a.fault(c.at, codeCaller, "%s.from: %v", what, err)
			continue
		}
		r.from = append(r.from, p)
	}
	for _, m := range f.strings("may") {
		i := slices.Index(actWords(), m.text())
		if i < 0 {
			a.fault(m.at, codeValue, "%s.may is %q%s", what, m.text(), choices(m.text(), actWords()))
			continue
		}
		r.may = append(r.may, Act(i))
	}
	if f.has("requests") {
		a.readRequests(&r, f)
	}
	return r
}

func (a *accessReader) readRequests(r *accessRule, f fields) {
	if !slices.Contains(r.may, Begin) {
		a.fault(f.place("requests"), codeUnknownKey, "%s has requests, which say what may start, but start is not in may", f.what)
	}
	roots := map[string]*branch[bool]{"": {}}
	for _, n := range f.list("requests") {
		g := a.fields(n, n.at, f.path("requests"), "method", "path")
		m := match{method: a.method(g, "method", ""), pattern: &pattern{any: true}}
		if t := g.text("path"); t != nil {
			p, err := parsePattern(t.text())
			if err != nil {
				a.fault(t.at, codePattern, "%s: %v", g.what, err)
				continue
			}
			m.pattern = p
		}
		m.weight = m.pattern.weight()
		roots = plant(roots, "", candidate[bool]{rule: true, match: m})
	}
	r.requests = roots[""]
}

// compiled joins what governs the same service.
func (a *accessReader) compiled() map[string]*Access {
	out := map[string]*Access{}
	for namespace, rules := range a.whole {
		out[namespace+"/*"] = &Access{rules}
	}
	for service, rules := range a.named {
		namespace, _, _ := strings.Cut(service, "/")
		out[service] = &Access{slices.Concat(rules, a.whole[namespace])}
	}
	return out
}

// Access returns what governs a service, namespace/name; nil: no policy does.
func (s *Set) Access(service string) *Access {
	if len(s.access) == 0 {
		return nil
	}
	if a := s.access[service]; a != nil {
		return a
	}
	namespace, _, _ := strings.Cut(service, "/")
	return s.access[namespace+"/*"]
}

// AccessRules counts the rules of all access policies.
func (s *Set) AccessRules() int { return s.accessRules }
