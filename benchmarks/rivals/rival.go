package main

import (
	"bytes"
	"context"
	"embed"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"strconv"
	"text/template"

	"txmesh/benchmarks/load"
)

//go:embed config
var configs embed.FS

// protocol is what clients, proxies and server speak.
type protocol string

const (
	http1 protocol = "HTTP/1.1"
	grpc  protocol = "gRPC"
)

// rival is one way from the driver to the server.
type rival struct {
	name string
	// path is what is called; the server answers all alike.
	path string
	// start starts the proxy before the server at origin.
	start func(ctx context.Context, p place) (*instance, error)
	// version says what is measured, or why it cannot be.
	version func(ctx context.Context) (string, error)
}

const untaggedPath = "/bench.Echo/Call"

// place is where and for what a proxy is started.
type place struct {
	Protocol   protocol
	Origin     string
	Address    string // to listen at
	Host, Port string // the same in two
	OriginHost string
	OriginPort string
	Dir        string // of its own
	Workers    int
	Root       bool
	GRPC       bool
}

// instance is a running proxy; with direct there is none, and process is nil.
type instance struct {
	address string
	process *process
	api     string        // of txmesh
	calls   *transactions // nil: calls belong to none
}

func (i *instance) stop() { i.process.stop() }

// dial is how the driver calls through the proxy.
func (i *instance) dial(p protocol, path string, body int) func(context.Context, int) (load.Caller, error) {
	h := load.HTTP1{Address: i.address, Path: path, Body: body}
	g := load.GRPC{Address: i.address, Path: path, Body: body}
	if i.calls != nil {
		h.Prepare, g.Prepare = i.calls.header, i.calls.metadata
	}
	if p == grpc {
		return g.Dial
	}
	return h.Dial
}

// newPlace picks a port that is free now.
func newPlace(p protocol, origin, dir string, workers int) (place, error) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		return place{}, err
	}
	address := l.Addr().String()
	if err := l.Close(); err != nil {
		return place{}, err
	}
	at := place{Protocol: p, Origin: origin, Address: address, Dir: dir, Workers: workers, Root: os.Getuid() == 0, GRPC: p == grpc}
	at.Host, at.Port, err = net.SplitHostPort(address)
	if err == nil {
		at.OriginHost, at.OriginPort, err = net.SplitHostPort(origin)
	}
	return at, err
}

// write makes the configuration of a proxy and returns where it is.
func (p place) write(name string) (string, error) {
	t, err := template.ParseFS(configs, "config/"+name)
	if err != nil {
		return "", err
	}
	var b bytes.Buffer
	if err := t.Execute(&b, p); err != nil {
		return "", err
	}
	path := filepath.Join(p.Dir, name)
	return path, os.WriteFile(path, b.Bytes(), 0o600)
}

// rivals are all, in the order of the tables.
func (b *bench) rivals() []rival {
	return []rival{
		{name: direct, path: untaggedPath, version: b.origin, start: func(_ context.Context, p place) (*instance, error) {
			return &instance{address: p.Origin}, nil
		}},
		{name: minimal, path: untaggedPath, version: b.fasthttp, start: func(_ context.Context, p place) (*instance, error) {
			return p.run(minimal, b.program("minimal"), "-address", p.Address, "-to", p.Origin)
		}},
		{name: nginx, path: untaggedPath, version: printed("nginx", "-v"), start: func(_ context.Context, p place) (*instance, error) {
			return p.configured(nginx, "nginx.conf", func(file string) []string { return []string{"-p", p.Dir, "-e", "stderr", "-c", file} })
		}},
		{name: haproxy, path: untaggedPath, version: printed("haproxy", "-v"), start: func(_ context.Context, p place) (*instance, error) {
			return p.configured(haproxy, "haproxy.cfg", func(file string) []string { return []string{"-db", "-q", "-f", file} })
		}},
		{name: envoy, path: untaggedPath, version: printed(b.Envoy, "--version"), start: func(_ context.Context, p place) (*instance, error) {
			file, err := p.write("envoy.yaml")
			if err != nil {
				return nil, err
			}
			return p.run(envoy, b.Envoy, "--config-path", file, "--concurrency", strconv.Itoa(p.Workers), "--disable-hot-restart", "--log-level", "error")
		}},
		{name: untagged, path: untaggedPath, version: printed(b.program("txmesh-sidecar"), "--version"), start: func(ctx context.Context, p place) (*instance, error) {
			return b.sidecar(ctx, untagged, p)
		}},
		{name: tagged, path: taggedPath, version: printed(b.program("txmesh-sidecar"), "--version"), start: b.taggedSidecar},
	}
}

const (
	direct   = "direct"
	minimal  = "minimal fasthttp"
	nginx    = "nginx"
	haproxy  = "haproxy"
	envoy    = "envoy"
	untagged = "txmesh untagged"
	tagged   = "txmesh tagged"
)

func (b *bench) program(name string) string { return filepath.Join(b.dir, "bin", name) }

// run starts a proxy that listens at p.Address.
func (p place) run(name, path string, args ...string) (*instance, error) {
	c, err := launch(name, path, args...)
	if err == nil {
		err = c.start()
	}
	if err != nil {
		return nil, err
	}
	return &instance{address: p.Address, process: c}, nil
}

func (p place) configured(name, config string, args func(file string) []string) (*instance, error) {
	file, err := p.write(config)
	if err != nil {
		return nil, err
	}
	path, err := lookPath(name)
	if err != nil {
		return nil, fmt.Errorf("%s: %w", name, err)
	}
	return p.run(name, path, args(file)...)
}
