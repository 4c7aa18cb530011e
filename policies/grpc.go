package policies

import (
	"bytes"
	"compress/gzip"
	"encoding/base64"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"net/url"
	"strconv"
	"strings"

	"google.golang.org/grpc/codes"

	"txmesh/txn"
)

// frameHead is what stands before each message of a gRPC body: a flag, and the length in four bytes.
const frameHead = 5

// ErrNotUnary says that a gRPC body has more or fewer messages than the one of a unary call.
var ErrNotUnary = errors.New("not a unary call")

// IsGRPC reports whether a content type is that of gRPC; gRPC-Web is something else.
func IsGRPC(contentType string) bool {
	const media = "application/grpc"
	if len(contentType) < len(media) || !strings.EqualFold(contentType[:len(media)], media) {
		return false
	}
	rest := contentType[len(media):]
	return rest == "" || rest[0] == '+' || rest[0] == ';' || rest[0] == ' '
}

// UnaryMessage returns the only message of a gRPC body, unpacked. encoding is the header grpc-encoding. The error wraps
// ErrNotUnary where the body has another number of messages.
func UnaryMessage(body []byte, encoding string) ([]byte, error) {
	if err := CheckUnary(body); err != nil {
		return nil, err
	}
	packed, message, _, err := cutFrame(body)
	if err == nil && packed {
		return gunzip(message, encoding)
	}
	return message, err
}

// CheckUnary counts the messages of a gRPC body without unpacking them: the error of any other number than one wraps
// ErrNotUnary.
func CheckUnary(body []byte) error {
	_, _, rest, err := cutFrame(body)
	switch {
	case len(body) == 0:
		return fmt.Errorf("%w: the body has no message", ErrNotUnary)
	case err == nil && len(rest) > 0:
		return fmt.Errorf("%w: the body has more than one message", ErrNotUnary)
	}
	return err
}

func cutFrame(body []byte) (packed bool, message, rest []byte, err error) {
	if len(body) < frameHead {
		return false, nil, nil, errors.New("the gRPC body ends within the head of a message")
	}
	size := uint64(binary.BigEndian.Uint32(body[1:frameHead]))
	if body[0] > 1 {
		return false, nil, nil, fmt.Errorf("a gRPC message begins with flag %d, neither 0 nor 1", body[0])
	}
	if uint64(len(body)-frameHead) < size {
		return false, nil, nil, fmt.Errorf("the gRPC body ends within a message of %d bytes", size)
	}
	end := frameHead + int(size)
	return body[0] == 1, body[frameHead:end], body[end:], nil
}

func gunzip(message []byte, encoding string) ([]byte, error) {
	if strings.TrimSpace(encoding) != "gzip" {
		return nil, fmt.Errorf("grpc-encoding %q cannot be read; only gzip can", encoding)
	}
	z, err := gzip.NewReader(bytes.NewReader(message))
	if err != nil {
		return nil, fmt.Errorf("gunzip: %w", err)
	}
	return readInflated(z)
}

func readInflated(z io.Reader) ([]byte, error) {
	out, err := io.ReadAll(io.LimitReader(z, inflatedMax+1))
	if err != nil {
		return nil, fmt.Errorf("gunzip: %w", err)
	}
	if len(out) > inflatedMax {
		return nil, fmt.Errorf("gunzip: longer than %d bytes", inflatedMax)
	}
	return out, nil
}

// UnaryBody is the gRPC body of one message. An empty message is a valid one of every type: all of its fields have their
// default.
func UnaryBody(message []byte) []byte {
	out := make([]byte, frameHead, frameHead+len(message))
	binary.BigEndian.PutUint32(out[1:], uint32(len(message)))
	return append(out, message...)
}

// isGRPC reports whether the message is one of gRPC, by its content type.
func (m *Message) isGRPC() bool { return m != nil && IsGRPC(m.header("content-type")) }

func (m *Message) trailer(name string) string {
	if m == nil || m.Trailer == nil {
		return ""
	}
	return m.Trailer(name)
}

// metadata is a field of a response of gRPC, before its body or behind it.
func (m *Message) metadata(name string) string {
	if v := m.header(name); v != "" {
		return v
	}
	return m.trailer(name)
}

// grpcStatus is the status of an answer of gRPC; UNKNOWN where it has none that can be read.
func (m *Message) grpcStatus() codes.Code {
	text := m.trailer("grpc-status")
	if text == "" {
		text = m.header("grpc-status") // of an answer that has trailers only
	}
	n, err := strconv.ParseUint(strings.TrimSpace(text), 10, 32)
	if err != nil {
		return codes.Unknown
	}
	return codes.Code(n)
}

