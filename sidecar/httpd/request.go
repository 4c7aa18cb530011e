package httpd

import (
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"sync"

	"github.com/valyala/fasthttp"
	"golang.org/x/net/http/httpguts"
)

// exchange is one request with its answer. Handlers may keep what they see of it: nothing is used again, and nothing
// of it lies in the buffers of the connection.
type exchange struct {
	response response
	body     body
	broken   bool // by its handler
}

// request makes what the handler sees.
func (x *exchange) request(ctx *fasthttp.RequestCtx, c *conn) (*http.Request, error) {
	h := &ctx.Request.Header
	uri := string(h.RequestURI())
	u, err := url.ParseRequestURI(uri)
	if err != nil {
		return nil, err
	}
	fields, err := header(h)
	if err != nil {
		return nil, err
	}
	r := http.Request{Method: method(h.Method()), URL: u, RequestURI: uri, Proto: "HTTP/1.1", ProtoMajor: 1, ProtoMinor: 1,
		Header: fields, Host: u.Host, RemoteAddr: c.remote, Body: http.NoBody, Close: h.ConnectionClose()}
	if !h.IsHTTP11() {
		if string(h.Protocol()) != "HTTP/1.0" {
			return nil, fmt.Errorf("version %q: want HTTP/1.1", h.Protocol())
		}
		r.Proto, r.ProtoMinor = "HTTP/1.0", 0
	}
	if r.Host == "" {
		if c.host != string(h.Host()) {
			c.host = string(h.Host())
		}
		r.Host = c.host
	}
	if n := h.ContentLength(); n > 0 || n == chunked {
		r.ContentLength = int64(n)
		x.body.stream, x.body.left = ctx.RequestBodyStream(), r.ContentLength
		r.Body = &x.body
		if n == chunked {
			r.TransferEncoding = []string{"chunked"}
		}
	}
	return r.WithContext(c.ctx), nil
}

// chunked is the Content-Length of a body that says itself where it ends, in both libraries.
const chunked = -1

// method is the constant, if there is one.
func method(b []byte) string {
	switch string(b) {
	case http.MethodGet:
		return http.MethodGet
	case http.MethodHead:
		return http.MethodHead
	case http.MethodPost:
		return http.MethodPost
	default:
		return string(b)
	}
}

// header copies the fields but for those that are elsewhere in a request. All names and values share one string, all
// lists of values one array.
func header(h *fasthttp.RequestHeader) (http.Header, error) {
	var textRoom [1 << 10]byte
	var endsRoom [32]int
	text, ends := textRoom[:0], endsRoom[:0]
	for name, value := range h.AllInOrder() {
		if string(name) == "Host" || string(name) == "Transfer-Encoding" {
			continue
		}
		text = append(text, name...)
		ends = append(ends, len(text))
		text = append(text, value...)
		ends = append(ends, len(text))
	}
	all, values, out := string(text), make([]string, 0, len(ends)/2), make(http.Header, len(ends)/2)
	from := 0
	for i := 0; i < len(ends); i += 2 {
		name, value := all[from:ends[i]], all[ends[i]:ends[i+1]]
		from = ends[i+1]
		if !httpguts.ValidHeaderFieldName(name) { // fasthttp takes some of them
			return nil, fmt.Errorf("header field %.40q: want letters, digits and - in a name", name)
		}
		if before, repeated := out[name]; repeated {
			out[name] = append(before, value)
			continue
		}
		values = append(values, value)
		out[name] = values[len(values)-1 : len(values) : len(values)]
	}
	return out, nil
}

// body is read while its handler runs.
type body struct {
	mu     sync.Mutex // guards all below
	stream io.Reader  // nil: there is none, or not any more
	left   int64      // bytes; negative: nobody knows
	err    error      // of the last read
}

// Read implements io.Reader.
func (b *body) Read(p []byte) (int, error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	if b.stream == nil {
		return 0, http.ErrBodyReadAfterClose
	}
	if b.err != nil {
		return 0, b.err
	}
	n, err := b.stream.Read(p)
	if b.left > 0 {
		b.left -= int64(n)
		if err == io.EOF && b.left > 0 { // fasthttp tells no difference
			err = io.ErrUnexpectedEOF
		}
	}
	b.err = err
	return n, err
}

// Close implements io.Closer. What was not read is of no interest to the handler.
func (b *body) Close() error { return nil }

// discardMax is how much of a body that its handler did not want is read for the sake of the next request, as in net/http.
const discardMax = 256 << 10

// end takes the stream away from the handler and reports whether all of it was read.
func (b *body) end() bool {
	b.mu.Lock()
	defer b.mu.Unlock()
	stream := b.stream
	b.stream = nil
	if stream == nil || errors.Is(b.err, io.EOF) {
		return true
	}
	if b.err != nil || b.left > discardMax {
		return false
	}
	_, err := io.CopyN(io.Discard, stream, discardMax+1)
	return errors.Is(err, io.EOF)
}
