package policies

import (
	"fmt"
	"strings"

	"txmesh/txn"
)

// StartPlan is a start rule with every default written out, for people and tools.
type StartPlan struct {
	Policy     string    `json:"policy"`
	Rule       string    `json:"rule"`
	Document   string    `json:"document"`
	Mode       string    `json:"mode"`
	Match      string    `json:"match"`
	Timeout    string    `json:"timeout"`
	Key        string    `json:"key"`
	CommitWhen string    `json:"commitWhen"`
	Reply      string    `json:"reply"`
	Nested     string    `json:"nested"`
	Buffers    []string  `json:"buffers"`
	Reflects   []string  `json:"reflects,omitempty"` // services of gRPC that are asked for their descriptors
	Own        *CallPlan `json:"own,omitempty"`
}

// CallPlan is a call rule with every default written out, for people and tools.
type CallPlan struct {
	Policy        string   `json:"policy"`
	Rule          string   `json:"rule"`
	Document      string   `json:"document"`
	Mode          string   `json:"mode"`
	Match         string   `json:"match"`
	Kind          string   `json:"kind"`
	Reason        string   `json:"reason,omitempty"`
	Undo          *OpPlan  `json:"undo,omitempty"`
	Confirm       *OpPlan  `json:"confirm,omitempty"`
	Cancel        *OpPlan  `json:"cancel,omitempty"`
	Deliver       *OpPlan  `json:"deliver,omitempty"`
	Query         *OpPlan  `json:"query,omitempty"`
	AbsentAfter   string   `json:"absentAfter,omitempty"`
	Outcome       []string `json:"outcome,omitempty"`
	Barrier       string   `json:"barrier"`
	OnUnknown     string   `json:"onUnknown"`
	Key           string   `json:"key"`
	Timeout       string   `json:"timeout"`
	UndoRetry     string   `json:"undoRetry"`
	Required      string   `json:"required"`
	OnAmbiguous   string   `json:"onAmbiguous"`
	OnLostContext string   `json:"onLostContext"`
	Async         string   `json:"async"`
	Records       []string `json:"records"`
	Buffers       []string `json:"buffers"`
	Reflects      []string `json:"reflects,omitempty"` // services of gRPC that are asked for their descriptors
}

// OpPlan is one later call as its templates say it.
type OpPlan struct {
	Call    string            `json:"call"`
	When    string            `json:"when,omitempty"`
	Params  map[string]string `json:"params,omitempty"`
	Headers map[string]string `json:"headers,omitempty"`
	Body    string            `json:"body,omitempty"`
	Auth    string            `json:"auth,omitempty"`
	Answer  string            `json:"answer,omitempty"`
	Outcome []string          `json:"outcome,omitempty"`
}

func (r *Start) defaultCommit() string {
	if r.match.grpc != nil {
		return `response.grpc.status == "OK"`
	}
	return "response.code < 400"
}

const defaultKey = "the Idempotency-Key header"

// Plan writes the rule out.
func (r *Start) Plan() StartPlan {
	p := StartPlan{
		Policy: r.Policy, Rule: r.Name, Document: r.Document, Mode: modeWord(r.Shadow), Match: r.match.String(),
		Timeout: r.Timeout.String(), Key: defaultKey, CommitWhen: r.defaultCommit(), Nested: r.Nested.String(),
		Reply:   fmt.Sprintf("on commit %v, on abort %v, waiting at most %v", r.Reply.OnCommit, r.Reply.OnAbort, r.Reply.Max),
		Buffers: r.Reads().words(), Reflects: r.wants,
	}
	if r.key != nil {
		p.Key = r.key.text
	}
	if r.commitWhen != nil {
		p.CommitWhen = r.commitWhen.text
	}
	if r.Own != nil {
		own := r.Own.Plan()
		p.Own = &own
	}
	return p
}

