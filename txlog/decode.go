package txlog

import (
	"encoding/binary"
	"errors"
	"fmt"
	"time"

	"github.com/fxamacker/cbor/v2"

	"txmesh/txn"
)

// Errors of Decode that callers branch on.
var (
	ErrCorrupt = errors.New("txlog: corrupt")
	ErrNewer   = errors.New("txlog: written by a later release")
)

func decodeRecord[R txn.Record](version byte, body []byte) (time.Time, txn.Record, error) {
	_, dec := modes()
	var d dated[R]
	const head = 2 // version and kind
	if version == 1 {
		if err := dec.Unmarshal(body, &d); err != nil {
			return time.Time{}, nil, decodeError(fmt.Sprintf("%T", d.Record), head, err)
		}
		return d.At, d.Record, nil
	}
	at, n, err := decodeTime(body)
	if err == nil {
		err = dec.Unmarshal(body[n:], &d.Record)
	}
	var r txn.Record
	if err == nil {
		r, err = lengthen(d.Record)
	}
	if err != nil {
		return time.Time{}, nil, decodeError(fmt.Sprintf("%T", d.Record), head+n, err)
	}
	return at, r, nil
}

// decodeTime reads the time that b begins with, of n bytes.
func decodeTime(b []byte) (at time.Time, n int, err error) {
	sec, n := binary.Varint(b)
	if n <= 0 || len(b) < n+4 {
		return time.Time{}, 0, errors.New("the time is cut short")
	}
	nanos := binary.BigEndian.Uint32(b[n:])
	if nanos >= 1e9 {
		return time.Time{}, 0, fmt.Errorf("the time has %d nanoseconds", nanos)
	}
	return time.Unix(sec, int64(nanos)).UTC(), n + 4, nil
}

// decodeError names the record and, as far as the library tells, the field and the byte, counted from where its CBOR begins.
func decodeError(record string, begin int, err error) error {
	if extra, ok := errors.AsType[*cbor.ExtraneousDataError](err); ok {
		return fmt.Errorf("%s: body: %w: %w", record, extra, ErrCorrupt)
	}
	if unknown, ok := errors.AsType[*cbor.UnknownFieldError](err); ok {
		return fmt.Errorf("%s: element %d of the body has a number that is not known to this release: %w; %s",
			record, unknown.Index, ErrNewer, remedyNewer)
	}
	if kind, ok := errors.AsType[*cbor.UnmarshalTypeError](err); ok {
		return fmt.Errorf("%s: field %s holds %s: %w", record, kind.StructFieldName, kind.CBORType, ErrCorrupt)
	}
	if syntax, ok := errors.AsType[*cbor.SyntaxError](err); ok {
		return fmt.Errorf("%s: body after byte %d: %w: %w", record, begin, syntax, ErrCorrupt)
	}
	return fmt.Errorf("%s: body after byte %d: %w: %w", record, begin, err, ErrCorrupt)
}
