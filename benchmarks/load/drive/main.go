// Command drive puts load on one address by hand and prints what it counted. The server must echo bodies; with -serve this
// program is that server. Everything it does is in package load. Start at main.
package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"maps"
	"net"
	"os"
	"os/signal"
	"slices"
	"time"

	"txmesh/benchmarks/load"
	"txmesh/benchmarks/load/echo"
)

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt)
	defer stop()
	if err := run(ctx); err != nil {
		fmt.Fprintln(os.Stderr, "drive:", err)
		os.Exit(1)
	}
}

func run(ctx context.Context) error {
	o := load.Options{Grace: 5 * time.Second}
	serve := flag.Bool("serve", false, "be the server at -address")
	protocol := flag.String("protocol", "http1", "http1 or grpc")
	address := flag.String("address", "127.0.0.1:8080", "host:port of the server")
	path := flag.String("path", "/bench.Echo/Call", "path of the requests")
	body := flag.Int("body", 1<<10, "bytes of the body, both ways")
	flag.IntVar(&o.Conns, "connections", 32, "connections, each with one call at a time")
	flag.Float64Var(&o.Rate, "rate", 0, "calls a second of an open loop; 0: a closed loop")
	flag.DurationVar(&o.Warm, "warm", time.Second, "time before anything is counted")
	flag.DurationVar(&o.For, "for", 5*time.Second, "counted time")
	flag.Parse()
	if flag.NArg() > 0 {
		return fmt.Errorf("%q is no flag", flag.Arg(0))
	}
	switch *protocol {
	case "http1":
		o.Dial = load.HTTP1{Address: *address, Path: *path, Body: *body}.Dial
	case "grpc":
		o.Dial = load.GRPC{Address: *address, Path: *path, Body: *body}.Dial
	default:
		return fmt.Errorf("-protocol %q: want http1 or grpc", *protocol)
	}
	if *serve {
		return server(ctx, *protocol, *address)
	}
	r, err := load.Run(ctx, o)
	if err != nil {
		return err
	}
	show(r)
	return nil
}

func server(ctx context.Context, protocol, address string) error {
	l, err := net.Listen("tcp", address)
	if err != nil {
		return err
	}
	context.AfterFunc(ctx, func() { l.Close() })
	fmt.Println("listening on", l.Addr())
	if protocol == "grpc" {
		err = echo.GRPC(l)
	} else {
		err = echo.HTTP1(l)
	}
	if ctx.Err() != nil && (err == nil || errors.Is(err, net.ErrClosed)) {
		return nil
	}
	return err
}

func show(r *load.Result) {
	fmt.Printf("%.0f right answers a second; %d sent in %v, after %d of the warm-up\n", r.Throughput(), r.Sent, r.Elapsed, r.Warm)
	for _, share := range []float64{0.5, 0.9, 0.99, 0.999, 0.9999} {
		fmt.Printf("p%g %v\n", 100*share, r.Latency.At(share))
	}
	fmt.Printf("max %v\n", r.Latency.Max())
	if r.Late.Count() > 0 {
		fmt.Printf("the driver itself was late by %v (p50), %v (p99)\n", r.Late.At(0.5), r.Late.At(0.99))
	}
	for _, name := range slices.Sorted(maps.Keys(r.Errors)) {
		fmt.Printf("%d errors: %s\n", r.Errors[name], name)
	}
}
