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
	extra  []string // keys beyond the common ones
	held   bool     // the recorded call: method and path may be left out
}

// op compiles one later call: undo, confirm, cancel, query or the delivery of a held call.
func (c *compiler) op(n *node, at pos, s opSpec) (*op, fields) {
	known := append([]string{"method", "path", "params", "headers", "body", "form", "auth", "outcome", "grpc"}, s.extra...)
	f := c.fields(n, at, s.what, known...)
	o := &op{recorded: &tree{}, reads: &tree{}}
	if f.has("grpc") {
		c.fault(f.place("grpc"), codeGRPC, "%s.grpc: gRPC is not served by this release", s.what)
		return o, f
	}
	o.method = c.method(f, "method", s.method)
	if !s.held {
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
	o.outcome = c.outcomes(f, o.reads, sight{response: true, why: "the outcome of a later op is judged by its own answer"})
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
	}
	if n := f.get("form"); n != nil {
		o.form, r = c.named(n, f.path("form"), s.see)
		o.recorded.merge(r)
	}
	if f.has("auth") {
		o.auth = c.auth(f)
	}
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
	case slices.Contains(owned, name), strings.HasPrefix(name, "tx-"):
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
