package txlog

import (
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

// headBytes is the length of what precedes the CBOR body.
const headBytes = 2

func decodeRecord[R txn.Record](body []byte) (time.Time, txn.Record, error) {
	_, dec := modes()
	var d dated[R]
	err := dec.Unmarshal(body, &d)
	if err == nil {
		return d.At, d.Record, nil
	}
	return time.Time{}, nil, decodeError(fmt.Sprintf("%T", d.Record), err)
}

// decodeError names the record and, as far as the library tells, the field and the byte.
func decodeError(record string, err error) error {
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
		return fmt.Errorf("%s: body after byte %d: %w: %w", record, headBytes, syntax, ErrCorrupt)
	}
	return fmt.Errorf("%s: body after byte %d: %w: %w", record, headBytes, err, ErrCorrupt)
}
