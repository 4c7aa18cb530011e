package proxy

import (
	"bytes"

	"txmesh/interceptor"
)

// request is the message from the client, and what the Gate sees of it.
type request struct {
	message
	text  texts
	tunes func() error // run before the body is first read for the Gate
}

// texts keeps the last strings made from a connection's bytes: the next request mostly says the same again.
type texts struct{ method, host, path, query string }

// same returns b as a string, the old one if it says the same.
func same(old *string, b []byte) string {
	if *old != string(b) {
		*old = string(b)
	}
	return *old
}

var _ interceptor.Request = (*request)(nil)

func (r *request) Method() string { return same(&r.text.method, r.head.method) }

func (r *request) Host() string {
	if authority, _, ok := absolute(r.head.target); ok {
		return same(&r.text.host, authority)
	}
	return same(&r.text.host, r.head.get("host"))
}

func (r *request) Path() string {
	path, _, _ := bytes.Cut(r.pathAndQuery(), []byte("?"))
	return same(&r.text.path, path)
}

func (r *request) Query() string {
	_, query, _ := bytes.Cut(r.pathAndQuery(), []byte("?"))
	return same(&r.text.query, query)
}

func (r *request) pathAndQuery() []byte {
	if _, rest, ok := absolute(r.head.target); ok {
		return rest
	}
	return r.head.target
}

func (r *request) Header(name string) string { return string(r.head.get(name)) }

func (r *request) Headers(name string) []string {
	var values []string
	for i := r.head.find(name, 0); i >= 0; i = r.head.find(name, i+1) {
		values = append(values, string(r.head.valueOf(&r.head.fields[i])))
	}
	return values
}

func (r *request) SetHeader(name, value string) { r.head.edit(name, &value) }
func (r *request) DelHeader(name string)        { r.head.edit(name, nil) }

func (r *request) EachHeader(f func(name, value string)) { r.head.each(f) }

func (r *request) Body(max int) ([]byte, error) {
	if r.tunes != nil && !r.body.done {
		if err := r.tunes(); err != nil {
			r.err = err
		}
	}
	return r.buffer(max)
}

// edit sets or deletes a field, unless it frames the message: the body goes on as it came.
func (h *head) edit(name string, value *string) {
	switch nameOf([]byte(name)) {
	case contentLengthName, transferEncodingName, connectionName:
		return
	default:
	}
	if value == nil {
		h.drop(name, 0)
		return
	}
	h.set(name, *value)
}

// each shows all fields. What it shows shares one copy of the head: who keeps one for longer than the exchange keeps all.
func (h *head) each(f func(name, value string)) {
	text := string(h.raw)
	for i := range h.fields {
		if l := &h.fields[i]; !l.gone {
			f(text[l.from:l.colon], text[l.value:l.valueEnd])
		}
	}
}

// absolute splits the absolute form of a request target; the rest starts with a slash or a question mark, or is empty.
func absolute(target []byte) (authority, rest []byte, ok bool) {
	if len(target) == 0 || target[0] == '/' {
		return nil, nil, false
	}
	i := bytes.Index(target, []byte("://"))
	if i <= 0 {
		return nil, nil, false
	}
	authority = target[i+3:]
	if end := bytes.IndexAny(authority, "/?#"); end >= 0 {
		return authority[:end], authority[end:], true
	}
	return authority, nil, true
}

// response is the message from the upstream, and what the Gate sees of it.
type response struct {
	message
	streamed bool // its body has gone to the client
}

var _ interceptor.Response = (*response)(nil)

func (r *response) Status() int                           { return r.head.status }
func (r *response) Header(name string) string             { return string(r.head.get(name)) }
func (r *response) Trailer(string) string                 { return "" }
func (r *response) SetHeader(name, value string)          { r.head.edit(name, &value) }
func (r *response) DelHeader(name string)                 { r.head.edit(name, nil) }
func (r *response) EachHeader(f func(name, value string)) { r.head.each(f) }

func (r *response) Body(max int) ([]byte, error) {
	if r.streamed {
		return nil, errStreamed
	}
	return r.buffer(max)
}
