package policies

import (
	"fmt"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"time"
)

// fields reads the keys of one mapping and reports those that nobody knows.
type fields struct {
	r    *reporter
	n    *node // nil: not given, or not a mapping
	at   pos
	what string
}

// fields opens a mapping. known are its keys; another one is a finding. nil stands for a mapping without keys.
func (r *reporter) fields(n *node, at pos, what string, known ...string) fields {
	f := fields{r: r, at: at, what: what}
	if n == nil || n.null() {
		return f
	}
	f.at = n.at
	if n.kind != mapping {
		r.fault(n.at, codeType, "%s is %s, not a mapping", what, shapeName(n))
		return f
	}
	f.n = n
	for _, e := range n.entries {
		if !slices.Contains(known, e.key) {
			hint := didYouMean(e.key, known)
			if strings.ContainsAny(e.key, "()=<>\"'") {
				hint = "; an expression with a comma must be quoted within { }"
			}
			r.fault(e.at, codeUnknownKey, "unknown key %q in %s%s", e.key, what, hint)
		}
	}
	return f
}

func shapeName(n *node) string {
	switch {
	case n.kind == mapping:
		return "a mapping"
	case n.kind == sequence:
		return "a list"
	}
	return typeName(n.scalar)
}

func (f fields) get(key string) *node {
	if f.n == nil {
		return nil
	}
	return f.n.get(key)
}

func (f fields) has(key string) bool { return f.get(key) != nil }

// at is where a key is written, or the mapping when it is not.
func (f fields) place(key string) pos {
	if f.n != nil {
		for _, e := range f.n.entries {
			if e.key == key {
				return e.at
			}
		}
	}
	return f.at
}

func (f fields) path(key string) string { return f.what + "." + key }

// text reads a string, nil when it is not given.
func (f fields) text(key string) *node {
	n := f.get(key)
	if n == nil {
		return nil
	}
	if s, ok := n.scalar.(string); n.kind != scalar || !ok || s == "" {
		what := shapeName(n)
		if ok {
			what = "empty"
		}
		f.r.fault(n.at, codeType, "%s is %s, not text", f.path(key), what)
		return nil
	}
	return n
}

func (f fields) string(key string) string {
	if n := f.text(key); n != nil {
		return n.text()
	}
	return ""
}

// required is string for a key that must be there.
func (f fields) required(key string) string {
	if f.n != nil && !f.has(key) {
		f.r.fault(f.at, codeMissing, "%s has no %s", f.what, key)
	}
	return f.string(key)
}

var nameForm = regexp.MustCompile(`^[a-z0-9]([-a-z0-9]{0,61}[a-z0-9])?$`)

// name reads a name, which becomes part of metric labels and commands.
func (f fields) name(key string) string {
	s := f.string(key)
	if s != "" && !nameForm.MatchString(s) {
		f.r.fault(f.get(key).at, codeName, "%s %q is not a name", f.path(key), s)
		return ""
	}
	return s
}

// choice reads one of the given words; its index, or def when it is not given.
func (f fields) choice(key string, def int, words ...string) int {
	n := f.text(key)
	if n == nil {
		return def
	}
	if i := slices.Index(words, n.text()); i >= 0 {
		return i
	}
	f.r.fault(n.at, codeValue, "%s is %q%s", f.path(key), n.text(), choices(n.text(), words))
	return def
}

func choices(got string, words []string) string {
	if n := nearest(got, words); n != "" {
		return fmt.Sprintf("; did you mean %s? Allowed: %s", n, strings.Join(words, ", "))
	}
	return "; allowed: " + strings.Join(words, ", ")
}

// duration reads a positive duration, def when it is not given.
func (f fields) duration(key string, def time.Duration) time.Duration {
	n := f.get(key)
	if n == nil {
		return def
	}
	d, err := time.ParseDuration(n.text())
	if n.kind != scalar || err != nil || d <= 0 {
		written := shapeName(n)
		if n.kind == scalar {
			written = fmt.Sprintf("%q", n.text())
		}
		f.r.fault(n.at, codeDuration, "%s is %s, not a positive duration such as 500ms, 30s or 2m", f.path(key), written)
		return def
	}
	return d
}

// list reads a sequence, nil when it is not given.
func (f fields) list(key string) []*node {
	n := f.get(key)
	if n == nil || n.null() {
		return nil
	}
	if n.kind != sequence {
		f.r.fault(n.at, codeType, "%s is %s, not a list", f.path(key), shapeName(n))
		return nil
	}
	return n.items
}

