package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"time"

	"txmesh/sidecar"
	"txmesh/tests/processes"
)

func main() {
	soak := flag.Duration("soak", 0, "constant load for so long, after the table")
	plain := flag.Bool("plain", false, "build with plain `go build`, not as make does")
	conns := flag.Int("conns", 10_000, "connections that are opened and closed")
	sockets := flag.Int("sockets", 1000, "idle WebSockets")
	flag.Parse()
	if err := run(*plain, *conns, *sockets, *soak); err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
}

// bench is a sidecar with an application of ours behind it.
type bench struct {
	sidecar.Addresses
	process *processes.Process
	app     *app
}

func run(plain bool, conns, sockets int, soak time.Duration) (err error) {
	dir, err := os.MkdirTemp("", "txmesh-memory-")
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, os.RemoveAll(dir)) }()
	b := &bench{}
	if b.app, err = newApp(); err != nil {
		return err
	}
	defer b.app.close()
	if err := b.start(dir, plain); err != nil {
		return err
	}
	defer b.process.Kill()
	time.Sleep(3 * time.Second) // the start is over
	fmt.Printf("%-44s %8s %8s %8s\n", "MiB", "RSS", "anon", "file")
	idle, err := b.row("idle")
	if err != nil {
		return err
	}
	if err := b.churn(conns); err != nil {
		return err
	}
	if _, err := b.row(fmt.Sprintf("after %d connections, 100 at a time", conns)); err != nil {
		return err
	}
	if err := b.websockets(sockets); err != nil {
		return err
	}
	if err := b.burst(min(conns, 5000)); err != nil {
		return err
	}
	if _, err := b.row(fmt.Sprintf("%v after %d connections at once", rest, min(conns, 5000))); err != nil {
		return err
	}
	if err := b.streams(idle); err != nil {
		return err
	}
	if soak > 0 {
		return b.soak(soak)
	}
	return nil
}

func (b *bench) start(dir string, plain bool) error {
	binary := filepath.Join(dir, "txmesh-sidecar")
	args := []string{"build", "-trimpath", "-o", binary}
	if !plain {
		args = append(args, "-tags", "grpcnotrace")
	}
	build := exec.CommandContext(context.Background(), "go", append(args, "txmesh/cmd/txmesh-sidecar")...)
	build.Env = os.Environ()
	if !plain {
		build.Env = append(build.Env, "CGO_ENABLED=0")
	}
	if out, err := build.CombinedOutput(); err != nil {
		return fmt.Errorf("build the sidecar: %w\n%s", err, out)
	}
	b.process = &processes.Process{Name: "sidecar", Path: binary, Log: filepath.Join(dir, "log"),
		Args: []string{"--service=bench/app", "--app", b.app.address, "--data-dir", filepath.Join(dir, "data"),
			"--inbound=127.0.0.1:0", "--outbound=off", "--api=127.0.0.1:0", "--peer=127.0.0.1:0"}}
	return b.process.Start(&b.Addresses)
}
