package admin

import (
	"bytes"
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"net/url"
	"slices"
	"strings"

	"github.com/fxamacker/cbor/v2"

	"txmesh/interceptor"
	"txmesh/txn"
)

const (
	urlMax     = 4 << 10
	headersMax = 64
	headerMax  = 8 << 10 // of one value
)

// targetRequest is a target as clients write it: url, or grpc.
type targetRequest struct {
	Method  string            `json:"method"`
	URL     string            `json:"url"`
	GRPC    string            `json:"grpc"` // host:port/package.Service/Method
	Headers map[string]string `json:"headers"`
	Body    json.RawMessage   `json:"body"`
}

// target is whom an op calls, as it is journaled: Place, a question mark, and the rest. So the part before the
// question mark is the destination, by which calls wait for each other.
type target struct {
	Place  string      `cbor:"-"` // URL without its query, or host:port/package.Service/Method
	GRPC   bool        `cbor:"1,keyasint,omitempty"`
	Method string      `cbor:"2,keyasint,omitempty"`
	Query  string      `cbor:"3,keyasint,omitempty"`
	Header [][2]string `cbor:"4,keyasint,omitempty"` // in the order of their names
	Body   []byte      `cbor:"5,keyasint,omitempty"`
}

func (t target) encode() []byte {
	rest, err := cbor.Marshal(t)
	if err != nil {
		panic("admin: target that is not CBOR: " + err.Error())
	}
	return append([]byte(t.Place+"?"), rest...)
}

func decodeTarget(b []byte) (target, error) {
	place, rest, _ := bytes.Cut(b, []byte{'?'})
	t := target{Place: string(place)}
	if err := cbor.Unmarshal(rest, &t); err != nil {
		return t, fmt.Errorf("target of the API: %w", err)
	}
	return t, nil
}

// host is where the target leads, for people; "" if it is not one of ours.
func host(b []byte) string {
	t, err := decodeTarget(b)
	if err != nil {
		return ""
	}
	_, rest, found := strings.Cut(t.Place, "://")
	if !found {
		rest = t.Place
	}
	h, _, _ := strings.Cut(rest, "/")
	return h
}

// parse checks a target. What it accepts can be called.
func (q targetRequest) parse(o txn.Op) (target, error) {
	t := target{Method: q.Method}
	var err error
	switch {
	case (q.URL == "") == (q.GRPC == ""):
		return t, errors.New("want url or grpc")
	case q.GRPC != "" && q.Method != "":
		return t, errors.New("method: gRPC has none")
	case q.GRPC != "":
		err = t.setGRPC(q)
	default:
		err = t.setHTTP(q, o)
	}
	if err != nil {
		return t, err
	}
	return t, t.setHeaders(q.Headers)
}

func (t *target) setHTTP(q targetRequest, o txn.Op) error {
	u, err := url.Parse(q.URL)
	if err != nil || !printable(q.URL) || len(q.URL) > urlMax || u.Scheme != "http" && u.Scheme != "https" || u.Hostname() == "" ||
		u.User != nil || u.Fragment != "" {
		return fmt.Errorf("url %.100q: want http://host:port/path, encoded, without user and fragment, at most %d bytes", q.URL, urlMax)
	}
	t.Place, t.Query = u.Scheme+"://"+u.Host+u.EscapedPath(), u.RawQuery
	if u.EscapedPath() == "" {
		t.Place += "/"
	}
	switch t.Method {
	case "":
		if t.Method = http.MethodPost; o == txn.Ask {
			t.Method = http.MethodGet
		}
	case http.MethodGet, http.MethodPost, http.MethodPut, http.MethodPatch, http.MethodDelete:
	default:
		return fmt.Errorf("method %.20q: want GET, POST, PUT, PATCH or DELETE", t.Method)
	}
	return t.setBody(q.Body)
}

