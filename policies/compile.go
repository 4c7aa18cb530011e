package policies

import (
	"fmt"
	"slices"
	"strings"

	"cel.dev/cel-go/cel"
)

// compiler turns documents into rules and collects findings on the way. It is used once.
type compiler struct {
	reporter
	env   *cel.Env          // made when the first expression needs it
	sets  map[string][]byte // descriptor sets among the sources, by their file names
	types *schema           // of the document that is compiled; nil: it has none
	// trusting skips the grants: the document was compiled with them when its transaction began.
	trusting bool
}

func newCompiler() *compiler { return &compiler{sets: map[string][]byte{}} }

// sight is what an expression can see, and whether what it reads is journaled.
type sight struct {
	request   bool
	response  bool
	pattern   *pattern // of the rule: the path variables; nil: none
	journaled bool
	asked     bool   // of what it reads the request alone is journaled
	why       string // why the rest cannot be seen

	input, output *messageType // of request.body and response.body; nil: not known before they are there
}

// condition compiles CEL that says yes or no.
func (c *compiler) condition(n *node, what string, see sight) *expr {
	return c.typed(n, what, "a boolean", see, cel.BoolType)
}

// keyed compiles CEL that yields a key.
func (c *compiler) keyed(n *node, what string, see sight) *expr {
	return c.typed(n, what, "text or a whole number", see, cel.StringType, cel.IntType, cel.UintType, cel.BoolType)
}

// typed compiles CEL whose type, as far as it is known, must be one of kinds.
func (c *compiler) typed(n *node, what, wanted string, see sight, kinds ...*cel.Type) *expr {
	checked := c.check(n.text(), n.at, n.inner, what)
	if checked == nil {
		return nil
	}
	out := checked.OutputType()
	if !out.IsExactType(cel.DynType) && !slices.ContainsFunc(kinds, out.IsExactType) {
		c.fault(n.at, codeResult, "%s yields %s, not %s", what, cel.FormatCELType(out), wanted)
		return nil
	}
	return c.plan(n.text(), checked, n.at, what, see)
}

// compileText compiles the value of a template, or an expression of any type: a plain path where it is one.
func (c *compiler) compileText(text string, at pos, inner int, what string, see sight) *expr {
	if p, err := parsePlain(strings.TrimSpace(text)); err == nil {
		e := &expr{text: strings.TrimSpace(text), plain: p, reads: &tree{}}
		if !c.visible(p, shifted(at, inner, 0), what, see) {
			return nil
		}
		e.reads.add(p)
		return e
	}
	checked := c.check(text, at, inner, what)
	if checked == nil {
		return nil
	}
	switch out := checked.OutputType(); out.Kind() {
	case cel.BytesKind, cel.TimestampKind, cel.DurationKind, cel.TypeKind:
		c.fault(shifted(at, inner, 0), codeResult, "%s yields %s, which has no form in JSON; string(...) makes text of it", what, cel.FormatCELType(out))
		return nil
	default:
	}
	return c.plan(text, checked, at, what, see)
}

// shifted moves a place into the text of a scalar, as far as the text is on one line.
func shifted(at pos, inner, columns int) pos {
	if inner >= 0 {
		at.column += inner + columns
	}
	return at
}

// check parses and types an expression; its errors are placed to the character.
func (c *compiler) check(text string, at pos, inner int, what string) *cel.Ast {
	if c.env == nil {
		env, err := newEnv()
		if err != nil {
			c.fault(at, codeCEL, "%s: prepare CEL: %v", what, err)
			return nil
		}
		c.env = env
	}
	checked, issues := c.env.Compile(text)
	if issues == nil || issues.Err() == nil {
		return checked
	}
	for _, e := range issues.Errors() {
		place := at
		if e.Location.Line() == 1 {
			place = shifted(at, inner, e.Location.Column())
		}
		c.fault(place, codeCEL, "%s: %s", what, strings.TrimPrefix(plainCEL(e.Message), "Syntax error: "))
	}
	return nil
}

// plainCEL shortens what the parser says to what a person can use.
func plainCEL(message string) string {
	message, _, _ = strings.Cut(message, " expecting {")
	message = strings.ReplaceAll(message, " (in container '')", "")
	for _, root := range []string{"request", "response"} {
		if message == "undeclared reference to '"+root+"'" {
			return fmt.Sprintf("%s is not a value by itself; name a part of it: %s", root, strings.Join(members(root), ", "))
		}
	}
	if strings.HasPrefix(message, "undeclared reference to 'response.status'") {
		return "undeclared reference to 'response.status' (did you mean 'response.code'?)"
	}
	return message
}

