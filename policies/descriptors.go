package policies

import (
	"encoding/base64"
	"errors"
	"fmt"
	"maps"
	"slices"
	"strings"
	"time"

	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/descriptorpb"

	"txmesh/txn"
)

// setSuffix is how the names of descriptor sets end.
const setSuffix = ".binpb"

// pasteSet puts the descriptor set that a document names by its file into the document itself, which must say everything
// by itself in the journal and at whoever it is handed on to.
func (c *compiler) pasteSet(d *document) bool {
	if d.spec == nil || d.spec.kind != mapping {
		return false
	}
	for i, e := range d.spec.entries {
		if e.key != "descriptors" || e.value.kind != mapping {
			continue
		}
		f := c.fields(e.value, e.at, "spec.descriptors", "file")
		name := f.required("file")
		set, ok := c.sets[name]
		if !ok {
			if name != "" {
				c.fault(e.at, codeDescriptors, "spec.descriptors.file: %q is not among the descriptor sets that were read: %s",
					name, orElse(strings.Join(slices.Sorted(maps.Keys(c.sets)), ", "), "none"))
			}
			d.spec.entries = slices.Delete(d.spec.entries, i, i+1)
			return false
		}
		d.spec.entries[i].value = &node{at: e.at, inner: -1, scalar: base64.StdEncoding.EncodeToString(set)}
		return true
	}
	return false
}

// portable is the text of a document that was written with the help of another file.
func (c *compiler) portable(d *document) []byte {
	metadata := map[string]any{"name": d.name, "namespace": d.namespace}
	if !d.created.IsZero() {
		metadata["creationTimestamp"] = d.created.Format(time.RFC3339)
	}
	data, err := encodeJSON(map[string]any{"apiVersion": apiVersion, "kind": d.kind, "metadata": metadata, "spec": d.spec.value()})
	if err != nil {
		c.fault(d.at, codeSyntax, "the document has no canonical form: %v", err)
	}
	return data
}

// readDescriptors reads `descriptors` of a spec.
func (p *policyReader) readDescriptors(f fields) {
	p.types = nil
	n := f.text("descriptors")
	if n == nil {
		return
	}
	var err error
	if p.types, err = readTypes(n.text()); err != nil {
		p.fault(n.at, codeDescriptors, "spec.descriptors: %v", err)
	}
}

// method reads the name of a method of gRPC, nil when it is not given or at fault. any: pkg.Service/* will do.
func (c *compiler) grpcMethod(f fields, many bool) *method {
	n := f.text("grpc")
	if n == nil {
		return nil
	}
	name := n.text()
	if !grpcMethodForm.MatchString(name) && !(many && grpcServiceForm.MatchString(name)) {
		form := "package.Service/Method"
		if many {
			form += " or package.Service/*"
		}
		c.fault(n.at, codeMethod, "%s is %q, not %s", f.path("grpc"), name, form)
		return nil
	}
	if c.types == nil {
		return &method{name: name}
	}
	m, err := c.types.method(name)
	if err != nil {
		c.fault(n.at, codeMethod, "%s: %v", f.path("grpc"), err)
		return nil
	}
	return m
}

// without refuses keys that have no meaning beside grpc.
func (c *compiler) without(f fields, keys ...string) {
	for _, k := range keys {
		if f.has(k) {
			c.fault(f.place(k), codeOneOf, "%s has both grpc and %s; grpc says the method and the path", f.what, k)
		}
	}
}

// callWants lists the services whose descriptors a rule needs and does not have.
func (c *Call) callWants() []string {
	wanted := map[string]bool{}
	read := func(side string) bool {
		return c.recorded.reads(side, "body") || c.reads.reads(side, "body") || c.keyReads.reads(side, "body") ||
			c.undoBeforehand && c.ops[txn.Undo].when.reads.reads(side, "body")
	}
	want := func(m *method, needed bool) {
		if m != nil && m.from == nil && needed {
			wanted[m.service()] = true
		}
	}
	want(c.match.grpc, read("request") || read("response"))
	for o, op := range c.ops {
		if op == nil {
			continue
		}
		builds := op.body != nil && op.resends == nil
		finds := txn.Op(o) == txn.Ask && (c.answer != nil && c.answer.reads.reads("response", "body") || read("response"))
		want(op.grpc, builds || finds || op.reads.reads("response", "body"))
	}
	return slices.Sorted(maps.Keys(wanted))
}

func (r *Start) startWants() []string {
	out := []string{}
	if r.match.grpc != nil && r.match.grpc.from == nil && (r.reads.reads("request", "body") || r.reads.reads("response", "body")) {
		out = append(out, r.match.grpc.service())
	}
	if r.Own != nil {
		out = append(out, r.Own.wants...)
	}
	slices.Sort(out)
	return slices.Compact(out)
}

// described reports what stands between a rule and the types of its messages.
func (p *policyReader) described(at pos, rule string, m match, services []string, reads ...*tree) {
	if m.grpc != nil && m.grpc.isAny() && slices.ContainsFunc(reads, func(t *tree) bool {
		return t.reads("request", "body") || t.reads("response", "body")
	}) {
		p.fault(at, codeMethod, "%s reads a body, and match.grpc %s stands for messages of many types; name one method", rule, m.grpc.name)
		return
	}
	if len(services) > 0 {
		p.warn(at, codeReflection, "%s needs the types of %s, which the service is asked for by reflection", rule, strings.Join(services, " and "))
	}
}

// Undescribed lists the services of gRPC whose descriptors the rule needs to read or to make messages, and which its
// document does not have. Describe adds them.
func (c *Call) Undescribed() []string { return c.wants }

// Undescribed is Call.Undescribed for a start rule and for its own undo, confirm and query.
func (r *Start) Undescribed() []string { return r.wants }

// Describe makes the rule again with a descriptor set, in a document of its own: whoever has that needs nothing else. An
// error that is Findings says what in the rule does not fit the descriptors.
func (c *Call) Describe(set *descriptorpb.FileDescriptorSet) (*Call, error) {
	s, err := described(c.source, "calls", c.Name, set)
	if err != nil {
		return nil, fmt.Errorf("describe %s: %w", c.Name, err)
	}
	return s.calls.all[0], nil
}

// Describe is Call.Describe for a start rule.
func (r *Start) Describe(set *descriptorpb.FileDescriptorSet) (*Start, error) {
	s, err := described(r.source, "start", r.Name, set)
	if err != nil {
		return nil, fmt.Errorf("describe %s: %w", r.Name, err)
	}
	return s.starts.all[0], nil
}

// described compiles a document that has of another one rule alone, and descriptors.
func described(src Source, list, rule string, set *descriptorpb.FileDescriptorSet) (*Set, error) {
	v, err := decodeJSON(src.Data)
	if err != nil {
		return nil, err
	}
	document, _ := v.(map[string]any)
	spec, _ := document["spec"].(map[string]any)
	rules, _ := spec[list].([]any)
	data, err := proto.MarshalOptions{Deterministic: true}.Marshal(set)
	if err != nil {
		return nil, err
	}
	for _, r := range rules {
		if fields, ok := r.(map[string]any); ok && fields["name"] == rule {
			delete(spec, "start")
			delete(spec, "calls")
			spec[list] = []any{r}
			spec["descriptors"] = base64.StdEncoding.EncodeToString(data)
			return recompiled(document, src.Name)
		}
	}
	return nil, errors.New("its document has no such rule")
}
