package etcd

import (
	"encoding/binary"
	"fmt"
	"sync"
	"time"

	"github.com/fxamacker/cbor/v2"

	"txmesh/txlog"
	"txmesh/txn"
)

// rowVersion begins every value that is not text. A later one is refused.
const rowVersion = 1

// encodeRow makes the value of an entry row: a version, the owner behind its length, and each entry behind its length.
func encodeRow(owner string, entries [][]byte) []byte {
	b := binary.AppendUvarint([]byte{rowVersion}, uint64(len(owner)))
	b = append(b, owner...)
	for _, e := range entries {
		b = append(binary.AppendUvarint(b, uint64(len(e))), e...)
	}
	return b
}

// decodeRow is the inverse of encodeRow. Only the first row of a transaction names the owner.
func decodeRow(tx txn.ID, b []byte) (owner string, es []txlog.Entry, err error) {
	if err := checkVersion(b); err != nil {
		return "", nil, fmt.Errorf("row of %q: %w", tx, err)
	}
	first, rest, err := cut(b[1:])
	if err != nil {
		return "", nil, fmt.Errorf("row of %q: owner: %w", tx, err)
	}
	for len(rest) > 0 {
		var body []byte
		if body, rest, err = cut(rest); err != nil {
			return "", nil, fmt.Errorf("row of %q: entry %d of it: %w", tx, len(es), err)
		}
		e, err := txlog.Decode(tx, body)
		if err != nil {
			return "", nil, err
		}
		es = append(es, e)
	}
	return string(first), es, nil
}

func checkVersion(b []byte) error {
	if len(b) == 0 || b[0] == 0 {
		return fmt.Errorf("%d bytes without a version: %w", len(b), txlog.ErrCorrupt)
	}
	if b[0] > rowVersion {
		return fmt.Errorf("version %d, this release reads up to %d: %w", b[0], rowVersion, txlog.ErrNewer)
	}
	return nil
}

func cut(b []byte) (part, rest []byte, err error) {
	n, head := binary.Uvarint(b)
	if head <= 0 || n > uint64(len(b)-head) {
		return nil, nil, fmt.Errorf("cut short: %w", txlog.ErrCorrupt)
	}
	return b[head : head+int(n)], b[head+int(n):], nil
}

// listed is how a summary is kept.
type listed struct {
	ID       txn.ID    `cbor:"0,keyasint"`
	Mode     txn.Mode  `cbor:"1,keyasint,omitempty"`
	Name     string    `cbor:"2,keyasint,omitempty"`
	Phase    txn.Phase `cbor:"3,keyasint,omitempty"`
	Begun    time.Time `cbor:"4,keyasint"`
	Finished time.Time `cbor:"5,keyasint"`
	Branches int       `cbor:"6,keyasint,omitempty"`
	Reason   string    `cbor:"7,keyasint,omitempty"`
}

// ended is what Trim needs of a finished transaction beside the key of its row.
type ended struct {
	Begun time.Time `cbor:"0,keyasint"`
	Key   string    `cbor:"1,keyasint,omitempty"`
	Bytes int64     `cbor:"2,keyasint"`
}

// modes holds the two CBOR modes; they are immutable and safe for many goroutines.
var modes = sync.OnceValues(func() (cbor.EncMode, cbor.DecMode) {
	enc, err := cbor.EncOptions{Time: cbor.TimeRFC3339NanoUTC}.EncMode()
	if err != nil {
		panic(fmt.Sprintf("etcd: encoding options: %v", err))
	}
	dec, err := cbor.DecOptions{UTF8: cbor.UTF8DecodeInvalid}.DecMode() // names need not be text
	if err != nil {
		panic(fmt.Sprintf("etcd: decoding options: %v", err))
	}
	return enc, dec
})

func encodeSummary(s txlog.Summary) []byte { return encode(listed(s)) }

func decodeSummary(key string, b []byte) (txlog.Summary, error) {
	var l listed
	err := decode(key, b, &l)
	return txlog.Summary(l), err
}

// encode returns the value of an index row. All there is can be encoded.
func encode[V listed | ended](v V) []byte {
	enc, _ := modes()
	b, err := enc.Marshal(v)
	if err != nil {
		panic(fmt.Sprintf("etcd: encode %+v: %v", v, err))
	}
	return append([]byte{rowVersion}, b...)
}

func decode[V listed | ended](key string, b []byte, v *V) error {
	if err := checkVersion(b); err != nil {
		return fmt.Errorf("row %q: %w", key, err)
	}
	_, dec := modes()
	if err := dec.Unmarshal(b[1:], v); err != nil {
		return fmt.Errorf("row %q: %w: %w", key, err, txlog.ErrCorrupt)
	}
	return nil
}