// strings reads a list of non-empty strings.
func (f fields) strings(key string) []*node {
	var out []*node
	for i, n := range f.list(key) {
		if s, ok := n.scalar.(string); n.kind != scalar || !ok || s == "" {
			f.r.fault(n.at, codeType, "%s[%d] is %s, not text", f.path(key), i, shapeName(n))
			continue
		}
		out = append(out, n)
	}
	return out
}

// the kinds of documents.
const (
	apiVersion = "txmesh.io/v1beta1"
	kindPolicy = "TransactionPolicy"
	kindGrant  = "TransactionGrant"
	kindAccess = "AccessPolicy"
	kindTest   = "PolicyTest"
)

// document is one policy document as it was written.
type document struct {
	kind      string
	namespace string
	name      string
	created   time.Time
	at        pos // of the document
	written   []byte
	source    Source
	hash      string
	spec      *node
	specAt    pos
}

// readAll parses every source and keeps the documents whose frame is sound.
func (c *compiler) readAll(sources []Source) []*document {
	var roots []*node
	for _, src := range sources {
		if name := filepath.Base(src.Name); strings.HasSuffix(name, setSuffix) {
			c.sets[name] = src.Data
		}
	}
	for _, src := range sources {
		if strings.HasSuffix(src.Name, setSuffix) {
			continue
		}
		found, texts := c.parse(src), sections(src.Data)
		for _, n := range found {
			n.written = textAt(texts, n.at.line)
		}
		roots = append(roots, found...)
	}
	return c.frames(roots)
}

// frames reads what all kinds of documents have in common.
func (c *compiler) frames(roots []*node) []*document {
	var docs []*document
	seen := map[string]pos{}
	for _, n := range roots {
		d := c.readFrame(n)
		if d == nil || d.kind == kindTest {
			continue
		}
		id := d.kind + " " + d.namespace + "/" + d.name
		if first, ok := seen[id]; ok && d.name != "" {
			c.fault(d.at, codeDuplicate, "%s is already defined at %s:%d:%d", id, first.file, first.line, first.column)
			continue
		}
		seen[id] = d.at
		pasted := c.pasteSet(d)
		c.seal(d, n)
		if pasted {
			d.written = c.portable(d)
		}
		docs = append(docs, d)
	}
	return docs
}

func (c *compiler) readFrame(n *node) *document {
	f := c.fields(n, n.at, "document", "apiVersion", "kind", "metadata", "spec", "status", "cases")
	if f.n == nil {
		return nil
	}
	d := &document{at: n.at, written: n.written, spec: n.get("spec"), specAt: f.place("spec")}
	if v := f.required("apiVersion"); v != "" && v != apiVersion {
		c.fault(f.get("apiVersion").at, codeKind, "apiVersion is %q; this release reads %s", v, apiVersion)
	}
	d.kind = f.required("kind")
	kinds := []string{kindPolicy, kindGrant, kindAccess, kindTest}
	if d.kind == "" {
		return nil
	}
	if !slices.Contains(kinds, d.kind) {
		c.fault(f.get("kind").at, codeKind, "kind is %q%s", d.kind, choices(d.kind, kinds))
		return nil
	}
	if d.kind == kindTest {
		return d
	}
	if f.has("cases") {
		c.fault(f.place("cases"), codeUnknownKey, "unknown key \"cases\" in a %s", d.kind)
	}
	if !f.has("metadata") {
		c.fault(n.at, codeMissing, "the document has no metadata")
	}
	if !f.has("spec") {
		c.fault(n.at, codeMissing, "the document has no spec")
	}
	c.readMetadata(d, f)
	return d
}

func (c *compiler) readMetadata(d *document, f fields) {
	// Kubernetes adds fields of its own to metadata; those that we do not read are its business.
	known := []string{
		"name", "namespace", "creationTimestamp", "labels", "annotations", "uid", "resourceVersion", "generation",
		"managedFields", "ownerReferences", "finalizers", "selfLink", "generateName", "deletionTimestamp",
		"deletionGracePeriodSeconds",
	}
	m := c.fields(f.get("metadata"), f.place("metadata"), "metadata", known...)
	m.required("name")
	d.name = m.name("name")
	d.namespace = orElse(m.name("namespace"), "default")
	if n := m.get("creationTimestamp"); n != nil && !n.null() {
		at, err := time.Parse(time.RFC3339, n.text())
		if err != nil {
			c.fault(n.at, codeValue, "metadata.creationTimestamp is %q, not a time such as 2026-01-02T15:04:05Z", n.text())
		}
		d.created = at.UTC()
	}
}
