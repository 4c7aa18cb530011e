package policies

import (
	"bytes"
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"net/url"
	"slices"
	"strconv"
	"strings"

	"google.golang.org/grpc/codes"

	"txmesh/txn"
)

// Sample is one case of a PolicyTest: an exchange, and what the rules are expected to make of it.
type Sample struct {
	Name string
	At   string // file:line

	target   Target
	request  Message
	response *Message
	queried  *Message
	expect   map[string]any

	bodies [3]any // of gRPC, before a rule says what messages they are: of request, response and queried
}

// Mismatch is one expectation that does not hold. Want and Got are JSON with indentation.
type Mismatch struct {
	Key       string
	Want, Got string
}

// Samples reads the PolicyTest documents of the sources. Other documents are passed over; Compile reads those.
func Samples(sources ...Source) ([]Sample, error) {
	c := newCompiler()
	var out []Sample
	for _, src := range sources {
		if strings.HasSuffix(src.Name, setSuffix) {
			continue
		}
		for _, n := range c.parse(src) {
			if k := n.get("kind"); n.kind != mapping || k == nil || k.text() != kindTest {
				continue
			}
			c.readFrame(n)
			f := c.fields(n, n.at, "document", "apiVersion", "kind", "metadata", "cases")
			for _, item := range f.list("cases") {
				out = append(out, c.readSample(item))
			}
		}
	}
	if c.broken() {
		return nil, c.sorted(Error)
	}
	return out, nil
}

func (c *compiler) readSample(n *node) Sample {
	f := c.fields(n, n.at, "case", "name", "request", "response", "query", "expect")
	s := Sample{Name: f.required("name"), At: fmt.Sprintf("%s:%d", n.at.file, n.at.line)}
	if !f.has("request") {
		c.fault(n.at, codeMissing, "case has no request")
	}
	r := c.fields(f.get("request"), f.place("request"), "case.request", "service", "host", "method", "path", "query", "grpc", "headers", "body", "message")
	s.target = Target{Service: r.string("service"), Host: r.string("host"), Method: orElse(r.string("method"), "GET")}
	if r.has("grpc") {
		c.without(r, "method", "path", "query")
		if m := c.grpcMethod(r, false); m != nil {
			s.target.Method, s.target.Path, s.target.GRPC = "POST", m.path(), true
		}
	} else {
		s.target.Path = r.required("path")
	}
	s.request, s.bodies[0] = c.readMessage(r)
	s.request.Method, s.request.Path, s.request.Query = s.target.Method, s.target.Path, r.string("query")
	if path, query, ok := strings.Cut(s.target.Path, "?"); ok {
		s.target.Path, s.request.Path, s.request.Query = path, path, query
	}
	s.response, s.bodies[1] = c.readAnswer(f, "response")
	s.queried, s.bodies[2] = c.readAnswer(f, "query")
	known := []string{"start", "call", "key", "commits", "outcome", "record", "answer", "undo", "confirm", "cancel", "deliver", "query", "queried"}
	c.fields(f.get("expect"), f.place("expect"), "case.expect", known...)
	if e := f.get("expect"); e != nil && e.kind == mapping {
		s.expect, _ = e.value().(map[string]any)
	} else {
		c.fault(n.at, codeMissing, "case has no expect")
	}
	return s
}

func (c *compiler) readAnswer(f fields, key string) (*Message, any) {
	if !f.has(key) {
		return nil, nil
	}
	r := c.fields(f.get(key), f.place(key), "case."+key, "code", "grpc", "headers", "body", "message")
	m, body := c.readMessage(r)
	if r.has("grpc") {
		i := r.choice("grpc", 0, statusWords()...)
		m.Status, m.Trailer = 200, func(name string) string {
			if name == "grpc-status" {
				return strconv.Itoa(i)
			}
			return ""
		}
		return &m, body
	}
	code := r.get("code")
	if code == nil {
		c.fault(r.at, codeMissing, "case.%s has neither code nor grpc", key)
		return &m, nil
	}
	status, err := strconv.Atoi(code.text())
	if err != nil || status < 100 || status > 999 {
		c.fault(code.at, codeValue, "case.%s.code is %q, not an HTTP status", key, code.text())
	}
	m.Status = status
	return &m, nil
}

