package policies

import (
	"errors"
	"fmt"
	"net/url"
	"strings"
)

// template is a string with values in it: {x} is one value, {+x} a value that keeps its slashes, {{ and }} are
// braces.
type template struct {
	text  string
	at    pos
	parts []part
}

type part struct {
	literal string
	value   *expr // nil: the literal
	slashes bool
}

// rawPart is a part whose value is not compiled yet.
type rawPart struct {
	literal string
	value   string
	isValue bool
	slashes bool
	offset  int // of the value's text in the template
}

// splitTemplate finds the values. Braces and quotes inside a value belong to it, so that any expression fits.
func splitTemplate(s string) ([]rawPart, error) {
	var parts []rawPart
	var literal strings.Builder
	flush := func() {
		if literal.Len() > 0 {
			parts = append(parts, rawPart{literal: literal.String()})
			literal.Reset()
		}
	}
	for i := 0; i < len(s); i++ {
		switch {
		case strings.HasPrefix(s[i:], "{{"), strings.HasPrefix(s[i:], "}}"):
			literal.WriteByte(s[i])
			i++
		case s[i] == '}':
			return nil, fmt.Errorf("'}' at character %d closes nothing; a brace itself is written }}", i+1)
		case s[i] == '{':
			end := closing(s[i+1:])
			if end < 0 {
				return nil, fmt.Errorf("'{' at character %d is never closed", i+1)
			}
			flush()
			p := rawPart{value: s[i+1 : i+1+end], isValue: true, offset: i + 1}
			if v, ok := strings.CutPrefix(p.value, "+"); ok {
				p.value, p.slashes, p.offset = v, true, p.offset+1
			}
			if strings.TrimSpace(p.value) == "" {
				return nil, fmt.Errorf("'{}' at character %d names no value", i+1)
			}
			parts = append(parts, p)
			i += end + 1
		default:
			literal.WriteByte(s[i])
		}
	}
	flush()
	return parts, nil
}

// closing returns where the brace that s follows ends, -1 if nowhere.
func closing(s string) int {
	depth, quote := 0, byte(0)
	for i := 0; i < len(s); i++ {
		c := s[i]
		switch {
		case quote != 0 && c == '\\':
			i++
		case quote != 0:
			if c == quote {
				quote = 0
			}
		case c == '"' || c == '\'':
			quote = c
		case c == '{':
			depth++
		case c == '}':
			if depth == 0 {
				return i
			}
			depth--
		}
	}
	return -1
}

// leaf is the only value of a template that is nothing else; such a value keeps its type in a body.
func (t *template) leaf() *expr {
	if len(t.parts) == 1 {
		return t.parts[0].value
	}
	return nil
}

// isLocation says that the template is one whole reference, as in "{+response.headers.location}".
func (t *template) isLocation() bool { return t.leaf() != nil && t.parts[0].slashes }

// string renders a parameter, a header or a part of a body. An absent or empty value is an error.
func (t *template) string(s scope) (string, error) {
	var b strings.Builder
	for _, p := range t.parts {
		if p.value == nil {
			b.WriteString(p.literal)
			continue
		}
		v, err := p.value.scalar(s)
		if err != nil {
			return "", err
		}
		b.WriteString(v)
	}
	return b.String(), nil
}

// scalar is a value that must be there and must not be empty.
func (e *expr) scalar(s scope) (string, error) {
	v, err := e.eval(s)
	if err != nil {
		return "", err
	}
	out, err := scalarText(v)
	if err != nil {
		return "", fmt.Errorf("%s %w", e.text, err)
	}
	if out == "" {
		return "", fmt.Errorf("%s is empty", e.text)
	}
	return out, nil
}

// path renders an encoded path. Every value is one segment, or a part of one, unless it keeps its slashes.
func (t *template) path(s scope) (string, error) {
	var b strings.Builder
	for _, p := range t.parts {
		if p.value == nil {
			b.WriteString(p.literal)
			continue
		}
		v, err := p.value.scalar(s)
		if err != nil {
			return "", err
		}
		if p.slashes {
			b.WriteString(escapeKeepingSlashes(v))
		} else {
			b.WriteString(escapeSegment(v))
		}
	}
	out := b.String()
	if err := checkPath(out); err != nil {
		return "", fmt.Errorf("%s: %w", t.text, err)
	}
	return out, nil
}

