package policies

import (
	"crypto/sha256"
	"encoding/hex"
	"slices"
	"strings"
)

// hashBytes is how much of the SHA-256 names a document: enough that no two meet, short enough for each entry.
const hashBytes = 12

// value is the node as JSON has it.
func (n *node) value() any {
	switch n.kind {
	case mapping:
		out := make(map[string]any, len(n.entries))
		for _, e := range n.entries {
			out[e.key] = e.value.value()
		}
		return out
	case sequence:
		out := make([]any, len(n.items))
		for i, item := range n.items {
			out[i] = item.value()
		}
		return out
	case scalar:
	}
	return n.scalar
}

// seal gives a document its canonical source, which is JSON with sorted keys and therefore YAML, and its hash.
// What the cluster changes without changing a rule stays out of it.
func (c *compiler) seal(d *document, n *node) {
	metadata := map[string]any{"name": d.name, "namespace": d.namespace}
	data, err := encodeJSON(map[string]any{"apiVersion": apiVersion, "kind": d.kind, "metadata": metadata, "spec": n.get("spec").valueOrNil()})
	if err != nil {
		c.fault(d.at, codeSyntax, "the document has no canonical form: %v", err)
		return
	}
	d.hash = hashOf(data)
	d.source = Source{Name: d.namespace + "/" + d.name + "@" + d.hash, Data: data}
}

func (n *node) valueOrNil() any {
	if n == nil {
		return nil
	}
	return n.value()
}

// nodeOf is the way back. All its nodes stand at the beginning of the source, which is one line.
func nodeOf(v any, file string) *node {
	n := &node{at: pos{file: file, line: 1, column: 1}, inner: -1, scalar: v}
	switch v := v.(type) {
	case map[string]any:
		n.kind, n.scalar = mapping, nil
		for k, e := range v {
			n.entries = append(n.entries, entry{key: k, at: n.at, value: nodeOf(e, file)})
		}
		slices.SortFunc(n.entries, func(a, b entry) int { return strings.Compare(a.key, b.key) })
	case []any:
		n.kind, n.scalar = sequence, nil
		for _, e := range v {
			n.items = append(n.items, nodeOf(e, file))
		}
	}
	return n
}

func hashOf(data []byte) string {
	sum := sha256.Sum256(data)
	return hex.EncodeToString(sum[:hashBytes])
}
