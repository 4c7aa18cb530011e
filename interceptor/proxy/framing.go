package proxy

import "bytes"

// parseRequest reads a whole head as a request. It accepts what every reader behind it reads the same way.
func parseRequest(m *message, raw []byte, l *Limits) *Error {
	h := &m.head
	if err := h.load(raw, l.HeaderFields); err != nil {
		return err
	}
	if err := h.requestLine(); err != nil {
		return err
	}
	if err := h.checkHost(); err != nil {
		return err
	}
	return m.frameRequest(l)
}

// requestLine reads method, target and version, with one space between them.
func (h *head) requestLine() *Error {
	line := h.raw[:h.lineEnd]
	sp := bytes.IndexByte(line, ' ')
	last := bytes.LastIndexByte(line, ' ')
	if sp <= 0 || last == sp {
		return refuse(faultMalformed, "request line "+quoted(line)+" has no method, target and version")
	}
	h.method, h.target = line[:sp], line[sp+1:last]
	for _, b := range h.method {
		if !isTokenByte(b) {
			return refuse(faultMalformed, "method "+quoted(h.method)+" is not a token")
		}
	}
	switch version := line[last+1:]; {
	case string(version) == "HTTP/1.1":
		h.minor = 1
	case string(version) == "HTTP/1.0":
		h.close = true
	case bytes.HasPrefix(version, []byte("HTTP/")):
		return refuse(faultVersion, "version "+quoted(version))
	default:
		return refuse(faultMalformed, "request line "+quoted(line)+" does not end in a version")
	}
	return h.checkTarget()
}

// checkTarget wants one of the four forms of a request target.
func (h *head) checkTarget() *Error {
	t := h.target
	for _, b := range t {
		if b <= ' ' || b == 0x7f {
			return refuse(faultMalformed, "space or control character in the request target "+quoted(t))
		}
	}
	if string(h.method) == "CONNECT" {
		return nil
	}
	if len(t) > 0 && t[0] == '/' || string(t) == "*" && string(h.method) == "OPTIONS" {
		return nil
	}
	if _, _, ok := absolute(t); ok {
		return nil
	}
	return refuse(faultMalformed, "request target "+quoted(t)+" is neither a path nor a URL")
}

// checkHost wants one valid Host, which HTTP/1.0 may omit.
func (h *head) checkHost() *Error {
	if h.hosts > 1 || h.hosts == 0 && h.minor == 1 {
		return refuse(faultHost, "")
	}
	host := h.get("host")
	for _, b := range host {
		if b <= ' ' || b == 0x7f || bytes.IndexByte([]byte(`,/\@?#"<>^{|}`), b) >= 0 {
			return refuse(faultHost, "host "+quoted(host))
		}
	}
	return nil
}

// frameRequest decides where the body of a request ends, or that two readers could differ about it.
func (m *message) frameRequest(l *Limits) *Error {
	h := &m.head
	m.body = body{framing: noBody, done: true}
	switch {
	case h.codings > 0 && h.lengths > 0:
		return refuse(faultFraming, "Content-Length and Transfer-Encoding in one request")
	case h.lengths > 1:
		return refuse(faultFraming, "more than one Content-Length")
	case h.lengths == 1 && h.length < 0:
		return refuse(faultFraming, "Content-Length "+quoted(h.get("content-length"))+" is not a number")
	case h.codings > 0 && h.minor == 0:
		return refuse(faultFraming, "Transfer-Encoding in an HTTP/1.0 request")
	case h.codings > 1 || h.codings == 1 && !equalFold(h.get("transfer-encoding"), "chunked"):
		return refuse(faultCoding, "Transfer-Encoding "+quoted(h.get("transfer-encoding")))
	case h.codings == 1:
		m.body = body{framing: byChunks}
	case h.length > 0:
		if l.BodyBytes > 0 && h.length > l.BodyBytes {
			return refuse(faultBodySize, "")
		}
		m.body = body{framing: byLength, left: h.length}
	}
	return nil
}

// parseResponse reads a whole head as the response to a request with that method.
func parseResponse(m *message, raw []byte, l *Limits, method []byte) *Error {
	h := &m.head
	if err := h.load(raw, l.HeaderFields); err != nil {
		return err
	}
	line := h.raw[:h.lineEnd]
	if len(line) < 12 || !bytes.HasPrefix(line, []byte("HTTP/1.")) || line[8] != ' ' ||
		line[7] != '0' && line[7] != '1' || len(line) > 12 && line[12] != ' ' {
		return refuse(faultAnswer, "status line "+quoted(line))
	}
	for _, d := range line[9:12] {
		if d < '0' || d > '9' {
			return refuse(faultAnswer, "status line "+quoted(line))
		}
		h.status = h.status*10 + int(d-'0')
	}
	for _, b := range line[12:] {
		if !isValueByte(b) {
			return refuse(faultAnswer, "status line "+quoted(line))
		}
	}
	if h.status < 100 {
		return refuse(faultAnswer, "status line "+quoted(line))
	}
	h.minor = int(line[7] - '0')
	h.close = h.close || h.minor == 0
	return m.frameResponse(method)
}

// frameResponse decides where the body of a response ends (RFC 9112, 6.3).
func (m *message) frameResponse(method []byte) *Error {
	h := &m.head
	m.body = body{framing: noBody, done: true}
	switch {
	case h.lengths > 1 || h.lengths == 1 && h.length < 0:
		return refuse(faultAnswer, "Content-Length "+quoted(h.get("content-length"))+" is not one number")
	case h.codings > 0 && h.lengths > 0:
		return refuse(faultAnswer, "Content-Length and Transfer-Encoding in one response")
	case h.codings > 1 || h.codings == 1 && h.minor == 0:
		return refuse(faultAnswer, "Transfer-Encoding twice, or in an HTTP/1.0 response")
	case h.status < 200 || h.status == 204 || h.status == 304 || string(method) == "HEAD":
		if h.codings > 0 && (h.status < 200 || h.status == 204) {
			return refuse(faultAnswer, "Transfer-Encoding in a response that has no body")
		}
	case h.codings == 1 && !h.chunked:
		return refuse(faultAnswer, "Transfer-Encoding "+quoted(h.get("transfer-encoding"))+" does not end in chunked")
	case h.codings == 1:
		m.body = body{framing: byChunks}
	case h.length > 0:
		m.body = body{framing: byLength, left: h.length}
	case h.length < 0:
		m.body = body{framing: untilClose}
		h.close = true
	}
	return nil
}