// location renders a reference as a service gave it, such as a Location header: a path, or a URL on one of the
// call's own hosts. It may have a query.
func (t *template) location(s scope, hosts ...string) (path, query string, err error) {
	v, err := t.leaf().scalar(s)
	if err != nil {
		return "", "", err
	}
	u, err := url.Parse(v)
	if err != nil {
		return "", "", fmt.Errorf("%s: %w", t.text, err)
	}
	if u.IsAbs() || u.Host != "" {
		if !isOneOf(u.Host, hosts) || (u.Scheme != "" && u.Scheme != "http" && u.Scheme != "https") {
			return "", "", fmt.Errorf("%s: %q is not on the called service", t.text, v)
		}
	}
	path = escapeKeepingSlashes(u.EscapedPath())
	if err := checkPath(path); err != nil {
		return "", "", fmt.Errorf("%s: %w", t.text, err)
	}
	if strings.ContainsFunc(u.RawQuery, isControl) {
		return "", "", fmt.Errorf("%s: control character in the query", t.text)
	}
	return path, u.RawQuery, nil
}

func isControl(r rune) bool { return r <= ' ' || r >= 0x7f }

func isOneOf(host string, hosts []string) bool {
	for _, h := range hosts {
		if h != "" && strings.EqualFold(h, host) {
			return true
		}
	}
	return false
}

var errDotSegment = errors.New("a dot segment would lead elsewhere")

// checkPath refuses what a server could read as another path.
func checkPath(p string) error {
	if !strings.HasPrefix(p, "/") {
		return fmt.Errorf("path %q does not begin with '/'", p)
	}
	if strings.HasPrefix(p, "//") {
		return fmt.Errorf("path %q begins with two slashes, which reads as a host", p)
	}
	for part := range strings.SplitSeq(p[1:], "/") {
		plain, err := url.PathUnescape(part)
		if err != nil {
			return fmt.Errorf("path %q: %w", p, err)
		}
		// A service that decodes before it splits sees the dots between encoded slashes too.
		for _, piece := range strings.FieldsFunc(plain, func(r rune) bool { return r == '/' || r == '\\' }) {
			if piece == "." || piece == ".." {
				return fmt.Errorf("path %q: %w", p, errDotSegment)
			}
		}
	}
	return nil
}

const hexDigits = "0123456789ABCDEF"

func isUnreserved(c byte) bool {
	return 'a' <= c && c <= 'z' || 'A' <= c && c <= 'Z' || '0' <= c && c <= '9' ||
		c == '-' || c == '.' || c == '_' || c == '~'
}

// escapeSegment encodes everything that RFC 3986 does not call unreserved.
func escapeSegment(s string) string {
	var b strings.Builder
	for i := range len(s) {
		if c := s[i]; isUnreserved(c) {
			b.WriteByte(c)
		} else {
			b.WriteString("%" + string(hexDigits[c>>4]) + string(hexDigits[c&15]))
		}
	}
	return b.String()
}

// escapeKeepingSlashes keeps slashes and what is already encoded, as RFC 6570 does for {+x}; a query or fragment
// mark is encoded.
func escapeKeepingSlashes(s string) string {
	var b strings.Builder
	for i := 0; i < len(s); i++ {
		c := s[i]
		switch {
		case c == '%' && i+2 < len(s) && isHex(s[i+1]) && isHex(s[i+2]):
			b.WriteString(s[i : i+3])
			i += 2
		case isUnreserved(c), strings.IndexByte("/!$&'()*+,;=:@", c) >= 0:
			b.WriteByte(c)
		default:
			b.WriteString("%" + string(hexDigits[c>>4]) + string(hexDigits[c&15]))
		}
	}
	return b.String()
}

func isHex(c byte) bool { _, ok := unhex(c); return ok }

// shape is a body with templates in its strings.
type shape struct {
	template *template
	fields   []field // sorted by name, so that the first error is always the same
	items    []*shape
	constant any
	kind     kind
}

type field struct {
	name  string
	shape *shape
}

// render builds the value. A template that is one value keeps that value's type; an absent value is an error.
func (h *shape) render(s scope) (any, error) {
	switch {
	case h.template != nil:
		if e := h.template.leaf(); e != nil {
			return e.eval(s)
		}
		return h.template.inBody(s)
	case h.kind == mapping:
		out := make(map[string]any, len(h.fields))
		for _, f := range h.fields {
			v, err := f.shape.render(s)
			if err != nil {
				return nil, fmt.Errorf("%s: %w", f.name, err)
			}
			out[f.name] = v
		}
		return out, nil
	case h.kind == sequence:
		out := make([]any, len(h.items))
		for i, f := range h.items {
			v, err := f.render(s)
			if err != nil {
				return nil, fmt.Errorf("[%d]: %w", i, err)
			}
			out[i] = v
		}
		return out, nil
	}
	return h.constant, nil
}

// inBody renders text among other text, where an empty value is as good as any.
func (t *template) inBody(s scope) (string, error) {
	var b strings.Builder
	for _, p := range t.parts {
		if p.value == nil {
			b.WriteString(p.literal)
			continue
		}
		v, err := p.value.eval(s)
		if err != nil {
			return "", err
		}
		text, err := scalarText(v)
		if err != nil {
			return "", fmt.Errorf("%s %w", p.value.text, err)
		}
		b.WriteString(text)
	}
	return b.String(), nil
}
