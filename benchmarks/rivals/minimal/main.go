// Command minimal is the shortest reverse proxy that fasthttp makes, as a yardstick: HTTP/1.1 only, and it keeps almost
// none of what a proxy has to keep (see interceptor/proxy/README.md). The same stands in benchmarks/proxy, in one process.
package main

import (
	"flag"
	"fmt"
	"os"

	"github.com/valyala/fasthttp"
)

func main() {
	address := flag.String("address", "127.0.0.1:8080", "host:port to listen at")
	to := flag.String("to", "127.0.0.1:8081", "host:port of the server")
	flag.Parse()
	c := &fasthttp.HostClient{Addr: *to, MaxConns: 4096, MaxIdemponentCallAttempts: 1}
	s := &fasthttp.Server{NoDefaultServerHeader: true, NoDefaultDate: true, Handler: func(ctx *fasthttp.RequestCtx) {
		ctx.Request.Header.Del("Connection")
		if err := c.Do(&ctx.Request, &ctx.Response); err != nil {
			ctx.Error(err.Error(), fasthttp.StatusBadGateway)
		}
		ctx.Response.Header.Del("Connection")
	}}
	fmt.Fprintln(os.Stderr, "minimal:", s.ListenAndServe(*address))
	os.Exit(1)
}
