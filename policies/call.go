package policies

import (
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"strconv"
	"strings"
	"unicode/utf8"

	"txmesh/txn"
)

// Errors of Render that callers branch on.
var (
	// ErrNothing says that undo.when is false: there is nothing to undo.
	ErrNothing = errors.New("nothing to undo")
	// ErrNoAnswer says that the op is rendered from the forward's response, which is not known.
	ErrNoAnswer = errors.New("the answer of the forward call is not known")
)

func number(i int) json.Number { return json.Number(strconv.Itoa(i)) }

// Reads says which bodies Key, Record, RecordAnswer and Outcome look into.
func (c *Call) Reads() Reads {
	body := func(side string) bool {
		return c.recorded.readsBody(side) || c.reads.readsBody(side) || c.keyReads.readsBody(side)
	}
	return Reads{
		RequestBody:  c.Kind == Hold || body("request"),
		ResponseBody: body("response") || c.undoBeforehand && c.ops[txn.Undo].when.reads.readsBody("response"),
	}
}

// Key is what makes a repeat of the call the same branch: the policy's key, else the Idempotency-Key header. ""
// means none.
func (c *Call) Key(req *Message) (string, error) {
	return evalKey(c.key, c.keyReads, c.match.pattern, req.as(c.match.grpc.input()))
}

func evalKey(e *expr, reads *tree, p *pattern, req *Message) (string, error) {
	if e == nil {
		return idempotencyKey(req), nil
	}
	values, err := reads.request(req, p)
	if err != nil {
		return "", fmt.Errorf("evaluate key: %w", err)
	}
	v, err := e.eval(values)
	if errors.Is(err, errMissing) || err == nil && v == nil {
		return "", nil
	}
	if err != nil {
		return "", fmt.Errorf("evaluate key: %w", err)
	}
	s, err := scalarText(v)
	if err != nil {
		return "", fmt.Errorf("evaluate key: %s %w", e.text, err)
	}
	return s, nil
}

// idempotencyKey reads the header as applications write it: bare, or as the quoted string of the draft standard.
func idempotencyKey(req *Message) string {
	for _, name := range []string{"idempotency-key", "x-idempotency-key"} {
		if v := strings.TrimSpace(req.header(name)); v != "" {
			return unquote(v)
		}
	}
	return ""
}

func unquote(v string) string {
	if v[0] != '"' {
		return v
	}
	var b strings.Builder
	for i := 1; i < len(v); i++ {
		switch {
		case v[i] == '"':
			return b.String()
		case v[i] == '\\' && i+1 < len(v):
			i++
		}
		b.WriteByte(v[i])
	}
	return v
}

// held is a call that is kept to be sent later.
type held struct {
	Method  string      `json:"method"`
	Path    string      `json:"path"`
	Query   string      `json:"query"`
	Headers [][2]string `json:"headers"`
	Body    string      `json:"body"` // base64
}

// Record keeps of a request exactly what the templates and expressions of later ops read, as canonical JSON: equal
// requests give equal bytes. Of a held call it keeps the method, path, query, content headers and body too.
func (c *Call) Record(req *Message) ([]byte, error) {
	if err := c.readable(req); err != nil {
		return nil, fmt.Errorf("record the request of %s: %w", c.Name, err)
	}
	req = req.as(c.match.grpc.input())
	values, err := c.recorded.request(req, c.match.pattern)
	if err != nil {
		return nil, fmt.Errorf("record the request of %s: %w", c.Name, err)
	}
	if host := req.header("host"); c.recordsHost && host != "" {
		values["host"] = host
	}
	if c.Kind == Hold {
		h := held{Method: req.Method, Path: req.Path, Query: req.Query, Body: base64.StdEncoding.EncodeToString(req.Body)}
		for _, name := range c.heldHeaders {
			v := req.header(name)
			if !utf8.ValidString(v) {
				return nil, fmt.Errorf("record the request of %s: header %s is not valid UTF-8", c.Name, name)
			}
			if v != "" {
				h.Headers = append(h.Headers, [2]string{name, v})
			}
		}
		values["held"] = h
	}
	return encodeValues(values)
}

