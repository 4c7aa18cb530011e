package policies

import (
	"bytes"
	"encoding/json"
	"errors"
	"regexp"
	"strconv"
	"strings"

	"github.com/goccy/go-yaml"
	"github.com/goccy/go-yaml/ast"
	"github.com/goccy/go-yaml/parser"
	"github.com/goccy/go-yaml/token"
)

// kind is the shape of a node.
type kind uint8

const (
	scalar kind = iota
	mapping
	sequence
)

// depthMax bounds how deep documents nest; policies need six levels and bodies a few more.
const depthMax = 64

// node is one YAML value and its place. Scalars hold nil, bool, json.Number or string.
type node struct {
	kind    kind
	at      pos
	inner   int // columns from at to the first character of a scalar's text; -1: the text spans lines
	scalar  any
	entries []entry
	items   []*node
	written []byte // of the root of a document that was read from a file: its text
}

type entry struct {
	key   string
	at    pos
	value *node
}

// text is a scalar as it was written: strings and numbers; "" for null.
func (n *node) text() string {
	switch v := n.scalar.(type) {
	case string:
		return v
	case json.Number:
		return v.String()
	case bool:
		return strconv.FormatBool(v)
	}
	return ""
}

func (n *node) get(key string) *node {
	for _, e := range n.entries {
		if e.key == key {
			return e.value
		}
	}
	return nil
}

// null reports whether a key was given without a value.
func (n *node) null() bool { return n.kind == scalar && n.scalar == nil }

// parse returns the non-empty documents of a source. What it cannot read it reports.
func (r *reporter) parse(src Source) []*node {
	file, err := parser.ParseBytes(bytes.TrimPrefix(src.Data, []byte("\ufeff")), 0)
	if err != nil {
		r.syntax(src.Name, err)
		return nil
	}
	p := &converter{r: r, file: src.Name}
	var docs []*node
	for _, d := range file.Docs {
		if d.Body == nil || d.Body.Type() == ast.DirectiveType { // %YAML 1.2 counts as a document of its own
			continue
		}
		if n := p.node(d.Body, 0); n != nil && !n.null() {
			docs = append(docs, n)
		}
	}
	return docs
}

func (r *reporter) syntax(file string, err error) {
	at, text := pos{file: file, line: 1, column: 1}, err.Error()
	if ye, ok := errors.AsType[yaml.Error](err); ok {
		text = ye.GetMessage()
		if t := ye.GetToken(); t != nil && t.Position != nil {
			at.line, at.column = t.Position.Line, t.Position.Column
		}
	}
	r.fault(at, codeSyntax, "%s", text)
}

// converter turns the library's syntax tree into nodes.
type converter struct {
	r    *reporter
	file string
}

func (p *converter) at(t *token.Token) pos {
	if t == nil || t.Position == nil {
		return pos{file: p.file, line: 1, column: 1}
	}
	return pos{file: p.file, line: t.Position.Line, column: t.Position.Column}
}

func (p *converter) node(n ast.Node, depth int) *node {
	at := p.at(n.GetToken())
	if depth > depthMax {
		p.r.fault(at, codeYAMLFeature, "values nest deeper than %d", depthMax)
		return nil
	}
	switch v := n.(type) {
	case *ast.MappingNode:
		return p.mapping(v.Values, at, depth)
	case *ast.MappingValueNode:
		return p.mapping([]*ast.MappingValueNode{v}, at, depth)
	case *ast.SequenceNode:
		out := &node{kind: sequence, at: at}
		for _, item := range v.Values {
			if c := p.node(item, depth+1); c != nil {
				out.items = append(out.items, c)
			}
		}
		return out
	case *ast.LiteralNode:
		return &node{at: at, inner: -1, scalar: v.Value.Value}
	case *ast.NullNode:
		return &node{at: at, inner: -1}
	case *ast.BoolNode:
		return &node{at: at, scalar: v.Value}
	case *ast.IntegerNode:
		return &node{at: at, scalar: integer(v)}
	case *ast.FloatNode:
		return &node{at: at, scalar: float(v)}
	case *ast.StringNode:
		return stringNode(v, at)
	}
	p.r.fault(at, codeYAMLFeature, "%s is not read in policies", featureName(n))
	return nil
}

func featureName(n ast.Node) string {
	switch n.Type() {
	case ast.AnchorType:
		return "an anchor (&name)"
	case ast.AliasType:
		return "an alias (*name)"
	case ast.TagType:
		return "a tag (!name)"
	case ast.InfinityType, ast.NanType:
		return "a number that JSON does not have"
	default:
		return "this kind of value"
	}
}

func (p *converter) mapping(values []*ast.MappingValueNode, at pos, depth int) *node {
	out := &node{kind: mapping, at: at}
	if len(values) > 0 {
		out.at = p.at(values[0].Key.GetToken())
	}
	for _, e := range values {
		keyAt := p.at(e.Key.GetToken())
		key, ok := e.Key.(ast.ScalarNode)
		if !ok || e.Key.IsMergeKey() {
			p.r.fault(keyAt, codeYAMLFeature, "a merge or composed key is not read in policies")
			continue
		}
		name := key.GetToken().Value
		if s, ok := e.Key.(*ast.StringNode); ok {
			name = s.Value
		}
		if v := p.node(e.Value, depth+1); v != nil {
			out.entries = append(out.entries, entry{key: name, at: keyAt, value: v})
		}
	}
	return out
}

func stringNode(v *ast.StringNode, at pos) *node {
	n := &node{at: at, scalar: v.Value}
	t := v.GetToken()
	if t == nil {
		return n
	}
	if strings.Contains(strings.TrimSpace(t.Origin), "\n") {
		n.inner = -1
		return n
	}
	switch t.Type {
	case token.SingleQuoteType, token.DoubleQuoteType:
		n.inner = 1
	case token.StringType:
		// A number too large for the library comes as a string; it was not quoted, so it is a number.
		if jsonNumber.MatchString(v.Value) {
			n.scalar = json.Number(v.Value)
		}
	default: // block text and the like spans lines
		n.inner = -1
	}
	return n
}

var (
	wholeNumber = regexp.MustCompile(`^-?(0|[1-9][0-9]*)$`)
	jsonNumber  = regexp.MustCompile(`^-?(0|[1-9][0-9]*)(\.[0-9]+)?([eE][+-]?[0-9]+)?$`)
)

// integer keeps the number as it was written where JSON writes it so.
func integer(v *ast.IntegerNode) json.Number {
	if s := v.Token.Value; jsonNumber.MatchString(s) {
		return json.Number(s)
	}
	switch i := v.Value.(type) {
	case int64:
		return json.Number(strconv.FormatInt(i, 10))
	case uint64:
		return json.Number(strconv.FormatUint(i, 10))
	}
	return json.Number(v.Token.Value)
}

func float(v *ast.FloatNode) json.Number {
	if s := v.Token.Value; jsonNumber.MatchString(s) {
		return json.Number(s)
	}
	return json.Number(strconv.FormatFloat(v.Value, 'g', -1, 64))
}