// Plan writes the rule out.
func (c *Call) Plan() CallPlan {
	p := CallPlan{
		Policy: c.Policy, Rule: c.Name, Document: c.Document, Mode: modeWord(c.Shadow), Match: c.match.String(), Kind: c.Kind.String(),
		Reason: c.Reason, Outcome: ruleWords(c.outcome), Barrier: c.Barrier.String(), OnUnknown: resolveWord(c.OnUnknown),
		Key: defaultKey, Timeout: "that of the mode", Required: c.Required.String(), OnAmbiguous: word(c.Ambiguous, "Reject", "Ignore"),
		OnLostContext: word(c.Lost, "Reject", "Report"), Async: c.Async.String(), Buffers: c.Reads().words(), Reflects: c.wants,
		UndoRetry: fmt.Sprintf("after %v, at most %v apart, stuck after %v", c.Retry.Delay, c.Retry.DelayMax, c.Retry.StuckAfter),
	}
	p.Records = []string{}
	for _, path := range c.recorded.paths(nil) {
		if len(path) > 0 {
			p.Records = append(p.Records, path.String())
		}
	}
	if c.key != nil {
		p.Key = c.key.text
	}
	if c.Timeout > 0 {
		p.Timeout = c.Timeout.String()
	}
	p.addOps(c)
	return p
}

func (p *CallPlan) addOps(c *Call) {
	switch {
	case c.Kind == Hold:
		p.Deliver = c.ops[txn.Commit].plan()
	case c.Kind == Reserve:
		p.Confirm, p.Cancel = c.ops[txn.Commit].plan(), c.ops[txn.Undo].plan()
	default:
		p.Undo = c.ops[txn.Undo].plan()
	}
	if q := c.ops[txn.Ask]; q != nil {
		p.Query = q.plan()
		p.AbsentAfter = c.AbsentAfter.String()
		if c.answer != nil {
			p.Query.Answer = c.answer.text
		}
	}
}

func (o *op) plan() *OpPlan {
	if o == nil {
		return nil
	}
	p := &OpPlan{Call: "the held call itself", Params: texts(o.params), Headers: texts(o.headers), Outcome: ruleWords(o.outcome)}
	if o.grpc != nil {
		p.Call = "gRPC " + o.grpc.name
	}
	if o.path != nil {
		p.Call = strings.TrimSpace(o.method + " " + o.path.text)
	}
	if o.when != nil {
		p.When = o.when.text
	}
	if o.body != nil {
		p.Body = o.body.String()
	}
	if o.form != nil {
		p.Body = "form"
		for _, f := range o.form {
			p.Body += " " + f.name + "=" + f.value.text
		}
	}
	if o.auth != nil {
		p.Auth = fmt.Sprintf("bearer from secret %s/%s key %s", o.auth.Bearer.Namespace, o.auth.Bearer.Name, o.auth.Bearer.Key)
	}
	return p
}

func texts(ns []named) map[string]string {
	out := make(map[string]string, len(ns))
	for _, n := range ns {
		out[n.name] = n.value.text
	}
	return out
}

func ruleWords(rules []outcomeRule) []string {
	var out []string
	for _, r := range rules {
		out = append(out, fmt.Sprintf("%s when %s", outcomeWord(r.is), r.when.text))
	}
	return out
}

// words are the messages that are buffered.
func (r Reads) words() []string {
	out := []string{}
	if r.RequestBody {
		out = append(out, "request body")
	}
	if r.ResponseBody {
		out = append(out, "response body")
	}
	return out
}

// String is the match as a person would say it: POST bank/accounts /accounts/{id}.
func (m match) String() string {
	if m.grpc != nil {
		return strings.Join(strings.Fields("gRPC "+m.service+" "+m.host+" "+m.grpc.name), " ")
	}
	whom := m.service
	if m.host != "" {
		whom = strings.TrimSpace(whom + " host " + m.host)
	}
	return strings.Join([]string{orElse(m.method, "any method"), whom, orElse(m.pattern.text, "any path")}, " ")
}

// String is the body with its templates, keys sorted.
func (h *shape) String() string {
	switch {
	case h.template != nil:
		return h.template.text
	case h.kind == mapping:
		fields := make([]string, len(h.fields))
		for i, f := range h.fields {
			fields[i] = f.name + ": " + f.shape.String()
		}
		return "{" + strings.Join(fields, ", ") + "}"
	case h.kind == sequence:
		items := make([]string, len(h.items))
		for i, item := range h.items {
			items[i] = item.String()
		}
		return "[" + strings.Join(items, ", ") + "]"
	}
	data, err := encodeJSON(h.constant)
	if err != nil {
		return fmt.Sprint(h.constant)
	}
	return string(data)
}