// setBody keeps a JSON value byte for byte, and of a string its text.
func (t *target) setBody(body json.RawMessage) error {
	kind := "application/json"
	switch {
	case len(body) == 0 || string(body) == "null":
		return nil
	case body[0] == '"':
		var text string
		if err := json.Unmarshal(body, &text); err != nil {
			return fmt.Errorf("body: %w", err)
		}
		body, kind = json.RawMessage(text), "text/plain; charset=utf-8"
	}
	t.Body = body
	t.Header = append(t.Header, [2]string{"Content-Type", kind})
	return nil
}

func (t *target) setGRPC(q targetRequest) error {
	t.GRPC, t.Place = true, q.GRPC
	at, method, _ := strings.Cut(q.GRPC, "/")
	u, err := url.Parse("//" + at)
	service, name, _ := strings.Cut(method, "/")
	if err != nil || !printable(q.GRPC) || len(q.GRPC) > urlMax || u.Port() == "" || u.Hostname() == "" || u.User != nil ||
		service == "" || name == "" || strings.ContainsAny(q.GRPC, "?#%") || strings.Contains(name, "/") {
		return fmt.Errorf("grpc %.100q: want host:port/package.Service/Method, at most %d bytes", q.GRPC, urlMax)
	}
	var text string
	if len(q.Body) > 0 {
		if err = json.Unmarshal(q.Body, &text); err == nil {
			t.Body, err = base64.StdEncoding.DecodeString(text)
		}
	}
	if err != nil {
		return fmt.Errorf("body: want the message in base64: %w", err)
	}
	return nil
}

// setHeaders adds the client's own. What belongs to the connection or to the protocol is ours; credentials are not
// journaled.
func (t *target) setHeaders(headers map[string]string) error {
	if len(headers) > headersMax {
		return fmt.Errorf("headers: %d of at most %d", len(headers), headersMax)
	}
	for name, value := range headers {
		if !isToken(name) || len(name) > 128 {
			return fmt.Errorf("headers: %.40q is no name of a header", name)
		}
		if len(value) > headerMax || strings.ContainsFunc(value, func(r rune) bool { return r < ' ' && r != '\t' || r == 0x7f }) {
			return fmt.Errorf("headers: value of %s: want at most %d bytes without control characters", name, headerMax)
		}
		switch low := strings.ToLower(name); {
		case low == "authorization", low == "proxy-authorization", low == "cookie":
			return fmt.Errorf("headers: %s: credentials are never journaled; let the participant trust this sidecar's network, or give it a capability URL", name)
		case ours(low):
			return fmt.Errorf("headers: %s is set by txmesh", name)
		case low == "content-type":
			t.Header = slices.DeleteFunc(t.Header, func(h [2]string) bool { return h[0] == "Content-Type" })
		}
		t.Header = append(t.Header, [2]string{http.CanonicalHeaderKey(name), value})
	}
	slices.SortFunc(t.Header, func(a, b [2]string) int { return strings.Compare(a[0], b[0]) })
	for i := 1; i < len(t.Header); i++ {
		if t.Header[i][0] == t.Header[i-1][0] {
			return fmt.Errorf("headers: %s stands twice", t.Header[i][0])
		}
	}
	return nil
}

// ours reports whether the header belongs to the protocol or to the connection.
func ours(low string) bool {
	switch low {
	case interceptor.HeaderIdempotency, "baggage", "host", "content-length", "transfer-encoding", "connection", "keep-alive",
		"upgrade", "te", "trailer", "expect", "proxy-connection":
		return true
	}
	return strings.HasPrefix(low, "tx-") || strings.HasPrefix(low, "grpc-")
}

func isToken(s string) bool {
	return s != "" && !strings.ContainsFunc(s, func(r rune) bool {
		return r <= ' ' || r >= 0x7f || strings.ContainsRune(`"(),/:;<=>?@[\]{}`, r)
	})
}

// printable reports whether s can stand on the first line of a request.
func printable(s string) bool {
	return !strings.ContainsFunc(s, func(r rune) bool { return r <= ' ' || r >= 0x7f })
}
