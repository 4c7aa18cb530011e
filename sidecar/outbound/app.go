package outbound

import (
	"bytes"
	"context"
	"fmt"
	"net/http"
	"net/url"

	"txmesh/interceptor"
)

// App sends requests of the Gate to the application beside the sidecar. It implements interceptor.App.
type App struct {
	address string
	wire    *wire
}

// NewApp returns the sender to the application at host:port. Answers longer than bodyMax are errors. Every
// connection is shown to control; nil: none is.
func NewApp(address string, bodyMax int, control Control) *App {
	return &App{address: address, wire: newWire(true, bodyMax, control)}
}

// Close drops idle connections.
func (a *App) Close() { a.wire.transport.CloseIdleConnections() }

// Send makes one request within the context's deadline. An error means that it may have arrived or not.
func (a *App) Send(ctx context.Context, o *interceptor.Outgoing) (*interceptor.Reply, error) {
	r, err := http.NewRequestWithContext(ctx, o.Method, "http://"+a.address, bytes.NewReader(o.Body))
	if err != nil {
		return nil, fmt.Errorf("request for the application: %w", err)
	}
	r.URL = &url.URL{Scheme: "http", Host: a.address, Opaque: o.Path, RawQuery: o.Query}
	r.Header = o.Header.Clone()
	if r.Header == nil {
		r.Header = http.Header{}
	}
	if r.Header.Get("User-Agent") == "" {
		r.Header.Set("User-Agent", "txmesh-sidecar")
	}
	r.Host = o.Host
	if r.Host == "" {
		r.Host = a.address
	}
	return a.wire.send(r)
}