// readMessage reads headers and body. A body that is text is sent as it is, any other as JSON. The body of a call of gRPC
// is returned beside the message, which it becomes later.
func (c *compiler) readMessage(f fields) (m Message, later any) {
	headers := map[string]string{}
	if n := f.get("headers"); n != nil && n.kind == mapping {
		for _, e := range n.entries {
			headers[strings.ToLower(e.key)] = e.value.text()
		}
	} else if n != nil {
		c.fault(n.at, codeType, "%s is %s, not a mapping", f.path("headers"), shapeName(n))
	}
	m = Message{Header: func(name string) string { return headers[strings.ToLower(name)] }}
	n := f.get("body")
	if f.has("grpc") {
		headers["content-type"] = "application/grpc"
		m.Body = c.readRecorded(f)
		if n != nil {
			later = n.value()
		}
		return m, later
	}
	if n == nil {
		return m, nil
	}
	if s, ok := n.scalar.(string); ok {
		m.Body = []byte(s)
		return m, nil
	}
	data, err := encodeJSON(n.value())
	if err != nil {
		c.fault(n.at, codeType, "%s has no form in JSON: %v", f.path("body"), err)
	}
	if headers["content-type"] == "" {
		headers["content-type"] = "application/json"
	}
	m.Body = data
	return m, nil
}

// readRecorded reads the bytes of a message in base64, as policies see them in request.message.
func (c *compiler) readRecorded(f fields) []byte {
	n := f.text("message")
	if n == nil {
		return nil
	}
	data, err := base64.StdEncoding.DecodeString(n.text())
	if err != nil {
		c.fault(n.at, codeValue, "%s is not base64: %v", f.path("message"), err)
	}
	return UnaryBody(data)
}

// typed makes messages of the bodies, by the types that the rule knows.
func (s *Sample) typed(m match, query *op) error {
	var asks *messageType
	if query != nil {
		asks = query.grpc.output()
	}
	for i, t := range []*messageType{m.grpc.input(), m.grpc.output(), asks} {
		to := []*Message{&s.request, s.response, s.queried}[i]
		if !to.isGRPC() || s.bodies[i] == nil && to.Body != nil {
			continue
		}
		switch {
		case s.bodies[i] == nil:
			if t == nil || to == &s.request || to.grpcStatus() == codes.OK {
				to.Body = UnaryBody(nil)
			}
			continue
		case t == nil:
			return errors.New("the rule's document has no descriptors: give message, in base64, instead of body")
		}
		message, err := t.build(s.bodies[i])
		if err != nil {
			return err
		}
		to.Body = UnaryBody(message)
	}
	return nil
}

// Run applies the rules to the sample and returns what differs from its expectations, none when it passes. Only
// what is expected is compared.
func (s Sample) Run(set *Set) []Mismatch {
	got := s.observe(set)
	var out []Mismatch
	keys := make([]string, 0, len(s.expect))
	for k := range s.expect {
		keys = append(keys, k)
	}
	slices.Sort(keys)
	for _, k := range keys {
		want, have := indented(s.expect[k]), indented(got[k])
		if want != have {
			out = append(out, Mismatch{Key: k, Want: want, Got: have})
		}
	}
	return out
}

func indented(v any) string {
	data, err := encodeJSON(v)
	if err != nil {
		return err.Error()
	}
	var b bytes.Buffer
	if err := json.Indent(&b, data, "", "  "); err != nil {
		return err.Error()
	}
	return b.String()
}

// observe makes everything that can be expected of the sample.
func (s *Sample) observe(set *Set) map[string]any {
	got := map[string]any{"start": nil, "call": nil}
	start, call := set.Start(s.target), set.Call(s.target)
	if err := s.typedBy(start, call); err != nil {
		got["error"] = failure(err)
		return got
	}
	if start != nil {
		got["start"] = start.Policy + "/" + start.Name
		got["key"] = keyOr(start.Key(&s.request))
		if s.response != nil {
			got["commits"] = boolOr(start.Commits(&s.request, s.response))
		}
		if call == nil {
			call = start.Own
		}
	}
	if call == nil {
		return got
	}
	if start == nil || call != start.Own {
		got["call"] = call.Policy + "/" + call.Name
		got["key"] = keyOr(call.Key(&s.request))
	}
	s.observeCall(call, got)
	return got
}

func (s *Sample) typedBy(start *Start, call *Call) error {
	switch {
	case call != nil:
		return s.typed(call.match, call.ops[txn.Ask])
	case start != nil && start.Own != nil:
		return s.typed(start.match, start.Own.ops[txn.Ask])
	case start != nil:
		return s.typed(start.match, nil)
	}
	return s.typed(match{}, nil)
}

