package policies

import (
	"errors"
	"fmt"
	"strings"
)

// Inline makes the rule that an application wrote into the headers of its own call: tx-undo, or tx-confirm with
// tx-cancel, or tx-hold, each `METHOD path-template`; tx-hold may be `true`, which sends the call itself later.
// service is the namespace/name called; the ops go to no other. Without these headers the rule is nil. Its document
// is synthesised and compiles again like any other. The error says which header is at fault.
func Inline(service string, header func(name string) string) (*Call, error) {
	rule := map[string]any{}
	if err := inlineOps(rule, header); err != nil {
		return nil, err
	}
	if len(rule) == 0 {
		return nil, nil
	}
	namespace, name, ok := strings.Cut(service, "/")
	if !ok {
		return nil, fmt.Errorf("headers tx-undo, tx-confirm, tx-cancel and tx-hold: service %q is not namespace/name", service)
	}
	rule["name"] = inlineName
	rule["match"] = map[string]any{"service": name}
	data, err := encodeJSON(map[string]any{
		"apiVersion": apiVersion, "kind": kindPolicy,
		"metadata": map[string]any{"name": inlineName, "namespace": namespace},
		"spec":     map[string]any{"calls": []any{rule}},
	})
	if err != nil {
		return nil, fmt.Errorf("headers of the call: %w", err)
	}
	c, err := Recompile(Source{Name: "headers", Data: data}, inlineName)
	if fs, ok := errors.AsType[Findings](err); ok {
		return nil, fmt.Errorf("headers tx-undo, tx-confirm, tx-cancel or tx-hold: %s: %s", fs[0].Code, fs[0].Text)
	}
	return c, err
}

// inlineName is the name of the policy and of the rule that headers make.
const inlineName = "inline"

func inlineOps(rule map[string]any, header func(string) string) error {
	undo, err := inlineOp(header, "tx-undo")
	if err != nil {
		return err
	}
	confirm, err := inlineOp(header, "tx-confirm")
	if err != nil {
		return err
	}
	cancel, err := inlineOp(header, "tx-cancel")
	if err != nil {
		return err
	}
	var hold map[string]any
	if strings.TrimSpace(header("tx-hold")) == "true" {
		hold = map[string]any{}
	} else if hold, err = inlineOp(header, "tx-hold"); err != nil {
		return err
	}
	switch {
	case (confirm == nil) != (cancel == nil):
		return errors.New("headers tx-confirm and tx-cancel: give both or neither")
	case confirm != nil:
		rule["reserve"] = map[string]any{"confirm": confirm, "cancel": cancel}
	}
	if undo != nil {
		rule["undo"] = undo
	}
	if hold != nil {
		rule["hold"] = hold
	}
	if len(rule) > 1 {
		return errors.New("headers tx-undo, tx-confirm with tx-cancel, and tx-hold: give one of the three")
	}
	return nil
}

func inlineOp(header func(string) string, name string) (map[string]any, error) {
	v := strings.TrimSpace(header(name))
	if v == "" {
		return nil, nil
	}
	method, path, ok := strings.Cut(v, " ")
	path = strings.TrimSpace(path)
	if grpcMethodForm.MatchString(method) {
		return map[string]any{"grpc": method, "body": orElse(path, "{request.message}")}, nil
	}
	if !ok || !methodForm.MatchString(method) || path == "" {
		return nil, fmt.Errorf("header %s: %q is neither METHOD path-template, such as DELETE /orders/{response.body.id}, nor package.Service/Method", name, v)
	}
	return map[string]any{"method": method, "path": path}, nil
}

// recompiled compiles one canonical document.
func recompiled(v any, name string) (*Set, error) {
	c := newCompiler()
	c.trusting = true
	s := c.link(c.frames([]*node{nodeOf(v, name)}))
	if c.broken() {
		return nil, c.sorted(Error)
	}
	return s, nil
}

// Recompile makes one rule from the canonical source of its document again, for a transaction that runs under a document
// which is no longer in force. rule names a call, or a start rule, whose own branch is then returned.
func Recompile(src Source, rule string) (*Call, error) {
	v, err := decodeJSON(src.Data)
	if err != nil {
		return nil, fmt.Errorf("recompile %s: %w", src.Name, err)
	}
	s, err := recompiled(v, src.Name)
	if err != nil {
		return nil, err
	}
	for _, call := range s.calls.all {
		if call.Name == rule {
			return call, nil
		}
	}
	for _, start := range s.starts.all {
		if start.Name == rule && start.Own != nil {
			return start.Own, nil
		}
	}
	return nil, fmt.Errorf("recompile %s: it has no rule %q", src.Name, rule)
}
