package main

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"slices"
	"strings"
	"syscall"
	"time"
)

// process is a child that says on one line of JSON that it is ready. What it prints after that, and its standard
// error, go to a file. It can be started again after it has ended. It is used by one goroutine.
type process struct {
	name string // for people
	path string
	args []string
	env  []string
	log  string // file

	cmd    *exec.Cmd
	exited chan struct{} // closed when the child has ended and all its output is in the log
	err    error         // how it ended; valid once exited is closed
}

// errEnded says that a child ended before it was ready.
var errEnded = errors.New("it ended before it was ready")

// start returns when the child has printed its first line, which is decoded into ready. On error the child is gone.
func (p *process) start(ctx context.Context, ready any) error {
	log, err := os.OpenFile(p.log, os.O_CREATE|os.O_WRONLY|os.O_APPEND, 0o600)
	if err != nil {
		return fmt.Errorf("start %s: %w", p.name, err)
	}
	first := make(chan []byte, 1)
	p.cmd = exec.Command(p.path, p.args...) //nolint:noctx // it outlives ctx, which bounds the start only
	p.cmd.Env, p.cmd.SysProcAttr = p.env, ownGroup()
	out := &firstLine{first: first, rest: log}
	p.cmd.Stdout, p.cmd.Stderr, p.cmd.WaitDelay = out, log, outputMax
	if err := p.cmd.Start(); err != nil {
		p.cmd = nil
		return fmt.Errorf("start %s: %w", p.name, errors.Join(err, log.Close()))
	}
	p.exited = make(chan struct{})
	go p.watch(out, log)
	select {
	case line := <-first:
		if err = json.Unmarshal(line, ready); err == nil {
			return nil
		}
		if len(line) == 0 {
			err = errEnded
		} else {
			err = fmt.Errorf("first line %q is not what was expected: %w", line, err)
		}
	case <-ctx.Done():
		err = fmt.Errorf("it did not say that it is ready: %w", ctx.Err())
	}
	p.kill()
	return fmt.Errorf("start %s: %w\n%s", p.name, err, p.tail())
}

// outputMax bounds how long the output of a child that has ended is waited for: a child of its own may hold it open.
const outputMax = time.Second

// watch waits for the end of the child.
func (p *process) watch(out *firstLine, log *os.File) {
	defer close(p.exited)
	p.err = p.cmd.Wait()
	out.end()
	p.err = errors.Join(p.err, log.Close())
}

// firstLine hands over the first line that is written to it and passes on the rest.
type firstLine struct {
	first chan<- []byte // has room for one
	rest  io.Writer
	line  []byte
	done  bool
}

// Write implements io.Writer.
func (f *firstLine) Write(p []byte) (int, error) {
	if f.done {
		return f.rest.Write(p)
	}
	line, rest, whole := bytes.Cut(p, []byte("\n"))
	f.line = append(f.line, line...)
	if !whole {
		return len(p), nil
	}
	f.end()
	n, err := f.rest.Write(rest)
	return len(p) - len(rest) + n, err
}

// end hands over what there is of the first line, once.
func (f *firstLine) end() {
	if !f.done {
		f.done = true
		f.first <- f.line
	}
}

// running reports whether the child was started and has not ended.
func (p *process) running() bool {
	if p.cmd == nil {
		return false
	}
	select {
	case <-p.exited:
		return false
	default:
		return true
	}
}

// kill ends the child as a power cut would, and waits for it.
func (p *process) kill() { p.end(syscall.SIGKILL, 0) }

// stop asks the child to end and kills it if it is there after the grace period.
func (p *process) stop(grace time.Duration) { p.end(syscall.SIGTERM, grace) }

func (p *process) end(sig syscall.Signal, grace time.Duration) {
	if !p.running() {
		return
	}
	_ = p.cmd.Process.Signal(sig) // an error says that it is gone already
	if sig != syscall.SIGKILL {
		select {
		case <-p.exited:
			return
		case <-time.After(grace):
		}
		_ = p.cmd.Process.Kill() // as above
	}
	<-p.exited
}

// tail is the end of the log, for people who want to know why.
func (p *process) tail() string {
	const linesMax = 12
	data, err := os.ReadFile(p.log)
	if err != nil {
		return "its log cannot be read: " + err.Error()
	}
	lines := strings.Split(strings.TrimSpace(string(data)), "\n")
	if len(lines) == 1 && lines[0] == "" {
		return "its log is empty: " + p.log
	}
	lines = lines[max(0, len(lines)-linesMax):]
	return "the end of its log, " + p.log + ":\n  | " + strings.Join(lines, "\n  | ")
}

// childEnv is our environment without the variables that configure the children.
func childEnv() []string {
	return slices.DeleteFunc(os.Environ(), func(v string) bool {
		return strings.HasPrefix(v, "TXMESH_") || strings.HasPrefix(v, "BANK_")
	})
}
