package interceptor

import (
	"net/http"
	"net/url"
	"slices"
	"strings"
)

// request is a Request in memory.
type request struct {
	method, host, path, query string
	header                    [][2]string
	body                      []byte
}

func newRequest(method, target string, header ...string) *request {
	u, err := url.Parse(target)
	if err != nil {
		panic(err)
	}
	r := &request{method: method, host: u.Host, path: u.EscapedPath(), query: u.RawQuery}
	for i := 0; i+1 < len(header); i += 2 {
		r.header = append(r.header, [2]string{header[i], header[i+1]})
	}
	return r
}

func (r *request) Method() string { return r.method }
func (r *request) Host() string   { return r.host }
func (r *request) Path() string   { return r.path }
func (r *request) Query() string  { return r.query }

func (r *request) Header(name string) string {
	if all := r.Headers(name); len(all) > 0 {
		return all[0]
	}
	return ""
}

func (r *request) Headers(name string) (all []string) {
	for _, h := range r.header {
		if strings.EqualFold(h[0], name) {
			all = append(all, h[1])
		}
	}
	return all
}

func (r *request) SetHeader(name, value string) {
	r.DelHeader(name)
	r.header = append(r.header, [2]string{name, value})
}

func (r *request) DelHeader(name string) {
	r.header = slices.DeleteFunc(r.header, func(h [2]string) bool { return strings.EqualFold(h[0], name) })
}

func (r *request) EachHeader(f func(name, value string)) {
	for _, h := range r.header {
		f(h[0], h[1])
	}
}

func (r *request) Body(limit int) ([]byte, error) {
	if len(r.body) > limit {
		return nil, ErrBodyTooLarge
	}
	return r.body, nil
}

// response is a Response in memory.
type response struct {
	status  int
	header  http.Header
	trailer http.Header
	body    []byte
	broken  error // the message broke off
}

func newResponse(status int, body string, header ...string) *response {
	r := &response{status: status, header: http.Header{}, body: []byte(body)}
	for i := 0; i+1 < len(header); i += 2 {
		r.header.Add(header[i], header[i+1])
	}
	return r
}

func (r *response) Status() int                  { return r.status }
func (r *response) Header(name string) string    { return r.header.Get(name) }
func (r *response) Trailer(name string) string   { return r.trailer.Get(name) }
func (r *response) SetHeader(name, value string) { r.header.Set(name, value) }
func (r *response) DelHeader(name string)        { r.header.Del(name) }

func (r *response) EachHeader(f func(name, value string)) {
	for k, vs := range r.header {
		for _, v := range vs {
			f(strings.ToLower(k), v)
		}
	}
}

func (r *response) Body(limit int) ([]byte, error) {
	switch {
	case r.broken != nil:
		return nil, r.broken
	case len(r.body) > limit:
		return nil, ErrBodyTooLarge
	}
	return r.body, nil
}
