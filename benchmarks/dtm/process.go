package main

import (
	"bufio"
	"context"
	"encoding/json"
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/valyala/fasthttp"

	"txmesh/benchmarks/profile"
)

const token = "0123456789abcdef0123456789abcdef"

// bench is one sidecar alone, the branch services of this process, and the clients.
type bench struct {
	options
	cmd     *exec.Cmd
	DTM     string `json:"dtm"`
	API     string `json:"api"`
	service string
	srv     *fasthttp.Server
	client  *fasthttp.Client
	count   atomic.Int64
	run     string // makes gids of this run its own

	mu   sync.Mutex // guards last
	last error
}

func start(o options) (*bench, error) {
	b := &bench{options: o, run: strconv.FormatInt(time.Now().UnixNano(), 36),
		client: &fasthttp.Client{MaxConnsPerHost: 4096, MaxIdemponentCallAttempts: 1, NoDefaultUserAgentHeader: true}}
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		return nil, err
	}
	b.service = l.Addr().String()
	b.srv = &fasthttp.Server{Handler: serve, NoDefaultServerHeader: true}
	go func() { _ = b.srv.Serve(l) }() // ends with stop
	return b, b.startSidecar()
}

// serve answers every branch at once; one under /hang never.
func serve(r *fasthttp.RequestCtx) {
	if strings.HasPrefix(string(r.Path()), "/hang") {
		time.Sleep(time.Hour)
	}
	r.SetBodyString(`{"dtm_result":"SUCCESS"}`)
}

func (b *bench) startSidecar() error {
	file := filepath.Join(b.dir, "token")
	if err := os.WriteFile(file, []byte(token), 0o600); err != nil {
		return err
	}
	zero := "127.0.0.1:0"
	args := append([]string{"--dtm", zero, "--api", zero, "--peer", zero, "--data-dir", filepath.Join(b.dir, "data"), "--token-file", file,
		"--log-level", "error", "--max-open", "100000", "--memory-limit", "512MiB", "--grace-period", "1s"}, b.flags...)
	b.cmd = exec.CommandContext(context.Background(), b.sidecar, args...)
	b.cmd.Stderr = os.Stderr
	out, err := b.cmd.StdoutPipe()
	if err != nil {
		return err
	}
	if err := b.cmd.Start(); err != nil {
		return fmt.Errorf("%w; build it with make build", err)
	}
	line, err := bufio.NewReader(out).ReadBytes('\n')
	if err == nil {
		err = json.Unmarshal(line, b)
	}
	if err != nil {
		b.stop()
		return fmt.Errorf("the sidecar is not ready: %w", err)
	}
	return nil
}

func (b *bench) stop() {
	_ = b.cmd.Process.Kill() // it may have ended
	_ = b.cmd.Wait()         // "signal: killed" is what was asked for
}

func (b *bench) gid() string { return b.run + "-" + strconv.FormatInt(b.count.Add(1), 10) }

func (b *bench) failed(err error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.last = err
}

func (b *bench) lastError() error {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.last
}

// cpu is the processor time that the sidecar has used.
func (b *bench) cpu() (time.Duration, error) { return profile.CPU(b.cmd.Process.Pid) }

// restart starts a new sidecar with a journal of its own.
func (b *bench) restart() error {
	if err := os.MkdirAll(b.dir, 0o700); err != nil {
		return err
	}
	return b.startSidecar()
}
