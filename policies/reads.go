package policies

import (
	"encoding/base64"
	"fmt"
	"net/url"
	"slices"
	"strconv"
	"strings"
	"unicode/utf8"
)

// path leads to one value: request.body.items[0].id. Steps are string (a field) or int (an index).
type path []any

func (p path) String() string {
	var b strings.Builder
	for i, s := range p {
		switch s := s.(type) {
		case int:
			fmt.Fprintf(&b, "[%d]", s)
		case string:
			if !isIdent(s) {
				fmt.Fprintf(&b, "[%s]", strconv.Quote(s))
				continue
			}
			if i > 0 {
				b.WriteByte('.')
			}
			b.WriteString(s)
		}
	}
	return b.String()
}

func isIdent(s string) bool {
	for i := range len(s) {
		c := s[i]
		switch {
		case c == '_', 'a' <= c && c <= 'z', 'A' <= c && c <= 'Z':
		case '0' <= c && c <= '9' && i > 0:
		default:
			return false
		}
	}
	return s != ""
}

// tree is a set of paths: what expressions and templates read of a message. Only that much is ever kept of it.
type tree struct {
	whole  bool
	fields map[string]*tree
	items  map[int]*tree
}

func (t *tree) add(p path) {
	if t.whole {
		return
	}
	if len(p) == 0 {
		t.whole, t.fields, t.items = true, nil, nil
		return
	}
	t.child(p[0]).add(p[1:])
}

func (t *tree) child(step any) *tree {
	switch s := step.(type) {
	case string:
		if t.fields == nil {
			t.fields = map[string]*tree{}
		}
		if t.fields[s] == nil {
			t.fields[s] = &tree{}
		}
		return t.fields[s]
	case int:
		if t.items == nil {
			t.items = map[int]*tree{}
		}
		if t.items[s] == nil {
			t.items[s] = &tree{}
		}
		return t.items[s]
	}
	panic(fmt.Sprintf("path step %v is neither field nor index", step))
}

// at returns the part of the set below a path, nil when nothing there is read.
func (t *tree) at(steps ...string) *tree {
	for _, s := range steps {
		if t == nil || t.whole {
			return t
		}
		t = t.fields[s]
	}
	return t
}

func (t *tree) reads(steps ...string) bool { return t.at(steps...) != nil }

func (t *tree) merge(o *tree) {
	if o == nil {
		return
	}
	if o.whole {
		t.add(nil)
		return
	}
	if t.whole {
		return
	}
	for k, c := range o.fields {
		t.child(k).merge(c)
	}
	for i, c := range o.items {
		t.child(i).merge(c)
	}
}

// names returns the fields read, sorted.
func (t *tree) names() []string {
	if t == nil {
		return nil
	}
	out := make([]string, 0, len(t.fields))
	for k := range t.fields {
		out = append(out, k)
	}
	slices.Sort(out)
	return out
}

// prune keeps of a value what the set reads. What is not there, or has another shape than the reader expects, is
// left out, so that live and recorded values look alike to an expression.
func (t *tree) prune(v any) (any, bool) {
	if t.whole {
		return v, true
	}
	switch v := v.(type) {
	case map[string]any:
		if len(t.fields) == 0 {
			return nil, false
		}
		out := map[string]any{}
		for k, c := range t.fields {
			if e, ok := v[k]; ok {
				if kept, ok := c.prune(e); ok {
					out[k] = kept
				}
			}
		}
		return out, true
	case []any:
		if len(t.items) == 0 {
			return nil, false
		}
		return t.pruneList(v), true
	}
	return nil, false
}

func (t *tree) pruneList(v []any) []any {
	size := 0
	for i := range t.items {
		if i < len(v) {
			size = max(size, i+1)
		}
	}
	out := make([]any, size)
	for i, c := range t.items {
		if i < len(v) {
			if kept, ok := c.prune(v[i]); ok {
				out[i] = kept
			}
		}
	}
	return out
}