func (c *compiler) plan(text string, checked *cel.Ast, at pos, what string, see sight) *expr {
	e := &expr{text: strings.TrimSpace(text), reads: collect(checked.NativeRep().Expr())}
	for _, p := range e.reads.paths(nil) {
		if !c.visible(p, at, what, see) {
			return nil
		}
	}
	var err error
	if e.program, err = program(c.env, checked); err != nil {
		c.fault(at, codeCEL, "%s: %v", what, err)
		return nil
	}
	return e
}

// paths lists the set, sorted.
func (t *tree) paths(before path) []path {
	if t.whole {
		return []path{slices.Clone(before)}
	}
	var out []path
	for _, k := range t.names() {
		out = append(out, t.fields[k].paths(append(slices.Clone(before), k))...)
	}
	items := make([]int, 0, len(t.items))
	for i := range t.items {
		items = append(items, i)
	}
	slices.Sort(items)
	for _, i := range items {
		out = append(out, t.items[i].paths(append(slices.Clone(before), i))...)
	}
	return out
}

// visible reports whether a path leads to something that is known at this point and may be read.
func (c *compiler) visible(p path, at pos, what string, see sight) bool {
	root, _ := p[0].(string)
	switch root {
	case "path":
		return c.visibleVariable(p, at, what, see)
	case "request", "response":
	default:
		c.fault(at, codeTemplate, "%s: %s is not known; values begin with request, response or path", what, root)
		return false
	}
	if root == "request" && !see.request || root == "response" && !see.response {
		c.fault(at, codeUnavailable, "%s reads %s, which is not known there: %s", what, p, see.why)
		return false
	}
	if len(p) == 1 {
		c.fault(at, codeTemplate, "%s reads the whole %s; name a part of it: %s", what, root, strings.Join(members(root), ", "))
		return false
	}
	member, _ := p[1].(string)
	if !slices.Contains(members(root), member) {
		hint := didYouMean(member, members(root))
		if root == "response" && member == "status" {
			hint = `; did you mean "code"?`
		}
		c.fault(at, codeTemplate, "%s: %s has no %q%s", what, root, member, hint)
		return false
	}
	switch member {
	case "headers":
		return c.visibleHeader(p, at, what, see)
	case "query":
		return c.flat(p, 3, at, what)
	case "body":
		return c.visibleField(p, at, what, see)
	case "grpc":
		return c.flat(p, 3, at, what) && c.visibleStatus(p, at, what)
	}
	return c.flat(p, 2, at, what)
}

// visibleField follows a path into a message of gRPC whose type is known.
func (c *compiler) visibleField(p path, at pos, what string, see sight) bool {
	t := see.input
	if p[0] == "response" {
		t = see.output
	}
	if t == nil {
		return true
	}
	if err := t.check(p[2:]); err != nil {
		c.fault(at, codeMessage, "%s reads %s: %v", what, p, err)
		return false
	}
	return true
}

func (c *compiler) visibleStatus(p path, at pos, what string) bool {
	known := []string{"status", "message"}
	if len(p) == 3 {
		if name, _ := p[2].(string); !slices.Contains(known, name) {
			c.fault(at, codeTemplate, "%s: response.grpc has no %q%s", what, name, didYouMean(name, known))
			return false
		}
	}
	return true
}

// flat refuses to look inside a single value.
func (c *compiler) flat(p path, depth int, at pos, what string) bool {
	if len(p) > depth {
		c.fault(at, codeTemplate, "%s: %s is a single value; there is no %s", what, p[:depth], p)
		return false
	}
	return true
}

func (c *compiler) visibleVariable(p path, at pos, what string, see sight) bool {
	if see.pattern == nil {
		c.fault(at, codeUnavailable, "%s reads %s, which is not known there: %s", what, p, see.why)
		return false
	}
	known := see.pattern.names()
	if len(p) == 1 {
		c.fault(at, codeVariable, "%s reads the whole path; name one of its variables, or request.path", what)
		return false
	}
	name, _ := p[1].(string)
	if !slices.Contains(known, name) {
		if len(known) == 0 {
			c.fault(at, codeVariable, "%s reads path.%s, and match.path has no variables", what, name)
			return false
		}
		c.fault(at, codeVariable, "%s: match.path has no variable %q%s", what, name, didYouMean(name, known))
		return false
	}
	return c.flat(p, 2, at, what)
}

// secretHeaders are never journaled.
func secretHeaders() []string {
	return []string{"authorization", "proxy-authorization", "cookie", "set-cookie"}
}