// RecordAnswer keeps of a response exactly what later ops read, and whether there is anything to undo. Equal
// responses give equal bytes.
func (c *Call) RecordAnswer(res *Message) ([]byte, error) {
	res = res.as(c.match.grpc.output())
	values, err := c.recorded.response(res)
	if err != nil {
		return nil, fmt.Errorf("record the answer of %s: %w", c.Name, err)
	}
	if err := c.judgeUndo(values, res); err != nil {
		return nil, fmt.Errorf("record the answer of %s: %w", c.Name, err)
	}
	return encodeValues(values)
}

// judgeUndo settles undo.when while the response is at hand, where the condition reads nothing else.
func (c *Call) judgeUndo(values map[string]any, res *Message) error {
	if !c.undoBeforehand {
		return nil
	}
	when := c.ops[txn.Undo].when
	seen, err := when.reads.response(res)
	if err != nil {
		return err
	}
	needed, err := needsUndo(when, seen)
	if err != nil {
		return err
	}
	values["undo"] = needed
	return nil
}

// needsUndo errs on the side of the undo: a condition over values that are not there counts as true.
func needsUndo(when *expr, s scope) (bool, error) {
	yes, err := when.evalBool(s)
	if errors.Is(err, errMissing) {
		return true, nil
	}
	if err != nil {
		return false, fmt.Errorf("evaluate undo.when: %w", err)
	}
	return yes, nil
}

// Render makes the call of an op from what was recorded; both records may be empty where nothing was. It returns
// ErrNothing when undo.when is false, and an error that names the value when one is missing or empty.
func (c *Call) Render(o txn.Op, request, answer []byte) (*Request, error) {
	if !c.Has(o) {
		return nil, fmt.Errorf("render %s: the rule defines none for this op", c.Name)
	}
	out, err := c.render(c.ops[o], request, answer)
	if err != nil {
		return nil, fmt.Errorf("render %s of %s: %w", c.opName(o), c.Name, err)
	}
	return out, nil
}

func (c *Call) opName(o txn.Op) string {
	switch {
	case o == txn.Ask:
		return "query"
	case o == txn.Commit && c.Kind == Hold:
		return "delivery"
	case o == txn.Commit:
		return "confirm"
	case c.Kind == Reserve:
		return "cancel"
	}
	return "undo"
}

func (c *Call) render(o *op, request, answer []byte) (*Request, error) {
	s, err := c.recall(request, answer)
	if err != nil {
		return nil, err
	}
	if err := c.needed(o, s); err != nil {
		return nil, err
	}
	out := &Request{Service: c.match.service, Host: c.match.host, Method: o.method, Auth: o.auth}
	held := c.Kind == Hold && o == c.ops[txn.Commit]
	if held {
		if err := out.fromHeld(s); err != nil {
			return nil, err
		}
	}
	if o.grpc != nil {
		if err := o.fillGRPC(out, s, held); err != nil {
			return nil, err
		}
	}
	if err := o.fill(out, s); err != nil {
		return nil, err
	}
	return out, nil
}

// needed returns ErrNothing when undo.when is false, and ErrNoAnswer when the op needs a response that is not known.
func (c *Call) needed(o *op, s scope) error {
	if s["undo"] == false && o == c.ops[txn.Undo] {
		return ErrNothing
	}
	_, judged := s["undo"]
	_, answered := s["response"]
	if !answered && o.recorded.reads("response") {
		return ErrNoAnswer
	}
	if o.when == nil || judged {
		return nil
	}
	if !answered && o.when.reads.reads("response") {
		// Where a sidecar or a query can still tell, the condition waits for it. Where nobody can, onUnknown: Undo
		// says that the undo is sent all the same.
		if c.OnUnknown != txn.ResolveUndo || c.Has(txn.Ask) || c.keepsAnswers() {
			return ErrNoAnswer
		}
		return nil
	}
	yes, err := needsUndo(o.when, s)
	if err == nil && !yes {
		return ErrNothing
	}
	return err
}

