package proxy

import (
	"encoding/json"
	"net/http"
	"strconv"

	"txmesh/interceptor"
)

// problem is the body of an error response (RFC 9457).
type problem struct {
	Type   string `json:"type"`
	Title  string `json:"title"`
	Status int    `json:"status"`
	Code   string `json:"code"`
	Detail string `json:"detail"`
	// Retryable says that nothing was sent: the request had no effect at the endpoint.
	Retryable bool `json:"retryable"`
}

// answer renders an error for the client: what happened, where, and what to do next.
func (e *Error) answer() *interceptor.Answer {
	row := e.row()
	p := problem{
		Type:      "https://txmesh.io/codes#" + row.Code,
		Title:     row.Title,
		Status:    row.Status,
		Code:      row.Code,
		Detail:    e.Error() + "; " + row.Remedy,
		Retryable: !e.sent && row.Status >= 500 && e.Endpoint != "",
	}
	body, err := json.Marshal(p)
	if err != nil {
		panic("problem of strings and numbers does not marshal: " + err.Error())
	}
	a := &interceptor.Answer{
		Status: row.Status,
		Header: [][2]string{{"Content-Type", "application/problem+json"}, {"tx-error", row.Code}},
		Body:   append(body, '\n'),
	}
	switch e.fault {
	case faultFull, faultWaited, faultNowhere:
		a.Header = append(a.Header, [2]string{"Retry-After", "1"})
	default: // to wait would not help, or nobody knows how long
	}
	return a
}

// appendAnswer writes an answer as HTTP/1.1. A HEAD request gets the header alone.
func appendAnswer(dst []byte, a *interceptor.Answer, head, closing bool) []byte {
	dst = append(dst, "HTTP/1.1 "...)
	dst = strconv.AppendInt(dst, int64(a.Status), 10)
	dst = append(dst, ' ')
	dst = append(dst, http.StatusText(a.Status)...)
	dst = append(dst, '\r', '\n')
	for _, h := range a.Header {
		switch nameOf([]byte(h[0])) {
		case contentLengthName, transferEncodingName, connectionName:
			continue // the length of Body decides
		default:
		}
		if !isToken(h[0]) {
			continue // it would end the line, or be read as another name
		}
		dst = append(dst, h[0]...)
		dst = append(dst, ':', ' ')
		dst = appendClean(dst, h[1])
		dst = append(dst, '\r', '\n')
	}
	bodiless := a.Status < 200 || a.Status == 204 || a.Status == 304
	if !bodiless {
		dst = append(dst, "Content-Length: "...)
		dst = strconv.AppendInt(dst, int64(len(a.Body)), 10)
		dst = append(dst, '\r', '\n')
	}
	if closing {
		dst = append(dst, "Connection: close\r\n"...)
	}
	dst = append(dst, '\r', '\n')
	if head || bodiless {
		return dst
	}
	return append(dst, a.Body...)
}