// grpcMessage is the text beside a status, which travels percent-encoded.
func (m *Message) grpcMessage() string {
	text := m.metadata("grpc-message")
	if plain, err := url.PathUnescape(text); err == nil {
		text = plain
	}
	return strings.ToValidUTF8(text, "\ufffd")
}

// statusWord is the name of a status as the specification of gRPC writes it, or its number where it has none.
func statusWord(c codes.Code) string {
	if words := statusWords(); int(c) < len(words) {
		return words[c]
	}
	return strconv.FormatUint(uint64(c), 10)
}

func statusWords() []string {
	return []string{
		"OK", "CANCELLED", "UNKNOWN", "INVALID_ARGUMENT", "DEADLINE_EXCEEDED", "NOT_FOUND", "ALREADY_EXISTS",
		"PERMISSION_DENIED", "RESOURCE_EXHAUSTED", "FAILED_PRECONDITION", "ABORTED", "OUT_OF_RANGE", "UNIMPLEMENTED",
		"INTERNAL", "UNAVAILABLE", "DATA_LOSS", "UNAUTHENTICATED",
	}
}

// Said is the answer's status as causes name it.
func (m *Message) Said() string {
	if m.isGRPC() {
		return "answered " + statusWord(m.grpcStatus())
	}
	return fmt.Sprintf("answered %d", m.Status)
}

// outcome is the built-in table for answers of gRPC. It says of each status what the table of HTTP says of its nearest
// relative: what could have taken effect is never refused.
func grpcOutcome(o txn.Op, c codes.Code) txn.Outcome {
	if o == txn.Ask {
		switch c {
		case codes.OK:
			return txn.OK
		case codes.NotFound:
			return txn.Refused
		default:
			return txn.Unknown
		}
	}
	switch c {
	case codes.OK:
		return txn.OK
	case codes.InvalidArgument, codes.NotFound, codes.AlreadyExists, codes.PermissionDenied, codes.FailedPrecondition,
		codes.Aborted, codes.OutOfRange, codes.Unimplemented, codes.Unauthenticated:
		return txn.Refused
	default: // CANCELLED, UNKNOWN, DEADLINE_EXCEEDED, RESOURCE_EXHAUSTED, INTERNAL, UNAVAILABLE, DATA_LOSS and what is to come
		return txn.Unknown
	}
}

// decodeGRPC reads the only message of a body. An answer without one, such as a refusal, is nil.
func decodeGRPC(m *Message) (any, error) {
	if len(m.Body) == 0 {
		return nil, nil
	}
	if m.of == nil {
		return nil, errUndescribed
	}
	message, err := UnaryMessage(m.Body, m.header("grpc-encoding"))
	if err != nil {
		return nil, err
	}
	return m.of.value(message)
}

var errUndescribed = errors.New("the type of the gRPC message is not known; name the method by match.grpc, and add spec.descriptors or let the service serve reflection")

// readsBody reports whether the body of a message is read, in whatever form.
func (t *tree) readsBody(side string) bool { return t.reads(side, "body") || t.reads(side, "message") }

// readable refuses a request of gRPC under a rule that could not read its messages, before the call leaves.
func (c *Call) readable(req *Message) error {
	if c.match.grpc != nil || !req.isGRPC() {
		return nil
	}
	for _, t := range []*tree{c.recorded, c.reads, c.keyReads} {
		for _, side := range []string{"request", "response"} {
			if t.reads(side, "body") {
				return fmt.Errorf("read %s.body: %w", side, errUndescribed)
			}
		}
	}
	return nil
}

// fillGRPC makes a request of gRPC: of recorded bytes, which stay as they are, or of a message that the body describes.
func (o *op) fillGRPC(r *Request, s scope, held bool) error {
	r.Method, r.Path = "POST", o.grpc.path()
	if held {
		return nil
	}
	message, err := o.message(s)
	if err != nil {
		return fmt.Errorf("body: %w", err)
	}
	r.Body = UnaryBody(message)
	r.Header = append(r.Header, [2]string{"content-type", "application/grpc"}, [2]string{"te", "trailers"})
	return nil
}

func (o *op) message(s scope) ([]byte, error) {
	switch {
	case o.resends != nil:
		v, err := o.resends.eval(s)
		if err != nil {
			return nil, err
		}
		text, ok := v.(string)
		if !ok {
			return nil, fmt.Errorf("%s is %s, not a message", o.resends.text, typeName(v))
		}
		return base64.StdEncoding.DecodeString(text)
	case o.body == nil:
		return nil, nil
	}
	v, err := o.body.render(s)
	if err != nil {
		return nil, err
	}
	t := o.grpc.input()
	if t == nil {
		return nil, errUndescribed
	}
	return t.build(v)
}
