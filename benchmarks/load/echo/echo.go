// Package echo answers calls with what they sent, as cheaply as it can: over HTTP/1.1 by fasthttp, over gRPC by frames. It
// is the server behind the proxies that are compared, where whatever it costs is taken from them. It knows no service
// and no method. Start at HTTP1 and GRPC.
package echo

import (
	"net"
	"time"

	"github.com/valyala/fasthttp"
)

// bodyBytesMax is the largest body that is echoed.
const bodyBytesMax = 1 << 20

// HTTP1 serves until the listener is closed.
func HTTP1(l net.Listener) error {
	s := &fasthttp.Server{
		NoDefaultServerHeader: true, NoDefaultDate: true, MaxRequestBodySize: bodyBytesMax, Concurrency: 1 << 16, IdleTimeout: time.Hour,
		Handler: func(ctx *fasthttp.RequestCtx) {
			ctx.SetContentTypeBytes(ctx.Request.Header.ContentType())
			ctx.SetBody(ctx.PostBody())
		},
	}
	return s.Serve(l)
}
