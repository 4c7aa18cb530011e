package policies

import (
	"regexp"
	"slices"
	"strings"

	"txmesh/txn"
)

var methodForm = regexp.MustCompile(`^[A-Z]{1,32}$`)

// method reads an HTTP method; def when it is not given.
func (c *compiler) method(f fields, key, def string) string {
	n := f.text(key)
	if n == nil {
		return def
	}
	m := n.text()
	if !methodForm.MatchString(m) {
		c.fault(n.at, codeValue, "%s is %q, not a method such as POST", f.path(key), m)
		return def
	}
	if m == "CONNECT" {
		c.fault(n.at, codeStream, "%s is CONNECT, which opens a tunnel that has no answer with an end", f.path(key))
		return def
	}
	return m
}

// opSpec is what the reader of an op needs to know of its place.
type opSpec struct {
	what   string
	method string // default
	see    sight
	extra  []string     // keys beyond the common ones
	held   bool         // the recorded call: method and path may be left out
	answer *messageType // of the held call; nil: not known
}

// op compiles one later call: undo, confirm, cancel, query or the delivery of a held call.
func (c *compiler) op(n *node, at pos, s opSpec) (*op, fields) {
	known := append([]string{"method", "path", "params", "headers", "body", "form", "auth", "outcome", "grpc"}, s.extra...)
	f := c.fields(n, at, s.what, known...)
	o := &op{recorded: &tree{}, reads: &tree{}}
	if f.has("grpc") {
		c.without(f, "method", "path", "params", "form")
		o.grpc = c.grpcMethod(f, false)
	} else {
		o.method = c.method(f, "method", s.method)
	}
	if !s.held && !f.has("grpc") {
		if f.n == nil && (n == nil || n.null()) {
			c.fault(at, codeMissing, "%s has no path", s.what)
		}
		f.required("path")
	}
	if p := f.get("path"); p != nil && p.kind == scalar && p.text() != "" {
		if o.path = c.pathTemplate(p, f.path("path"), s.see); o.path != nil {
			o.recorded.merge(o.path.reads())
		}
	}
	c.opParts(o, f, s)
	answer := s.answer
	if o.grpc != nil {
		answer = o.grpc.output()
	}
	o.outcome = c.outcomes(f, o.reads, sight{response: true, output: answer,
		why: "the outcome of a later op is judged by its own answer"})
	if n := f.text("when"); n != nil && slices.Contains(s.extra, "when") {
		o.when = c.condition(n, f.path("when"), s.see)
	}
	return o, f
}

func (c *compiler) opParts(o *op, f fields, s opSpec) {
	var r *tree
	o.params, r = c.named(f.get("params"), f.path("params"), s.see)
	o.recorded.merge(r)
	o.headers, r = c.named(f.get("headers"), f.path("headers"), s.see)
	o.recorded.merge(r)
	for i := range o.headers {
		o.headers[i].name = c.settable(o.headers[i], f)
	}
	if f.has("body") && f.has("form") {
		c.fault(f.place("form"), codeOneOf, "%s has both body and form", s.what)
	}
	if n := f.get("body"); n != nil {
		o.body, r = c.shape(n, f.path("body"), s.see)
		o.recorded.merge(r)
		c.grpcBody(o, n, f)
	}
	if n := f.get("form"); n != nil {
		o.form, r = c.named(n, f.path("form"), s.see)
		o.recorded.merge(r)
	}
	if f.has("auth") {
		o.auth = c.auth(f)
	}
}

// grpcBody tells recorded bytes, which are sent as they are, from the description of a message.
func (c *compiler) grpcBody(o *op, n *node, f fields) {
	if o.grpc == nil {
		return
	}
	if e := o.body.value(); e != nil && (e.text == "request.message" || e.text == "response.message") {
		o.resends = e
		return
	}
	if n.kind != mapping && o.body.value() == nil && o.body.template != nil || n.kind == sequence {
		c.fault(n.at, codeMessage, "%s of a gRPC call is a mapping, \"{request.message}\" or \"{response.message}\"", f.path("body"))
		return
	}
	if t := o.grpc.input(); t != nil {
		c.checkShape(n, t.desc, f.path("body"))
	}
}

// value is the value that the whole body is; nil: it is anything else.
func (h *shape) value() *expr {
	if h.template == nil {
		return nil
	}
	return h.template.leaf()
}

// settable refuses headers that belong to the sidecar or the connection, and those that would turn the call into
// a stream.
func (c *compiler) settable(h named, f fields) string {
	name := strings.ToLower(h.name)
	owned := []string{
		"host", "content-length", "connection", "transfer-encoding", "te", "trailer", "keep-alive", "proxy-connection",
		"idempotency-key", "baggage", "traceparent", "tracestate",
	}
	at := h.value.at
	switch {
	case !headerForm.MatchString(name):
		c.fault(at, codeSetHeader, "%s.headers: %q is not a header name", f.what, h.name)
	case slices.Contains(owned, name), strings.HasPrefix(name, "tx-"), strings.HasPrefix(name, "grpc-"):
		c.fault(at, codeSetHeader, "%s.headers: %s is set by the sidecar", f.what, name)
	case slices.Contains(secretHeaders(), name):
		c.fault(at, codeSetHeader, "%s.headers: %s is a secret, which a policy may not hold; use auth", f.what, name)
	case name == "upgrade", name == "accept" && strings.Contains(strings.ToLower(h.value.text), "text/event-stream"):
		c.fault(at, codeStream, "%s.headers: %s asks for a stream, which has no answer with an end", f.what, name)
	}
	return name
}

var headerForm = regexp.MustCompile("^[-!#$%&'*+.^_`|~0-9a-z]+$")

func (c *compiler) auth(f fields) *Auth {
	a := c.fields(f.get("auth"), f.place("auth"), f.path("auth"), "bearer")
	a.requiredMapping("bearer")
	b := c.fields(a.get("bearer"), a.place("bearer"), a.path("bearer"), "secretRef")
	b.requiredMapping("secretRef")
	s := c.fields(b.get("secretRef"), b.place("secretRef"), b.path("secretRef"), "name", "key")
	return &Auth{Bearer: Secret{Name: s.required("name"), Key: s.required("key")}}
}

func (f fields) requiredMapping(key string) {
	if f.n != nil && !f.has(key) {
		f.r.fault(f.at, codeMissing, "%s has no %s", f.what, key)
	}
}

// outcomes compiles outcome rules and adds what they read.
func (c *compiler) outcomes(f fields, reads *tree, see sight) []outcomeRule {
	var out []outcomeRule
	words := []string{"OK", "Refused", "Pending", "Unknown"}
	is := []txn.Outcome{txn.OK, txn.Refused, txn.Pending, txn.Unknown}
	for _, n := range f.list("outcome") {
		r := c.fields(n, n.at, f.path("outcome"), "when", "is")
		r.required("when")
		r.required("is")
		i := r.choice("is", -1, words...)
		when := r.text("when")
		if when == nil {
			continue
		}
		if e := c.condition(when, r.path("when"), see); e != nil && i >= 0 {
			reads.merge(e.reads)
			out = append(out, outcomeRule{when: e, is: is[i]})
		}
	}
	return out
}