// keepsAnswers reports whether the callee's sidecar finds a lost answer again. With Key it keeps its row too, and a
// forward that crashed is repeated under its own key.
func (c *Call) keepsAnswers() bool {
	return c.match.service != "" && (c.Barrier == Proxy || c.Barrier == Key)
}

// recall makes a scope of the two records.
func (c *Call) recall(request, answer []byte) (scope, error) {
	s := scope{}
	for _, r := range []struct {
		what string
		data []byte
	}{{"request", request}, {"answer", answer}} {
		if len(r.data) == 0 {
			continue
		}
		v, err := decodeJSON(r.data)
		if err != nil {
			return nil, fmt.Errorf("read the recorded %s: %w", r.what, err)
		}
		fields, ok := v.(map[string]any)
		if !ok {
			return nil, fmt.Errorf("read the recorded %s: is %s, not an object", r.what, typeName(v))
		}
		for k, f := range fields {
			s[k] = f
		}
	}
	return s, nil
}

func (r *Request) fromHeld(s scope) error {
	data, err := json.Marshal(s["held"])
	if err != nil {
		return fmt.Errorf("read the held call: %w", err)
	}
	var h held
	if err := json.Unmarshal(data, &h); err != nil {
		return fmt.Errorf("read the held call: %w", err)
	}
	if h.Method == "" {
		return errors.New("read the held call: nothing was recorded")
	}
	body, err := base64.StdEncoding.DecodeString(h.Body)
	if err != nil {
		return fmt.Errorf("read the held call's body: %w", err)
	}
	if r.Method == "" {
		r.Method = h.Method
	}
	r.Path, r.Query, r.Header, r.Body = h.Path, h.Query, h.Headers, body
	return nil
}

// fill renders the templates of an op into its request.
func (o *op) fill(r *Request, s scope) error {
	if o.path != nil {
		var err error
		if r.Path, r.Query, err = o.renderPath(r, s); err != nil {
			return err
		}
	}
	for _, p := range o.params {
		v, err := p.value.string(s)
		if err != nil {
			return fmt.Errorf("params.%s: %w", p.name, err)
		}
		if r.Query != "" {
			r.Query += "&"
		}
		r.Query += escapeSegment(p.name) + "=" + escapeSegment(v)
	}
	for _, h := range o.headers {
		v, err := h.value.string(s)
		if err != nil {
			return fmt.Errorf("headers.%s: %w", h.name, err)
		}
		if strings.ContainsFunc(v, func(c rune) bool { return c < ' ' && c != '\t' || c == 0x7f }) {
			return fmt.Errorf("headers.%s: the value has a control character", h.name)
		}
		r.Header = append(r.Header, [2]string{h.name, v})
	}
	return o.fillBody(r, s)
}

func (o *op) renderPath(r *Request, s scope) (path, query string, err error) {
	if o.path.isLocation() {
		host, _ := s["host"].(string)
		path, query, err = o.path.location(s, r.Host, host)
	} else {
		path, err = o.path.path(s)
	}
	if err != nil {
		return "", "", fmt.Errorf("path: %w", err)
	}
	return path, query, nil
}

func (o *op) fillBody(r *Request, s scope) error {
	media := ""
	switch {
	case o.grpc != nil:
		return nil // fillGRPC has made it
	case o.body != nil:
		v, err := o.body.render(s)
		if err != nil {
			return fmt.Errorf("body: %w", err)
		}
		if r.Body, err = encodeJSON(v); err != nil {
			return fmt.Errorf("body: %w", err)
		}
		media = "application/json"
	case o.form != nil:
		var fields []string
		for _, f := range o.form {
			v, err := f.value.inBody(s)
			if err != nil {
				return fmt.Errorf("form.%s: %w", f.name, err)
			}
			fields = append(fields, escapeSegment(f.name)+"="+escapeSegment(v))
		}
		r.Body, media = []byte(strings.Join(fields, "&")), "application/x-www-form-urlencoded"
	}
	if media == "" {
		return nil
	}
	for _, h := range r.Header {
		if h[0] == "content-type" {
			return nil
		}
	}
	r.Header = append(r.Header, [2]string{"content-type", media})
	return nil
}
