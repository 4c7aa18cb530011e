package httpd

import (
	"net/http"

	"github.com/valyala/fasthttp"
)

// response collects what a handler answers.
type response struct {
	header http.Header
	status int // 0: not said yet
	body   []byte
}

// Header implements http.ResponseWriter. What is set once the status was said is not sent.
func (w *response) Header() http.Header {
	if w.status != 0 {
		return w.header.Clone()
	}
	if w.header == nil {
		w.header = http.Header{}
	}
	return w.header
}

// WriteHeader implements http.ResponseWriter. The first status counts; interim ones are not sent.
func (w *response) WriteHeader(status int) {
	if w.status == 0 && status >= http.StatusOK {
		w.status = status
	}
}

// Write implements http.ResponseWriter.
func (w *response) Write(p []byte) (int, error) {
	w.WriteHeader(http.StatusOK)
	if w.status == http.StatusNoContent || w.status == http.StatusNotModified {
		return 0, http.ErrBodyNotAllowed
	}
	w.body = append(w.body, p...)
	return len(p), nil
}

// send puts the answer in the place of what was there.
func (w *response) send(to *fasthttp.Response) {
	w.WriteHeader(http.StatusOK)
	to.SetStatusCode(w.status)
	for name, values := range w.header {
		for _, v := range values {
			to.Header.Add(name, v)
		}
	}
	if len(w.body) == 0 {
		return
	}
	if w.header["Content-Type"] == nil && w.header.Get("Content-Encoding") == "" {
		to.Header.SetContentType(http.DetectContentType(w.body))
	}
	to.SetBodyRaw(w.body) // a buffer of fasthttp would stay with the connection, as large as it was once
}
