package interceptor

import (
	"encoding/json"
	"errors"
	"fmt"
	"sync"
	"time"

	"github.com/fxamacker/cbor/v2"
)

// BranchNote is what a branch's ops need later: the rule, by the hash of its document, and the values of the
// request that its templates read. It is journaled with the branch and opaque to the core.
type BranchNote struct {
	Document string          `json:"doc"`
	Rule     string          `json:"rule"`
	Service  string          `json:"service,omitempty"` // namespace/name; empty: by the host in the rule
	Host     string          `json:"host,omitempty"`
	Values   json.RawMessage `json:"values,omitempty"` // of the request; nil: none
	Own      bool            `json:"own,omitempty"`    // branch 0: the root's own writes
	Deadline time.Time       `json:"deadline"`
}

// packedNote begins a note in its short form. Notes of earlier journals are JSON, and so are those of other doors.
const packedNote = 0x01

// packed is the short form of a note, for every call is journaled with one. Numbers are for ever.
type packed struct {
	Document string `cbor:"1,keyasint,omitempty"`
	Rule     string `cbor:"2,keyasint,omitempty"`
	Service  string `cbor:"3,keyasint,omitempty"`
	Host     string `cbor:"4,keyasint,omitempty"`
	Values   []byte `cbor:"5,keyasint,omitempty"`
	Own      bool   `cbor:"6,keyasint,omitempty"`
	Deadline int64  `cbor:"7,keyasint,omitempty"` // nanoseconds since 1970; 0: none
}

// noteModes is safe for many goroutines.
var noteModes = sync.OnceValues(func() (cbor.EncMode, cbor.DecMode) {
	enc, err := cbor.CoreDetEncOptions().EncMode()
	if err != nil {
		panic(err) // constant options
	}
	dec, err := cbor.DecOptions{DupMapKey: cbor.DupMapKeyEnforcedAPF, ExtraReturnErrors: cbor.ExtraDecErrorUnknownField,
		UTF8: cbor.UTF8DecodeInvalid}.DecMode()
	if err != nil {
		panic(err)
	}
	return enc, dec
})

// Encode returns the note as journaled.
func (n BranchNote) Encode() []byte {
	p := packed{Document: n.Document, Rule: n.Rule, Service: n.Service, Host: n.Host, Values: n.Values, Own: n.Own}
	if string(n.Values) == "{}" {
		p.Values = nil
	}
	if !n.Deadline.IsZero() {
		p.Deadline = n.Deadline.UnixNano()
	}
	enc, _ := noteModes()
	b, err := enc.Marshal(p)
	if err != nil {
		panic(err) // strings and numbers
	}
	return append([]byte{packedNote}, b...)
}

// DecodeNote undoes Encode, and reads what earlier journals hold. Values that are none come back as nil.
func DecodeNote(b []byte) (BranchNote, error) {
	if len(b) == 0 {
		return BranchNote{}, errors.New("note of a branch: it is empty")
	}
	if b[0] == packedNote {
		return unpackNote(b[1:])
	}
	var n BranchNote
	if err := json.Unmarshal(b, &n); err != nil {
		return n, fmt.Errorf("note of a branch: %w", err)
	}
	return n, nil
}

func unpackNote(b []byte) (BranchNote, error) {
	_, dec := noteModes()
	var p packed
	if err := dec.Unmarshal(b, &p); err != nil {
		return BranchNote{}, fmt.Errorf("note of a branch: %w", err)
	}
	n := BranchNote{Document: p.Document, Rule: p.Rule, Service: p.Service, Host: p.Host, Values: p.Values, Own: p.Own}
	if p.Deadline != 0 {
		n.Deadline = time.Unix(0, p.Deadline).UTC()
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
