package proxy

import (
	"bytes"
	"math"
)

// name marks the fields that the proxy itself reads.
type name uint8

const (
	otherName name = iota
	connectionName
	contentLengthName
	expectName
	hostName
	keepAliveName
	proxyName // Proxy-Connection, Proxy-Authorization, Proxy-Authenticate, ...
	teName
	transferEncodingName
	upgradeName
)

// field is one line of a header. Offsets point into head.raw, so that they survive its growth.
type field struct {
	from, colon, value, valueEnd, end int32
	name                              name
	gone                              bool
}

// head is the start line and the fields of a message, kept as they came. What nobody changes leaves as the same
// bytes: order, case and spaces too.
type head struct {
	raw    []byte
	size   int // of raw as it came; changes are appended behind it
	fields []field
	dirty  bool   // some field was changed
	start  []byte // replaces the start line; nil: as it came

	method, target []byte // of a request
	status         int    // of a response
	lineEnd        int    // of the start line in raw, without CRLF
	minor          int    // HTTP/1.minor

	length    int64 // Content-Length; -1: none
	lengths   int   // how many were sent
	codings   int   // Transfer-Encoding lines
	chunked   bool
	close     bool // Connection: close
	upgrading bool // Connection: upgrade
	hosts     int
	hop       bool // some field is for one hop only
	expect    bool // Expect: 100-continue
}

// load copies a whole head (all lines and the empty one) and finds its fields. The start line is the caller's.
func (h *head) load(raw []byte, fieldsMax int) *Error {
	*h = head{raw: append(h.raw[:0], raw...), fields: h.fields[:0], length: -1}
	h.size = len(h.raw)
	h.lineEnd = bytes.IndexByte(h.raw, '\n') - 1
	for at := h.lineEnd + 2; ; {
		n := bytes.IndexByte(h.raw[at:], '\n') - 1
		if n <= 0 {
			return nil
		}
		if len(h.fields) == fieldsMax {
			return refuse(faultHeaderCount, "")
		}
		if err := h.add(at, at+n); err != nil {
			return err
		}
		at += n + 2
	}
}

// add indexes the line raw[from:end].
func (h *head) add(from, end int) *Error {
	line := h.raw[from:end]
	colon := 0
	for colon < len(line) && isTokenByte(line[colon]) {
		colon++
	}
	if colon == 0 || colon == len(line) || line[colon] != ':' {
		return refuse(faultMalformed, "header line "+quoted(line)+" does not start with a name and a colon")
	}
	value, valueEnd := colon+1, len(line)
	for value < valueEnd && isSpace(line[value]) {
		value++
	}
	for valueEnd > value && isSpace(line[valueEnd-1]) {
		valueEnd--
	}
	for _, b := range line[value:valueEnd] {
		if !isValueByte(b) {
			return refuse(faultMalformed, "control character in header line "+quoted(line))
		}
	}
	f := field{int32(from), int32(from + colon), int32(from + value), int32(from + valueEnd), int32(end),
		nameOf(line[:colon]), false}
	h.fields = append(h.fields, f)
	if f.name != otherName {
		h.note(f.name, line[value:valueEnd])
	}
	return nil
}

// note takes in what a field says to the proxy itself.
func (h *head) note(n name, value []byte) {
	switch n {
	case contentLengthName:
		h.lengths++
		h.length = parseLength(value)
	case transferEncodingName:
		h.codings++
		h.chunked = lastToken(value, "chunked")
	case hostName:
		h.hosts++
	case expectName:
		h.expect = h.expect || equalFold(value, "100-continue")
	case connectionName:
		h.hop = true
		eachToken(value, func(token []byte) {
			h.close = h.close || equalFold(token, "close")
			h.upgrading = h.upgrading || equalFold(token, "upgrade")
		})
	case keepAliveName, proxyName, teName, upgradeName:
		h.hop = true
	case otherName:
	}
}

// parseLength reads a Content-Length: digits and nothing else. -2 is not one.
func parseLength(b []byte) int64 {
	var n int64
	for _, c := range b {
		if c < '0' || c > '9' || n > (math.MaxInt64-9)/10 {
			return -2
		}
		n = n*10 + int64(c-'0')
	}
	if len(b) == 0 {
		return -2
	}
	return n
}

func (h *head) nameOf(f *field) []byte  { return h.raw[f.from:f.colon] }
func (h *head) valueOf(f *field) []byte { return h.raw[f.value:f.valueEnd] }

// find returns the index of the next field of that name, from i on; -1: none.
func (h *head) find(name string, i int) int {
	for ; i < len(h.fields); i++ {
		f := &h.fields[i]
		if !f.gone && int(f.colon-f.from) == len(name) && equalFold(h.nameOf(f), name) {
			return i
		}
	}
	return -1
}

// get returns the value of the first field of that name, nil if there is none.
func (h *head) get(name string) []byte {
	i := h.find(name, 0)
	if i < 0 {
		return nil
	}
	return h.valueOf(&h.fields[i])
}

// set gives the first field of that name a new value and takes the others out.
func (h *head) set(name, value string) {
	if !isToken(name) {
		return // it would end the line, or be read as another name
	}
	i := h.find(name, 0)
	if i < 0 {
		h.fields = append(h.fields, field{})
		i = len(h.fields) - 1
	} else {
		h.drop(name, i+1)
	}
	h.fields[i] = h.line(name, value)
	h.dirty = true
}

// line appends a new line to raw and returns its field.
func (h *head) line(name, value string) field {
	from := int32(len(h.raw))
	h.raw = append(h.raw, name...)
	colon := int32(len(h.raw))
	h.raw = append(h.raw, ':', ' ')
	at := int32(len(h.raw))
	h.raw = appendClean(h.raw, value)
	end := int32(len(h.raw))
	return field{from: from, colon: colon, value: at, valueEnd: end, end: end, name: nameOf([]byte(name))}
}

// drop takes the fields of that name out, from index i on.
func (h *head) drop(name string, i int) {
	for i = h.find(name, i); i >= 0; i = h.find(name, i+1) {
		h.fields[i].gone = true
		h.dirty = true
	}
}

func (h *head) dropAll(n name) {
	for i := range h.fields {
		if f := &h.fields[i]; f.name == n && !f.gone {
			f.gone = true
			h.dirty = true
		}
	}
}

// appendTo writes the head as it leaves, without the empty line at its end.
func (h *head) appendTo(dst []byte) []byte {
	if !h.dirty && h.start == nil {
		return append(dst, h.raw[:h.size-2]...)
	}
	if h.start != nil {
		dst = append(dst, h.start...)
	} else {
		dst = append(dst, h.raw[:h.lineEnd]...)
	}
	dst = append(dst, '\r', '\n')
	for i := range h.fields {
		if f := &h.fields[i]; !f.gone {
			dst = append(dst, h.raw[f.from:f.end]...)
			dst = append(dst, '\r', '\n')
		}
	}
	return dst
}

// headEnd looks for the end of the first head in p. It returns 0 while there is none, and an error as soon as
// a line does not end in CRLF. Lines before from were seen already.
func headEnd(p []byte, from int) (end, seen int, err *Error) {
	for {
		n := bytes.IndexByte(p[from:], '\n')
		if n < 0 {
			return 0, from, nil
		}
		lf := from + n
		if lf == 0 || p[lf-1] != '\r' {
			return 0, 0, refuse(faultMalformed, "line "+quoted(p[from:lf])+" ends in a bare LF")
		}
		if lf-1 == from {
			return lf + 1, from, nil
		}
		from = lf + 1
	}
}
