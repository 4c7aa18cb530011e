package policies

import (
	"cmp"
	"fmt"
	"net"
	"slices"
	"strconv"
	"strings"
	"time"
)

// pattern is a path pattern: literal segments, {name} for one segment, {name...} for the rest.
type pattern struct {
	text     string
	any      bool // no path was given: every path matches
	segments []segment
}

type segment struct {
	literal string // decoded
	name    string // of the variable; empty: a literal
	rest    bool
}

func parsePattern(s string) (*pattern, error) {
	if s == "" {
		return &pattern{any: true}, nil
	}
	if !strings.HasPrefix(s, "/") {
		return nil, fmt.Errorf("path %q does not begin with '/'", s)
	}
	if strings.ContainsAny(s, "?#") {
		return nil, fmt.Errorf("path %q has a query or fragment; rules match the path alone", s)
	}
	p := &pattern{text: s}
	parts := strings.Split(s[1:], "/")
	for i, part := range parts {
		seg, err := parseSegment(part)
		if err != nil {
			return nil, fmt.Errorf("path %q: %w", s, err)
		}
		if seg.rest && i != len(parts)-1 {
			return nil, fmt.Errorf("path %q: {%s...} stands for the rest and must be last", s, seg.name)
		}
		if seg.name != "" && slices.Contains(p.names(), seg.name) {
			return nil, fmt.Errorf("path %q: variable %s is used twice", s, seg.name)
		}
		p.segments = append(p.segments, seg)
	}
	return p, nil
}

func parseSegment(part string) (segment, error) {
	if !strings.ContainsAny(part, "{}*") {
		literal, err := unescape(part)
		if err != nil {
			return segment{}, err
		}
		if literal == "." || literal == ".." {
			return segment{}, fmt.Errorf("segment %q is a dot segment", part)
		}
		return segment{literal: literal}, nil
	}
	name, ok := strings.CutPrefix(part, "{")
	name, closed := strings.CutSuffix(name, "}")
	name, rest := strings.CutSuffix(name, "...")
	if !ok || !closed || !isIdent(name) {
		return segment{}, fmt.Errorf("segment %q is neither a word nor a variable {name}", part)
	}
	return segment{name: name, rest: rest}, nil
}

// names are the variables of the pattern, in order.
func (p *pattern) names() []string {
	var out []string
	for _, s := range p.segments {
		if s.name != "" {
			out = append(out, s.name)
		}
	}
	return out
}

// values reads the variables out of a path that matched.
func (p *pattern) values(path string) (map[string]any, error) {
	out := map[string]any{}
	rest := strings.TrimPrefix(path, "/")
	for i, s := range p.segments {
		part, after, more := strings.Cut(rest, "/")
		if s.rest {
			part, more = rest, true
		}
		if !more && i != len(p.segments)-1 {
			return nil, fmt.Errorf("path %q does not match %q", path, p.text)
		}
		rest = after
		if s.name == "" {
			continue
		}
		if s.rest && strings.Contains(strings.ToLower(part), "%2f") {
			return nil, fmt.Errorf("read path.%s: %q has an encoded slash, which {%s...} cannot tell from a real one", s.name, part, s.name)
		}
		v, err := unescape(part)
		if err != nil {
			return nil, fmt.Errorf("read path.%s: %w", s.name, err)
		}
		out[s.name] = v
	}
	return out, nil
}

// weight orders patterns: the greater is the more specific, segment by segment.
func (p *pattern) weight() string {
	var b strings.Builder
	for _, s := range p.segments {
		switch {
		case s.rest:
			b.WriteByte('1')
		case s.name != "":
			b.WriteByte('2')
		default:
			b.WriteByte('3')
		}
	}
	return b.String()
}

// match is the `match` of a rule.
type match struct {
	service string  // namespace/name, or empty
	host    string  // lower case, or empty
	method  string  // empty: every method
	grpc    *method // nil: by method and path
	pattern *pattern
	weight  string
}

