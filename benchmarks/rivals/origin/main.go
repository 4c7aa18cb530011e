// Command origin is the server behind the proxies, in a process of its own: -address over HTTP/1.1 or gRPC. It echoes. What
// it does is in benchmarks/load/echo.
package main

import (
	"flag"
	"fmt"
	"net"
	"os"

	"txmesh/benchmarks/load/echo"
)

func main() {
	address := flag.String("address", "127.0.0.1:8081", "host:port to listen at")
	grpc := flag.Bool("grpc", false, "gRPC instead of HTTP/1.1")
	flag.Parse()
	l, err := net.Listen("tcp", *address)
	if err == nil {
		if *grpc {
			err = echo.GRPC(l)
		} else {
			err = echo.HTTP1(l)
		}
	}
	fmt.Fprintln(os.Stderr, "origin:", err)
	os.Exit(1)
}
