package sim

import (
	"net/http"
	"slices"
	"strings"

	"txmesh/interceptor"
)

// fields are the headers of a message, in order.
type fields [][2]string

func (f fields) get(name string) string {
	for _, h := range f {
		if strings.EqualFold(h[0], name) {
			return h[1]
		}
	}
	return ""
}

func (f *fields) del(name string) {
	*f = slices.DeleteFunc(*f, func(h [2]string) bool { return strings.EqualFold(h[0], name) })
}

func (f *fields) set(name, value string) {
	f.del(name)
	*f = append(*f, [2]string{name, value})
}

// sorted are the headers of package http in an order that does not change.
func sorted(h http.Header) fields {
	var f fields
	for name, values := range h {
		for _, v := range values {
			f = append(f, [2]string{strings.ToLower(name), v})
		}
	}
	slices.SortFunc(f, func(a, b [2]string) int { return strings.Compare(a[0]+"\x00"+a[1], b[0]+"\x00"+b[1]) })
	return f
}

func (f fields) header() http.Header {
	h := http.Header{}
	for _, x := range f {
		h.Add(x[0], x[1])
	}
	return h
}

// request is an HTTP request on its way. It carries what the world knows of it and no machine ever sees: which
// deed of which application it is.
type request struct {
	method, host, path, query string
	fields                    fields
	body                      []byte
	deed                      *deed // nil: a request of a client, or of a sidecar on its own account
}

var _ interceptor.Request = (*request)(nil)

func (r *request) copy() *request {
	c := *r
	c.fields = slices.Clone(r.fields)
	return &c
}

func (r *request) Method() string               { return r.method }
func (r *request) Host() string                 { return r.host }
func (r *request) Path() string                 { return r.path }
func (r *request) Query() string                { return r.query }
func (r *request) Header(name string) string    { return r.fields.get(name) }
func (r *request) SetHeader(name, value string) { r.fields.set(name, value) }
func (r *request) DelHeader(name string)        { r.fields.del(name) }

func (r *request) Headers(name string) (all []string) {
	for _, h := range r.fields {
		if strings.EqualFold(h[0], name) {
			all = append(all, h[1])
		}
	}
	return all
}

func (r *request) EachHeader(f func(name, value string)) {
	for _, h := range r.fields {
		f(h[0], h[1])
	}
}

func (r *request) Body(limit int) ([]byte, error) {
	if len(r.body) > limit {
		return nil, interceptor.ErrBodyTooLarge
	}
	return r.body, nil
}

// response is an HTTP response on its way.
type response struct {
	status int
	fields fields
	body   []byte
}

var _ interceptor.Response = (*response)(nil)

func (r *response) Status() int                  { return r.status }
func (r *response) Header(name string) string    { return r.fields.get(name) }
func (r *response) Trailer(string) string        { return "" }
func (r *response) SetHeader(name, value string) { r.fields.set(name, value) }
func (r *response) DelHeader(name string)        { r.fields.del(name) }

func (r *response) EachHeader(f func(name, value string)) {
	for _, h := range r.fields {
		f(h[0], h[1])
	}
}

func (r *response) Body(limit int) ([]byte, error) {
	if len(r.body) > limit {
		return nil, interceptor.ErrBodyTooLarge
	}
	return r.body, nil
}

func answered(status int, body string) *response {
	r := &response{status: status, body: []byte(body)}
	if body != "" {
		r.fields = fields{{"content-type", "application/json"}}
	}
	return r
}

func ofGate(a *interceptor.Answer) *response {
	return &response{status: a.Status, fields: slices.Clone(fields(a.Header)), body: a.Body}
}

// fault is what a caller sees when no answer came.
type fault string

func (f fault) Error() string { return string(f) }

const (
	errRefused fault = "connection refused"
	errReset   fault = "connection reset"
	errTimeout fault = "no answer in time"
)
