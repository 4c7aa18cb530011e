package policies

import (
	"bytes"
	"slices"

	"google.golang.org/protobuf/encoding/protowire"
)

// canonicalDepthMax bounds how deep messages within messages are put in order.
const canonicalDepthMax = 32

// CanonicalBody is the only message of a gRPC body with its fields in one order, to tell a repeat from another request:
// encoders of protobuf may write the fields of equal messages in any order, and those of maps do. It says nothing of the
// order within lists. A body that is no unary one stays as it is.
func CanonicalBody(body []byte, encoding string) []byte {
	message, err := UnaryMessage(body, encoding)
	if err != nil {
		return body
	}
	return canonical(message, 0)
}

// canonical sorts the fields of what can be read as a message, at every level; anything else stays as it is. Text that
// happens to read as a message is sorted as well, the same every time.
func canonical(message []byte, depth int) []byte {
	var fields [][]byte
	for rest := message; len(rest) > 0; {
		number, kind, n := protowire.ConsumeTag(rest)
		if n < 0 || depth > canonicalDepthMax {
			return message
		}
		size := protowire.ConsumeFieldValue(number, kind, rest[n:])
		if size < 0 {
			return message
		}
		f := rest[: n+size : n+size]
		if kind == protowire.BytesType {
			inner, _ := protowire.ConsumeBytes(rest[n:])
			f = protowire.AppendBytes(protowire.AppendTag(nil, number, kind), canonical(inner, depth+1))
		}
		fields, rest = append(fields, f), rest[n+size:]
	}
	slices.SortFunc(fields, bytes.Compare)
	return slices.Concat(fields...)
}