func (s *Sample) observeCall(c *Call, got map[string]any) {
	record, err := c.Record(&s.request)
	if err != nil {
		got["record"] = failure(err)
		return
	}
	got["record"] = decoded(record)
	var answer []byte
	if s.response != nil {
		out, _ := c.Outcome(txn.Forward, &s.request, s.response)
		got["outcome"] = outcomeWord(out)
		if out == txn.Refused {
			if c.Has(txn.Undo) {
				got[opKey(c, txn.Undo)] = notUndone
			}
			return
		}
		if out == txn.OK {
			if answer, err = c.RecordAnswer(s.response); err != nil {
				got["answer"] = failure(err)
			} else {
				got["answer"] = decoded(answer)
			}
		}
	}
	if c.Has(txn.Ask) {
		got["query"] = c.rendered(txn.Ask, record, nil)
	}
	if s.queried != nil {
		out, found, _, err := c.Query(record, s.queried)
		got["queried"] = outcomeWord(out)
		if err != nil {
			got["queried"] = failure(err)
		}
		if answer == nil {
			answer = found
		}
	}
	for _, o := range []txn.Op{txn.Commit, txn.Undo} {
		if c.Has(o) {
			got[opKey(c, o)] = c.rendered(o, record, answer)
		}
	}
}

const notUndone = "not sent: the call was refused"

func opKey(c *Call, o txn.Op) string {
	if name := c.opName(o); name != "delivery" {
		return name
	}
	return "deliver"
}

func failure(err error) string { return "error: " + err.Error() }

func decoded(data []byte) any {
	v, err := decodeJSON(data)
	if err != nil {
		return failure(err)
	}
	return v
}

func keyOr(s string, err error) any {
	if err != nil {
		return failure(err)
	}
	return s
}

func boolOr(b bool, err error) any {
	if err != nil {
		return failure(err)
	}
	return b
}

// rendered writes a request as a person would: "DELETE /w/1?x=y", and a mapping when there is more to it.
func (c *Call) rendered(o txn.Op, record, answer []byte) any {
	r, err := c.Render(o, record, answer)
	switch {
	case errors.Is(err, ErrNothing):
		return "nothing"
	case err != nil:
		return failure(err)
	}
	if r.isGRPC() {
		return c.renderedGRPC(o, r)
	}
	line := r.Method + " " + r.Path
	if r.Query != "" {
		line += "?" + r.Query
	}
	if len(r.Header) == 0 && len(r.Body) == 0 && r.Auth == nil {
		return line
	}
	out := map[string]any{"call": line}
	if len(r.Body) > 0 {
		out["body"] = bodyValue(r)
	}
	r.describe(out)
	return out
}

// describe adds headers and credentials.
func (r *Request) describe(out map[string]any, without ...string) {
	headers := map[string]any{}
	for _, h := range r.Header {
		if !slices.Contains(without, h[0]) {
			headers[h[0]] = h[1]
		}
	}
	if len(headers) > 0 {
		out["headers"] = headers
	}
	if r.Auth != nil {
		out["auth"] = "bearer " + r.Auth.Bearer.Namespace + "/" + r.Auth.Bearer.Name + "/" + r.Auth.Bearer.Key
	}
}

func (r *Request) isGRPC() bool {
	return slices.ContainsFunc(r.Header, func(h [2]string) bool { return h[0] == "content-type" && IsGRPC(h[1]) })
}

// renderedGRPC shows the message by its type, or its bytes in base64.
func (c *Call) renderedGRPC(o txn.Op, r *Request) any {
	out := map[string]any{"call": "gRPC " + strings.TrimPrefix(r.Path, "/")}
	t := c.ops[o].grpc.input()
	if c.ops[o].grpc == nil {
		t = c.match.grpc.input() // the held call itself
	}
	message, err := UnaryMessage(r.Body, "gzip")
	if err != nil {
		return failure(err)
	}
	out["message"] = base64.StdEncoding.EncodeToString(message)
	if t != nil {
		delete(out, "message")
		if out["body"], err = t.value(message); err != nil {
			out["body"] = failure(err)
		}
	}
	r.describe(out, "content-type", "te", "grpc-encoding")
	return out
}

func bodyValue(r *Request) any {
	if v, err := decodeJSON(r.Body); err == nil {
		return v
	}
	return string(r.Body)
}

// TargetOf makes a target and a message of a method and a URL, for tools. The service is namespace/name or "". The method
// grpc stands for a call of gRPC.
func TargetOf(method, rawURL, service string) (Target, Message, error) {
	u, err := url.Parse(rawURL)
	if err != nil {
		return Target{}, Message{}, fmt.Errorf("url %q: %w", rawURL, err)
	}
	path := orElse(u.EscapedPath(), "/")
	grpc := strings.EqualFold(method, "grpc")
	if grpc {
		method = "POST"
	}
	t := Target{Service: service, Host: u.Host, Method: method, Path: path, GRPC: grpc}
	return t, Message{Method: method, Path: path, Query: u.RawQuery}, nil
}
