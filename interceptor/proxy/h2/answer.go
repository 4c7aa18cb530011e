package h2

import (
	"encoding/json"
	"fmt"
	"strconv"
	"strings"

	"golang.org/x/net/http2"
	"golang.org/x/net/http2/hpack"

	"txmesh/interceptor"
)

// reply answers in place of the endpoint; called with mu held.
func (s *stream) reply(a *interceptor.Answer, b *batch) {
	s.cut(http2.ErrCodeCancel, b)
	s.over = true
	s.lease.Done()
	s.toUp.drop(b)
	s.pause()
	if s.downDone {
		return
	}
	if isGRPC(s.head.get("content-type")) {
		a = grpcAnswer(a)
	}
	h := fieldList{{Name: ":status", Value: strconv.Itoa(a.Status)}}
	body := a.Body
	bodiless := a.Status < 200 || a.Status == 204 || a.Status == 304
	if bodiless || s.head.get(":method") == "HEAD" {
		body = nil
	}
	h = appendFields(h, a.Header)
	if !bodiless && len(a.Trailer) == 0 && !isGRPC(h.get("content-type")) {
		h = append(h, hpack.HeaderField{Name: "content-length", Value: strconv.Itoa(len(a.Body))})
	}
	d := &s.toDown
	d.sink, d.keepEnd, d.ended, d.length = false, false, true, -1
	d.pending, d.off, d.kept, d.trailer = body, 0, true, nil
	if len(a.Trailer) > 0 {
		d.trailer = appendFields(nil, a.Trailer)
	}
	s.answer = h
	s.release(b)
}

// appendFields appends what may stand in HTTP/2; the length of the body is known otherwise.
func appendFields(h fieldList, from [][2]string) fieldList {
	for _, f := range from {
		if name := strings.ToLower(f[0]); !guarded(name) && lowerName(name) {
			h = append(h, hpack.HeaderField{Name: name, Value: cleanValue(f[1])})
		}
	}
	return h
}

// The status codes of gRPC that answers of a sidecar become.
const (
	grpcCancelled          = 1
	grpcUnknown            = 2
	grpcInvalidArgument    = 3
	grpcDeadlineExceeded   = 4
	grpcPermissionDenied   = 7
	grpcResourceExhausted  = 8
	grpcFailedPrecondition = 9
	grpcAborted            = 10
	grpcUnimplemented      = 12
	grpcInternal           = 13
	grpcUnavailable        = 14
	grpcUnauthenticated    = 16
)

// grpcStatus is what a status of HTTP says to a client of gRPC.
func grpcStatus(status int) int {
	switch status {
	case 400, 422:
		return grpcInvalidArgument
	case 401:
		return grpcUnauthenticated
	case 403:
		return grpcPermissionDenied
	case 404, 405, 501, 505:
		return grpcUnimplemented
	case 408, 504:
		return grpcDeadlineExceeded
	case 409:
		return grpcAborted
	case 412, 428:
		return grpcFailedPrecondition
	case 413, 431:
		return grpcResourceExhausted
	case 425, 429, 502, 503:
		return grpcUnavailable
	case 499:
		return grpcCancelled
	case 500:
		return grpcInternal
	}
	return grpcUnknown
}

// grpcAnswer says to a client of gRPC what an answer says to one of HTTP: a status in a header without a body. Answers
// that are gRPC's already, such as recorded ones, stay as they are.
func grpcAnswer(a *interceptor.Answer) *interceptor.Answer {
	if len(a.Trailer) > 0 {
		return a
	}
	out := &interceptor.Answer{Status: 200, Header: [][2]string{{"content-type", "application/grpc"},
		{"grpc-status", strconv.Itoa(grpcStatus(a.Status))}, {"grpc-message", grpcMessage(a)}}}
	for _, h := range a.Header {
		switch name := strings.ToLower(h[0]); name {
		case "grpc-status":
			return a
		case "content-type":
			if isGRPC(h[1]) {
				return a
			}
		case "content-length":
		default:
			out.Header = append(out.Header, h)
		}
	}
	return out
}

// grpcMessage is the text of a problem, percent-encoded as gRPC wants it.
func grpcMessage(a *interceptor.Answer) string {
	var p struct{ Title, Detail, Remedy string }
	text := strings.TrimSpace(string(a.Body))
	if json.Unmarshal(a.Body, &p) == nil && p.Title != "" {
		text = p.Title
		for _, more := range []string{p.Detail, p.Remedy} {
			if more != "" {
				text += ": " + more
			}
		}
	}
	var out strings.Builder
	for i := range len(text) {
		if c := text[i]; c >= ' ' && c <= '~' && c != '%' {
			out.WriteByte(c)
		} else {
			fmt.Fprintf(&out, "%%%02X", c)
		}
	}
	return out.String()
}