// precedence decides between rules that match the same request.
type precedence struct {
	created time.Time // of the document; zero: after those that say it
	name    string    // namespace/policy/rule
}

func (p precedence) compare(o precedence) int {
	if p.created.IsZero() != o.created.IsZero() {
		if o.created.IsZero() {
			return -1
		}
		return 1
	}
	return cmp.Or(p.created.Compare(o.created), cmp.Compare(p.name, o.name))
}

// index finds rules by service or host, then by path segment, then by method.
type index[R comparable] struct {
	services map[string]*branch[R]
	hosts    map[string]*branch[R]
	all      []R
}

// branch is one level of the tree of segments.
type branch[R comparable] struct {
	literals map[string]*branch[R]
	variable *branch[R]
	rest     []candidate[R] // {name...}, or no path at all
	here     []candidate[R] // patterns that end here
}

type candidate[R comparable] struct {
	rule  R
	match match
	rank  precedence
}

func (x *index[R]) add(rule R, m match, rank precedence) {
	x.all = append(x.all, rule)
	c := candidate[R]{rule: rule, match: m, rank: rank}
	if m.service != "" {
		x.services = plant(x.services, m.service, c)
		return
	}
	x.hosts = plant(x.hosts, m.host, c)
}

func plant[R comparable](roots map[string]*branch[R], key string, c candidate[R]) map[string]*branch[R] {
	if roots == nil {
		roots = map[string]*branch[R]{}
	}
	b := roots[key]
	if b == nil {
		b = &branch[R]{}
		roots[key] = b
	}
	for _, s := range c.match.pattern.segments {
		if s.rest {
			b.rest = insert(b.rest, c)
			return roots
		}
		b = b.next(s)
	}
	if c.match.pattern.any {
		b.rest = insert(b.rest, c)
	} else {
		b.here = insert(b.here, c)
	}
	return roots
}

func (b *branch[R]) next(s segment) *branch[R] {
	if s.name != "" {
		if b.variable == nil {
			b.variable = &branch[R]{}
		}
		return b.variable
	}
	if b.literals == nil {
		b.literals = map[string]*branch[R]{}
	}
	if b.literals[s.literal] == nil {
		b.literals[s.literal] = &branch[R]{}
	}
	return b.literals[s.literal]
}

// insert keeps the candidates in the order in which they win: {name...} before no path, a method before none, a
// service with its host before the service alone, gRPC alone before every protocol, then the precedence.
func insert[R comparable](cs []candidate[R], c candidate[R]) []candidate[R] {
	i, _ := slices.BinarySearchFunc(cs, c, func(a, b candidate[R]) int {
		return cmp.Or(-cmp.Compare(a.match.weight, b.match.weight), -cmp.Compare(given(a.match.method), given(b.match.method)),
			-cmp.Compare(given(a.match.host), given(b.match.host)), -cmp.Compare(a.match.only(), b.match.only()), a.rank.compare(b.rank))
	})
	return slices.Insert(cs, i, c)
}

func given(s string) int { return min(len(s), 1) }

// only is 1 for a match of gRPC alone.
func (m match) only() int {
	if m.grpc != nil {
		return 1
	}
	return 0
}

func (x *index[R]) names(service, host string) bool {
	if service != "" && x.services[service] != nil {
		return true
	}
	_, ok := rootOf(x.hosts, host)
	return ok
}

func (x *index[R]) onPort(port uint16) bool {
	const http = 80
	for host := range x.hosts {
		_, p, err := net.SplitHostPort(host)
		if err != nil && port == http || err == nil && p == strconv.Itoa(int(port)) {
			return true
		}
	}
	return false
}

