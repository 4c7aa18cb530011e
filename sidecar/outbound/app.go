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
	grpc    grpcConns
}

// NewApp returns the sender to the application at host:port. Answers longer than bodyMax are errors. Every
// connection is shown to control; nil: none is.
func NewApp(address string, bodyMax int, control Control) *App {
	w := newWire(true, bodyMax, control)
	return &App{address: address, wire: w, grpc: newGRPCConns(w.transport)}
}

// Close drops idle connections, and those of gRPC.
func (a *App) Close() {
	a.wire.transport.CloseIdleConnections()
	a.grpc.close()
}

// Send makes one request within the context's deadline, in clear text: one of gRPC over HTTP/2, all others over HTTP/1.1.
// An error means that it may have arrived or not.
func (a *App) Send(ctx context.Context, o *interceptor.Outgoing) (*interceptor.Reply, error) {
	if isGRPC(o.Header) {
		return a.grpc.send(ctx, "http", a.address, o)
	}
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
