package interceptor

import (
	"encoding/json"
	"fmt"
	"time"
)

// BranchNote is what a branch's ops need later: the rule, by the hash of its document, and the values of the
// request that its templates read. It is journaled with the branch and opaque to the core.
type BranchNote struct {
	Document string          `json:"doc"`
	Rule     string          `json:"rule"`
	Service  string          `json:"service,omitempty"` // namespace/name; empty: by the host in the rule
	Host     string          `json:"host,omitempty"`
	Values   json.RawMessage `json:"values,omitempty"` // of the request
	Own      bool            `json:"own,omitempty"`    // branch 0: the root's own writes
	Deadline time.Time       `json:"deadline"`
}

// Encode returns the note as journaled.
func (n BranchNote) Encode() []byte {
	b, err := json.Marshal(n)
	if err != nil {
		panic(err) // Values come from json.Marshal themselves
	}
	return b
}

// DecodeNote undoes Encode.
func DecodeNote(b []byte) (BranchNote, error) {
	var n BranchNote
	if err := json.Unmarshal(b, &n); err != nil {
		return n, fmt.Errorf("note of a branch: %w", err)
	}
	return n, nil
}

// has marks an op as existing; what it is stands in the note.
func has(op bool) []byte {
	if op {
		return []byte{'+'}
	}
	return nil
}