// find returns the winning rule, or the zero value.
func (x *index[R]) find(t Target) R {
	var found R
	path, ok := strings.CutPrefix(t.Path, "/")
	if !ok && t.Path != "" {
		return found // OPTIONS * and the like have no path to match
	}
	var best *candidate[R]
	if b := x.services[t.Service]; b != nil && t.Service != "" {
		best = b.find(path, true, t)
	}
	if b, ok := rootOf(x.hosts, t.Host); ok {
		if c := b.find(path, true, t); c != nil && (best == nil || c.match.weight > best.match.weight) {
			best = c
		}
	}
	if best != nil {
		found = best.rule
	}
	return found
}

// rootOf looks a host up as it is, then without its port.
func rootOf[V any](hosts map[string]V, host string) (found V, ok bool) {
	if host == "" || len(hosts) == 0 {
		return found, false
	}
	if b, ok := lookupFold(hosts, host); ok {
		return b, true
	}
	if i := strings.LastIndexByte(host, ':'); i >= 0 && !strings.HasSuffix(host, "]") {
		return lookupFold(hosts, host[:i])
	}
	return found, false
}

// lookupFold finds a host however it is written. Rules keep theirs in lower case, so that only a host with capitals
// must be compared with each.
func lookupFold[V any](hosts map[string]V, host string) (found V, ok bool) {
	if found, ok = hosts[host]; ok {
		return found, true
	}
	if !strings.ContainsFunc(host, func(r rune) bool { return 'A' <= r && r <= 'Z' }) {
		return found, false
	}
	for k, v := range hosts {
		if strings.EqualFold(k, host) {
			return v, true
		}
	}
	return found, false
}

// find walks the path segment by segment, literal before variable before rest, and goes back where the more
// specific way ends in nothing. more says that another segment follows, which may be empty.
func (b *branch[R]) find(path string, more bool, t Target) *candidate[R] {
	if !more {
		return pick(b.here, t)
	}
	part, after, next := path, "", false
	if i := strings.IndexByte(path, '/'); i >= 0 {
		part, after, next = path[:i], path[i+1:], true
	}
	if l := b.literal(part); l != nil {
		if c := l.find(after, next, t); c != nil {
			return c
		}
	}
	if b.variable != nil && part != "" {
		if c := b.variable.find(after, next, t); c != nil {
			return c
		}
	}
	return pick(b.rest, t)
}

func (b *branch[R]) literal(part string) *branch[R] {
	if strings.IndexByte(part, '%') < 0 {
		return b.literals[part]
	}
	for k, l := range b.literals {
		if decodesTo(part, k) {
			return l
		}
	}
	return nil
}

func pick[R comparable](cs []candidate[R], t Target) *candidate[R] {
	for i := range cs {
		m := &cs[i].match
		if m.method != "" && m.method != t.Method || m.grpc != nil && !t.GRPC {
			continue
		}
		if m.service != "" && m.host != "" && !sameHost(m.host, t.Host) {
			continue
		}
		return &cs[i]
	}
	return nil
}

func sameHost(pattern, host string) bool {
	if strings.EqualFold(pattern, host) {
		return true
	}
	i := strings.LastIndexByte(host, ':')
	return i >= 0 && strings.EqualFold(pattern, host[:i])
}

// decodesTo compares an encoded segment with a decoded one without allocating.
func decodesTo(encoded, plain string) bool {
	j := 0
	for i := 0; i < len(encoded); i++ {
		c := encoded[i]
		if c == '%' {
			if i+2 >= len(encoded) {
				return false
			}
			hi, ok1 := unhex(encoded[i+1])
			lo, ok2 := unhex(encoded[i+2])
			if !ok1 || !ok2 {
				return false
			}
			c = hi<<4 | lo
			i += 2
		}
		if j >= len(plain) || plain[j] != c {
			return false
		}
		j++
	}
	return j == len(plain)
}

func unhex(c byte) (byte, bool) {
	switch {
	case '0' <= c && c <= '9':
		return c - '0', true
	case 'a' <= c && c <= 'f':
		return c - 'a' + 10, true
	case 'A' <= c && c <= 'F':
		return c - 'A' + 10, true
	}
	return 0, false
}
