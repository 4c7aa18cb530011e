package txlog

import (
	"bytes"
	"encoding/binary"
	"fmt"
	"sync"
	"time"

	"github.com/fxamacker/cbor/v2"

	"txmesh/txn"
)

// The encoding of an entry is one version byte, one kind byte, the time as seconds since 1970 (a signed varint) and
// nanoseconds (4 bytes, big-endian), and the record as a CBOR map in core deterministic form with integer keys, its runs of
// branches shortened (runs.go). Version 1 had a CBOR map {0: time, 1: record} behind the kind, whose time was text. How a
// later release reads what an older one wrote:
//
//   - A field that is added under a new number is absent in old entries and decodes to its zero value, so adding
//     a field whose zero value means "as before" needs nothing else. Numbers are never used twice.
//   - A record type that is added gets the next kind. Kinds are never used twice.
//   - Any other change of meaning raises codecVersion, and decodeBody keeps a case for each older version for
//     ever: stores are not rewritten by an upgrade.
//   - An older release that meets a newer version, kind or field refuses with ErrNewer instead of dropping what
//     it does not know.
//
// Times keep their nanoseconds and come back in UTC, without a monotonic reading. Nil and empty are kept apart
// in Branch.Ops, where nil means "nothing to do"; everywhere else the fields are omitted when empty, so an
// empty slice comes back as nil. Strings need not be valid UTF-8: causes quote what services answer.
const codecVersion = 2

// The kinds of records, for ever.
const (
	kindBegan byte = iota + 1
	kindEnlisted
	kindLeft
	kindExtended
	kindDecided
	kindSettled
	kindDeferred
	kindHalted
	kindFinished
	kindForced
	kindStopped
)

const remedyNewer = "run the release that wrote this store, or a later one"

// dated is the body of an entry of version 1.
type dated[R txn.Record] struct {
	At     time.Time `cbor:"0,keyasint"`
	Record R         `cbor:"1,keyasint"`
}

// modes holds the two CBOR modes; they are immutable and safe for many goroutines.
var modes = sync.OnceValues(func() (cbor.UserBufferEncMode, cbor.DecMode) {
	eo := cbor.CoreDetEncOptions()
	eo.Time = cbor.TimeRFC3339NanoUTC
	enc, err := eo.UserBufferEncMode()
	if err != nil {
		panic(fmt.Sprintf("txlog: encoding options: %v", err))
	}
	dec, err := cbor.DecOptions{
		DupMapKey:         cbor.DupMapKeyEnforcedAPF,
		IndefLength:       cbor.IndefLengthForbidden,
		TagsMd:            cbor.TagsForbidden,
		ExtraReturnErrors: cbor.ExtraDecErrorUnknownField,
		UTF8:              cbor.UTF8DecodeInvalid,
		MaxNestedLevels:   16,
		MaxArrayElements:  1 << 20,
	}.DecMode()
	if err != nil {
		panic(fmt.Sprintf("txlog: decoding options: %v", err))
	}
	return enc, dec
})

// Encode returns the durable form of an entry's record and time. The transaction's id is not part of it: a store
// keeps it in the key. The result is the caller's.
func Encode(e Entry) ([]byte, error) {
	var b bytes.Buffer
	if err := EncodeTo(&b, e); err != nil {
		return nil, err
	}
	return b.Bytes(), nil
}

// EncodeTo appends what Encode returns. After an error b may end in half an entry.
func EncodeTo(b *bytes.Buffer, e Entry) error {
	kind := kindOf(e.Record)
	if kind == 0 {
		return fmt.Errorf("encode entry of %s: %T is not a record of the journal", e.Tx, e.Record)
	}
	var room [2 + binary.MaxVarintLen64 + 4]byte
	head := binary.AppendVarint(append(room[:0], codecVersion, kind), e.At.Unix())
	b.Write(binary.BigEndian.AppendUint32(head, uint32(e.At.Nanosecond())))
	enc, _ := modes()
	if err := enc.MarshalToBuffer(shorten(e.Record), b); err != nil {
		return fmt.Errorf("encode %T: %w", e.Record, err)
	}
	return nil
}

func kindOf(r txn.Record) byte {
	switch r.(type) {
	case txn.Began:
		return kindBegan
	case txn.Enlisted:
		return kindEnlisted
	case txn.Left:
		return kindLeft
	case txn.Extended:
		return kindExtended
	case txn.Decided:
		return kindDecided
	case txn.Settled:
		return kindSettled
	case txn.Deferred:
		return kindDeferred
	case txn.Halted:
		return kindHalted
	case txn.Finished:
		return kindFinished
	case txn.Forced:
		return kindForced
	case txn.Stopped:
		return kindStopped
	default:
		return 0
	}
}

// Decode is the inverse of Encode. The entry shares no memory with b. An error says what is wrong at which byte;
// it is ErrNewer when a later release wrote the entry, else ErrCorrupt.
func Decode(tx txn.ID, b []byte) (Entry, error) {
	if len(b) < 2 {
		return Entry{}, fmt.Errorf("decode entry of %q: %d bytes, want at least 2: %w", tx, len(b), ErrCorrupt)
	}
	at, r, err := decodeBody(b[0], b[1], b[2:])
	if err != nil {
		return Entry{}, fmt.Errorf("decode entry of %q (%d bytes): %w", tx, len(b), err)
	}
	return Entry{Tx: tx, At: at, Record: r}, nil
}

func decodeBody(version, kind byte, body []byte) (time.Time, txn.Record, error) {
	if version == 0 {
		return time.Time{}, nil, fmt.Errorf("version 0 at byte 0: %w", ErrCorrupt)
	}
	if version > codecVersion {
		return time.Time{}, nil, fmt.Errorf("version %d at byte 0, this release reads up to %d: %w; %s",
			version, codecVersion, ErrNewer, remedyNewer)
	}
	switch kind {
	case kindBegan:
		return decodeRecord[txn.Began](version, body)
	case kindEnlisted:
		return decodeRecord[txn.Enlisted](version, body)
	case kindLeft:
		return decodeRecord[txn.Left](version, body)
	case kindExtended:
		return decodeRecord[txn.Extended](version, body)
	case kindDecided:
		return decodeRecord[txn.Decided](version, body)
	case kindSettled:
		return decodeRecord[txn.Settled](version, body)
	case kindDeferred:
		return decodeRecord[txn.Deferred](version, body)
	case kindHalted:
		return decodeRecord[txn.Halted](version, body)
	case kindFinished:
		return decodeRecord[txn.Finished](version, body)
	case kindForced:
		return decodeRecord[txn.Forced](version, body)
	case kindStopped:
		return decodeRecord[txn.Stopped](version, body)
	default:
		return time.Time{}, nil, fmt.Errorf("record kind %d at byte 1, this release knows 1 to %d: %w; %s",
			kind, kindStopped, ErrNewer, remedyNewer)
	}
}
