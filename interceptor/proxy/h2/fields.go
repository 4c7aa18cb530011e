package h2

import (
	"strconv"
	"strings"

	"golang.org/x/net/http/httpguts"
	"golang.org/x/net/http2/hpack"
)

// fieldList is a header or trailer section, pseudo-fields first.
type fieldList []hpack.HeaderField

func (h fieldList) find(name string, from int) int {
	for i := from; i < len(h); i++ {
		if h[i].Name == name {
			return i
		}
	}
	return -1
}

func (h fieldList) get(name string) string {
	if i := h.find(name, 0); i >= 0 {
		return h[i].Value
	}
	return ""
}

func (h fieldList) all(name string) []string {
	var values []string
	for i := h.find(name, 0); i >= 0; i = h.find(name, i+1) {
		values = append(values, h[i].Value)
	}
	return values
}

func (h fieldList) without(name string) fieldList {
	kept := h[:0]
	for _, f := range h {
		if f.Name != name {
			kept = append(kept, f)
		}
	}
	return kept
}

// with sets the first field of a name, removes its others, and appends it if there was none. A byte that would end a line
// becomes a space.
func (h fieldList) with(name, value string) fieldList {
	value = cleanValue(value)
	i := h.find(name, 0)
	if i < 0 {
		return append(h, hpack.HeaderField{Name: name, Value: value})
	}
	h[i].Value = value
	return append(h[:i+1], h[i+1:].without(name)...)
}

func (h fieldList) each(f func(name, value string)) {
	for i := range h {
		if !h[i].IsPseudo() {
			f(h[i].Name, h[i].Value)
		}
	}
}

func cleanValue(v string) string {
	if httpguts.ValidHeaderFieldValue(v) {
		return strings.Trim(v, " \t")
	}
	return strings.Trim(strings.Map(func(r rune) rune {
		if r < ' ' && r != '\t' || r == 0x7f {
			return ' '
		}
		return r
	}, v), " \t")
}

// guarded are the fields that frame a message or belong to a connection: nobody changes them.
func guarded(name string) bool {
	switch name {
	case "content-length", "transfer-encoding", "connection", "keep-alive", "proxy-connection", "upgrade", "te", "":
		return true
	}
	return name[0] == ':'
}

// edit is SetHeader and DelHeader: with a nil value it deletes.
func (h fieldList) edit(name string, value *string) fieldList {
	name = strings.ToLower(name)
	switch {
	case guarded(name):
		return h
	case value == nil:
		return h.without(name)
	}
	return h.with(name, *value)
}

// plain says what is wrong with the fields that are no pseudo-fields, "" if nothing is (RFC 9113, 8.2).
func (h fieldList) plain() string {
	for i := range h {
		f := &h[i]
		if f.IsPseudo() {
			return "pseudo-field " + f.Name + " out of place"
		}
		if !lowerName(f.Name) {
			return "name of a field"
		}
		v := f.Value
		if !httpguts.ValidHeaderFieldValue(v) || v != "" && (isBlank(v[0]) || isBlank(v[len(v)-1])) {
			return "value of " + f.Name
		}
		switch f.Name {
		case "connection", "keep-alive", "proxy-connection", "transfer-encoding", "upgrade":
			return "field " + f.Name + " belongs to HTTP/1"
		case "te":
			if v != "trailers" {
				return "te is not trailers"
			}
		}
	}
	return ""
}

func isBlank(b byte) bool { return b == ' ' || b == '\t' }

func lowerName(s string) bool {
	for i := range len(s) {
		if b := s[i]; !httpguts.IsTokenRune(rune(b)) || 'A' <= b && b <= 'Z' {
			return false
		}
	}
	return s != ""
}

// contentLength returns the declared length, -1 if there is none.
func (h fieldList) contentLength() (n int64, ok bool) {
	n = -1
	for i := h.find("content-length", 0); i >= 0; i = h.find("content-length", i+1) {
		v := h[i].Value
		u, err := strconv.ParseUint(v, 10, 63)
		if err != nil || v[0] == '+' || n >= 0 && n != int64(u) {
			return 0, false
		}
		n = int64(u)
	}
	return n, true
}

// checkRequest says what is wrong with the head of a request (RFC 9113, 8.3.1).
func (h fieldList) checkRequest() string {
	pseudo := 0
	for pseudo < len(h) && h[pseudo].IsPseudo() {
		switch h[pseudo].Name {
		case ":method", ":scheme", ":authority", ":path", ":protocol":
		default:
			return "pseudo-field " + h[pseudo].Name
		}
		if h.find(h[pseudo].Name, pseudo+1) >= 0 {
			return "pseudo-field " + h[pseudo].Name + " twice"
		}
		if !httpguts.ValidHeaderFieldValue(h[pseudo].Value) {
			return "value of " + h[pseudo].Name
		}
		pseudo++
	}
	if bad := h[pseudo:].plain(); bad != "" {
		return bad
	}
	method, extended := h.get(":method"), h.find(":protocol", 0) >= 0
	switch {
	case !httpguts.ValidHeaderFieldName(method):
		return "method"
	case extended && method != "CONNECT":
		return ":protocol without CONNECT"
	case method == "CONNECT" && !extended && (h.find(":scheme", 0) >= 0 || h.find(":path", 0) >= 0):
		return "CONNECT with scheme or path"
	case method == "CONNECT" && !extended:
		return h.checkAuthority()
	}
	path := h.get(":path")
	if h.get(":scheme") == "" || path == "" || path[0] != '/' && (path != "*" || method != "OPTIONS") || strings.ContainsAny(path, " \t") {
		return "scheme or path"
	}
	return h.checkAuthority()
}

func (h fieldList) checkAuthority() string {
	authority, hosts := h.get(":authority"), h.all("host")
	switch {
	case len(hosts) > 1, len(hosts) == 1 && authority != "" && hosts[0] != authority:
		return "host"
	case strings.ContainsAny(h.authority(), ` 	,/\@?#"<>^{|}`), h.authority() == "":
		return "authority"
	}
	return ""
}

func (h fieldList) authority() string {
	if a := h.get(":authority"); a != "" {
		return a
	}
	return h.get("host")
}

// checkResponse reads the status of a response's head, or says what is wrong.
func (h fieldList) checkResponse() (status int, bad string) {
	if len(h) == 0 || h[0].Name != ":status" || len(h[0].Value) != 3 {
		return 0, "status"
	}
	status, err := strconv.Atoi(h[0].Value)
	if err != nil || status < 100 || status == 101 {
		return 0, "status " + strconv.QuoteToASCII(h[0].Value)
	}
	return status, h[1:].plain()
}

func isGRPC(contentType string) bool {
	const grpc = "application/grpc"
	return strings.HasPrefix(contentType, grpc) && (len(contentType) == len(grpc) || strings.IndexByte("+;", contentType[len(grpc)]) >= 0)
}