func (c *compiler) visibleHeader(p path, at pos, what string, see sight) bool {
	if len(p) == 2 {
		c.fault(at, codeHeaders, "%s reads all of %s; name one header", what, p)
		return false
	}
	name, ok := p[2].(string)
	if !ok || name != strings.ToLower(name) {
		c.fault(at, codeHeaders, "%s: header names are lower case here: %s[%q]", what, p[:2], strings.ToLower(fmt.Sprint(p[2])))
		return false
	}
	if (see.journaled || see.asked && p[0] == "request") && slices.Contains(secretHeaders(), name) {
		c.fault(at, codeSecret, "%s reads header %s, which would be journaled", what, name)
		return false
	}
	return c.flat(p, 3, at, what)
}

// template compiles a string with values in it.
func (c *compiler) template(n *node, what string, see sight) *template {
	raw, err := splitTemplate(n.text())
	if err != nil {
		c.fault(n.at, codeTemplate, "%s: %v", what, err)
		return nil
	}
	t := &template{text: n.text(), at: n.at}
	sound := true
	for _, r := range raw {
		if !r.isValue {
			t.parts = append(t.parts, part{literal: r.literal})
			continue
		}
		inner := -1
		if n.inner >= 0 {
			inner = n.inner + r.offset
		}
		e := c.compileText(r.value, n.at, inner, what, see)
		if e == nil {
			sound = false
			continue
		}
		t.parts = append(t.parts, part{value: e, slashes: r.slashes})
	}
	if !sound {
		return nil
	}
	return t
}

// reads is what a template reads.
func (t *template) reads() *tree {
	out := &tree{}
	for _, p := range t.parts {
		if p.value != nil {
			out.merge(p.value.reads)
		}
	}
	return out
}

// pathTemplate compiles the path of a later op. What is fixed of it must already be a path.
func (c *compiler) pathTemplate(n *node, what string, see sight) *template {
	t := c.template(n, what, see)
	if t == nil || t.isLocation() {
		return t
	}
	var sample strings.Builder
	for _, p := range t.parts {
		if p.value != nil {
			sample.WriteString("x")
			continue
		}
		if strings.ContainsAny(p.literal, "?#") {
			c.fault(n.at, codeOrigin, "%s %q has a query or fragment; put the query in params", what, t.text)
			return nil
		}
		if strings.ContainsFunc(p.literal, isControl) {
			c.fault(n.at, codeOrigin, "%s %q has a character that must be percent-encoded", what, t.text)
			return nil
		}
		sample.WriteString(p.literal)
	}
	if err := checkPath(sample.String()); err != nil {
		c.fault(n.at, codeOrigin, "%s %q: %v", what, t.text, strings.ReplaceAll(err.Error(), sample.String(), t.text))
		return nil
	}
	return t
}

// shape compiles a body: templates in its strings, everything else as it is.
func (c *compiler) shape(n *node, what string, see sight) (*shape, *tree) {
	reads := &tree{}
	switch n.kind {
	case mapping:
		out := &shape{kind: mapping}
		for _, e := range n.entries {
			child, r := c.shape(e.value, what+"."+e.key, see)
			out.fields = append(out.fields, field{name: e.key, shape: child})
			reads.merge(r)
		}
		slices.SortFunc(out.fields, func(a, b field) int { return strings.Compare(a.name, b.name) })
		return out, reads
	case sequence:
		out := &shape{kind: sequence}
		for i, item := range n.items {
			child, r := c.shape(item, fmt.Sprintf("%s[%d]", what, i), see)
			out.items = append(out.items, child)
			reads.merge(r)
		}
		return out, reads
	case scalar:
	}
	if _, ok := n.scalar.(string); !ok {
		return &shape{constant: n.scalar}, reads
	}
	t := c.template(n, what, see)
	if t == nil {
		return &shape{}, reads
	}
	return &shape{template: t}, t.reads()
}

// named compiles a mapping of templates, sorted by name so that the same document renders the same bytes.
func (c *compiler) named(n *node, what string, see sight) ([]named, *tree) {
	reads := &tree{}
	if n == nil || n.null() {
		return nil, reads
	}
	if n.kind != mapping {
		c.fault(n.at, codeType, "%s is %s, not a mapping", what, shapeName(n))
		return nil, reads
	}
	out := []named{}
	for _, e := range n.entries {
		if e.value.kind != scalar || e.value.null() {
			c.fault(e.value.at, codeType, "%s.%s is %s, not text", what, e.key, shapeName(e.value))
			continue
		}
		if t := c.template(e.value, what+"."+e.key, see); t != nil {
			out = append(out, named{name: e.key, value: t})
			reads.merge(t.reads())
		}
	}
	slices.SortFunc(out, func(a, b named) int { return strings.Compare(a.name, b.name) })
	return out, reads
}
