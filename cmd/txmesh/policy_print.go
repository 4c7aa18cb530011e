package main

import (
	"fmt"
	"io"
	"slices"
	"strings"

	"txmesh/policies"
)

// printer writes aligned lines and keeps the first error.
type printer struct {
	w      io.Writer
	indent string
	err    error
}

func (p *printer) heading(text string) { p.write("%s%s\n", p.indent, text) }

// line leaves out what is not set.
func (p *printer) line(key, value string) {
	if value != "" {
		p.write("%s  %-14s %s\n", p.indent, key, value)
	}
}

func (p *printer) write(format string, args ...any) {
	if p.err == nil {
		_, p.err = fmt.Fprintf(p.w, format, args...)
	}
}

func (e *explanation) print(w io.Writer) error {
	p := &printer{w: w}
	p.heading(e.Request)
	p.line("key", e.Key)
	if e.Inbound == nil {
		p.heading("inbound: opens no transaction")
	} else {
		p.start(e.Inbound)
	}
	if e.Call == nil {
		p.heading("outbound: is no branch; it passes untouched")
	} else {
		p.call(e.Call, "outbound: is branch "+e.Call.Policy+"/"+e.Call.Rule+" by "+e.Source)
	}
	if e.Traffic != nil {
		p.traffic(e.Traffic)
	}
	return p.err
}

func (p *printer) start(s *policies.StartPlan) {
	p.heading("inbound: opens a transaction by " + s.Policy + "/" + s.Rule)
	p.line("match", s.Match)
	p.line("mode", s.Mode)
	p.line("timeout", s.Timeout)
	p.line("key", s.Key)
	p.line("commit when", s.CommitWhen)
	p.line("reply", s.Reply)
	p.line("nested", s.Nested)
	p.line("buffers", list(s.Buffers))
	p.line("document", s.Document)
	if s.Own != nil {
		inner := &printer{w: p.w, indent: "  ", err: p.err}
		inner.call(s.Own, "its own writes are branch 0")
		p.err = inner.err
	}
}

func (p *printer) call(c *policies.CallPlan, heading string) {
	p.heading(heading)
	p.line("match", c.Match)
	p.line("mode", c.Mode)
	p.line("kind", strings.TrimSpace(c.Kind+" "+c.Reason))
	p.op("undo", c.Undo)
	p.op("confirm", c.Confirm)
	p.op("cancel", c.Cancel)
	p.op("deliver", c.Deliver)
	p.op("query", c.Query)
	p.line("absent after", c.AbsentAfter)
	p.line("outcome", strings.Join(c.Outcome, "; "))
	p.line("barrier", c.Barrier)
	p.line("on unknown", c.OnUnknown)
	p.line("undo retry", c.UndoRetry)
	p.line("key", c.Key)
	p.line("timeout", c.Timeout)
	p.line("required", c.Required)
	p.line("on ambiguous", c.OnAmbiguous)
	p.line("on lost", c.OnLostContext)
	p.line("async", c.Async)
	p.line("records", list(c.Records))
	p.line("buffers", list(c.Buffers))
	p.line("document", c.Document)
}

func (p *printer) traffic(t *policies.TrafficPlan) {
	heading := "traffic: by " + t.Policy
	if t.Route != "" {
		heading += "/" + t.Route
	}
	p.heading(heading)
	p.line("to", t.To)
	p.line("balance", t.Balance)
	p.line("connect", t.Connect)
	p.line("request", t.Request)
	p.line("idle", t.Idle)
	p.line("connections", t.Connections)
	p.line("breaker", t.CircuitBreaker)
	p.line("retries", t.Retries)
}

func (p *printer) op(name string, o *policies.OpPlan) {
	if o == nil {
		return
	}
	p.line(name, o.Call)
	p.line("  when", o.When)
	p.line("  params", pairs(o.Params))
	p.line("  headers", pairs(o.Headers))
	p.line("  body", o.Body)
	p.line("  auth", o.Auth)
	p.line("  answer", o.Answer)
	p.line("  outcome", strings.Join(o.Outcome, "; "))
}

func list(words []string) string {
	if len(words) == 0 {
		return "nothing"
	}
	return strings.Join(words, ", ")
}

func pairs(m map[string]string) string {
	var out []string
	for k, v := range m {
		out = append(out, k+"="+v)
	}
	slices.Sort(out)
	return strings.Join(out, ", ")
}