// request builds what the set reads of a request and its path variables.
func (t *tree) request(m *Message, pattern *pattern) (map[string]any, error) {
	out := map[string]any{}
	if vars := t.at("path"); vars != nil {
		values, err := pattern.values(m.Path)
		if err != nil {
			return nil, err
		}
		kept, _ := vars.prune(values)
		out["path"] = kept
	}
	part := t.at("request")
	if part == nil {
		return out, nil
	}
	fields, err := part.message(m, "request")
	if err != nil {
		return nil, err
	}
	if part.reads("method") {
		fields["method"] = m.Method
	}
	if part.reads("path") {
		fields["path"] = m.Path
	}
	if q := part.at("query"); q != nil {
		values, err := decodeForm(m.Query)
		if err != nil {
			return nil, fmt.Errorf("read request.query: %w", err)
		}
		fields["query"], _ = q.prune(values)
	}
	out["request"] = fields
	return out, nil
}

// response builds what the set reads of a response.
func (t *tree) response(m *Message) (map[string]any, error) {
	out := map[string]any{}
	part := t.at("response")
	if part == nil {
		return out, nil
	}
	fields, err := part.message(m, "response")
	if err != nil {
		return nil, err
	}
	if part.reads("code") {
		fields["code"] = number(m.Status)
	}
	if g := part.at("grpc"); g != nil && m.isGRPC() {
		status := map[string]any{"status": statusWord(m.grpcStatus()), "message": m.grpcMessage()}
		fields["grpc"], _ = g.prune(status)
	}
	out["response"] = fields
	return out, nil
}

// message builds headers and body, which requests and responses share.
func (t *tree) message(m *Message, what string) (map[string]any, error) {
	out := map[string]any{}
	if h := t.at("headers"); h != nil {
		values := map[string]any{}
		for _, name := range h.names() {
			v := m.metadata(name)
			if !utf8.ValidString(v) {
				return nil, fmt.Errorf("read %s.headers[%q]: not valid UTF-8", what, name)
			}
			if v != "" {
				values[name] = v
			}
		}
		out["headers"] = values
	}
	if t.reads("message") && m.isGRPC() && len(m.Body) > 0 {
		message, err := UnaryMessage(m.Body, m.header("grpc-encoding"))
		if err != nil {
			return nil, fmt.Errorf("read %s.message: %w", what, err)
		}
		out["message"] = base64.StdEncoding.EncodeToString(message)
	}
	if b := t.at("body"); b != nil {
		body, err := decodeBody(m)
		if err != nil {
			return nil, fmt.Errorf("read %s.body: %w", what, err)
		}
		if kept, ok := b.prune(body); ok {
			out["body"] = kept
		}
	}
	return out, nil
}

// missing says where a path ended before its value.
type missing struct {
	at   path
	item bool // a list is there, but is too short
	last bool // only the last step is not there
}

func (e *missing) Error() string { return e.at.String() + ": " + errMissing.Error() }
func (e *missing) Unwrap() error { return errMissing }

// lookup follows a path into a value.
func lookup(v any, p path) (any, error) {
	for i, step := range p {
		switch s := step.(type) {
		case string:
			m, ok := v.(map[string]any)
			if ok {
				v, ok = m[s]
			}
			if !ok {
				return nil, &missing{at: p[:i+1], last: m != nil && i == len(p)-1}
			}
		case int:
			l, ok := v.([]any)
			if !ok || s >= len(l) {
				return nil, &missing{at: p[:i+1], item: ok}
			}
			v = l[s]
		}
	}
	return v, nil
}

func unescape(segment string) (string, error) {
	s, err := url.PathUnescape(segment)
	if err != nil {
		return "", err
	}
	if !utf8.ValidString(s) {
		return "", fmt.Errorf("segment %q is not valid UTF-8", segment)
	}
	return s, nil
}
