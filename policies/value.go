package policies

import (
	"bytes"
	"compress/gzip"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"math"
	"mime"
	"net/url"
	"strconv"
	"strings"
	"unicode/utf8"

	"cel.dev/cel-go/common/types"
)

// A value is what JSON has: nil, bool, json.Number, string, []any or map[string]any. Numbers keep their text, so
// that 9007199254740993 and 10.10 come out as they went in.

// inflatedMax bounds what a compressed body may grow to.
const inflatedMax = 16 << 20

var errMissing = errors.New("missing")

// decodeJSON reads exactly one value and nothing after it.
func decodeJSON(data []byte) (any, error) {
	if !utf8.Valid(data) {
		return nil, errors.New("not valid UTF-8")
	}
	d := json.NewDecoder(bytes.NewReader(data))
	d.UseNumber()
	var v any
	if err := d.Decode(&v); err != nil {
		if errors.Is(err, io.EOF) || errors.Is(err, io.ErrUnexpectedEOF) {
			return nil, errors.New("not JSON: it ends too early")
		}
		return nil, fmt.Errorf("not JSON: %w", err)
	}
	if _, err := d.Token(); !errors.Is(err, io.EOF) {
		return nil, errors.New("not JSON: more follows after the first value")
	}
	return v, nil
}

// encodeJSON is canonical: keys sorted, no white space, numbers as they came.
func encodeJSON(v any) ([]byte, error) {
	var b bytes.Buffer
	e := json.NewEncoder(&b)
	e.SetEscapeHTML(false)
	if err := e.Encode(v); err != nil {
		return nil, err
	}
	return bytes.TrimSuffix(b.Bytes(), []byte("\n")), nil
}

// encodeValues is encodeJSON for what is recorded of a message, which often is nothing.
func encodeValues(values map[string]any) ([]byte, error) {
	if len(values) == 0 {
		return []byte("{}"), nil
	}
	return encodeJSON(values)
}

// decodeBody reads a message's body by its content type: JSON, forms and messages of gRPC become maps, other text a
// string. An empty body is nil.
func decodeBody(m *Message) (any, error) {
	if m.isGRPC() {
		return decodeGRPC(m)
	}
	body, err := inflate(m)
	if err != nil {
		return nil, err
	}
	if len(body) == 0 {
		return nil, nil
	}
	media, _, err := mime.ParseMediaType(m.header("content-type"))
	if err != nil {
		media = ""
	}
	switch {
	case media == "application/json", strings.HasSuffix(media, "+json"):
		return decodeJSON(body)
	case media == "application/x-www-form-urlencoded":
		return decodeForm(string(body))
	case media == "":
		if v, err := decodeJSON(body); err == nil {
			return v, nil
		}
	}
	if !utf8.Valid(body) {
		return nil, fmt.Errorf("%s is neither JSON nor text", orElse(media, "content without a type"))
	}
	return string(body), nil
}

func inflate(m *Message) ([]byte, error) {
	encoding := strings.ToLower(strings.TrimSpace(m.header("content-encoding")))
	switch {
	case len(m.Body) == 0, encoding == "", encoding == "identity":
		return m.Body, nil
	case encoding != "gzip" && encoding != "x-gzip":
		return nil, fmt.Errorf("content-encoding %q cannot be read; only gzip can", encoding)
	}
	z, err := gzip.NewReader(bytes.NewReader(m.Body))
	if err != nil {
		return nil, fmt.Errorf("gunzip: %w", err)
	}
	return readInflated(z)
}

// decodeForm keeps the first value of every field.
func decodeForm(s string) (any, error) {
	fields, err := url.ParseQuery(s)
	if err != nil {
		return nil, fmt.Errorf("not a form: %w", err)
	}
	out := make(map[string]any, len(fields))
	for k, v := range fields {
		if !utf8.ValidString(k) || !utf8.ValidString(v[0]) {
			return nil, errors.New("not a form: not valid UTF-8")
		}
		out[k] = v[0]
	}
	return out, nil
}

// celValue is the value as expressions see it: integers are exact, and one that fits no CEL type is an error when
// it is used, never rounded.
func celValue(v any) any {
	switch v := v.(type) {
	case json.Number:
		return celNumber(v.String())
	case []any:
		out := make([]any, len(v))
		for i, e := range v {
			out[i] = celValue(e)
		}
		return out
	case map[string]any:
		out := make(map[string]any, len(v))
		for k, e := range v {
			out[k] = celValue(e)
		}
		return out
	}
	return v
}

func celNumber(s string) any {
	if i, err := strconv.ParseInt(s, 10, 64); err == nil {
		return i
	}
	if u, err := strconv.ParseUint(s, 10, 64); err == nil {
		return u
	}
	f, err := strconv.ParseFloat(s, 64)
	if err != nil || math.IsInf(f, 0) || wholeNumber.MatchString(s) {
		return types.NewErr("number %s is out of range", s)
	}
	return f
}

// fromCEL is the way back, for templates whose value is an expression.
func fromCEL(v any) (any, error) {
	switch v := v.(type) {
	case nil, string, bool:
		return v, nil
	case types.Null:
		return nil, nil
	case types.Bool:
		return bool(v), nil
	case types.String:
		return string(v), nil
	case types.Int:
		return json.Number(strconv.FormatInt(int64(v), 10)), nil
	case types.Uint:
		return json.Number(strconv.FormatUint(uint64(v), 10)), nil
	case types.Double:
		f := float64(v)
		if math.IsNaN(f) || math.IsInf(f, 0) {
			return nil, errors.New("the number is not finite")
		}
		return json.Number(strconv.FormatFloat(f, 'g', -1, 64)), nil
	}
	return fromCELContainer(v)
}

// scalarText is a value as part of a string: a path segment, a parameter, a header.
func scalarText(v any) (string, error) {
	switch v := v.(type) {
	case string:
		return v, nil
	case json.Number:
		return v.String(), nil
	case bool:
		return strconv.FormatBool(v), nil
	case nil:
		return "", errors.New("is null")
	}
	return "", fmt.Errorf("is %s, not a single value", typeName(v))
}

func typeName(v any) string {
	switch v.(type) {
	case nil:
		return "null"
	case bool:
		return "a boolean"
	case json.Number:
		return "a number"
	case string:
		return "a string"
	case []any:
		return "a list"
	}
	return "an object"
}

func orElse(s, other string) string {
	if s == "" {
		return other
	}
	return s
}
