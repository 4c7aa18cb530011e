package policies

import (
	"crypto/sha256"
	"encoding/hex"
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

func hashOf(data []byte) string {
	sum := sha256.Sum256(data)
	return hex.EncodeToString(sum[:hashBytes])
}
