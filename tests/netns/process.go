//go:build linux

package netns

import (
	"bufio"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"slices"
	"strings"
	"sync"
	"syscall"
	"time"
)

// Process is a program on a host, which can be started again and again. Its methods are safe for many goroutines.
type Process struct {
	Name string
	Host *Host
	Path string
	Args []string
	Log  string // file for what it says, of all its lives
	// Ready returns when the program serves, given its first line of output; nil: that line is enough.
	Ready func(line string) error
	// Silent says that no line is to be expected: it only must not have ended when Ready returns.
	Silent bool

	mu     sync.Mutex // guards below
	cmd    *exec.Cmd
	exited chan struct{} // closed when it has ended and its output is in the log
}

// ReadyMax is how long a program may take to come up. This machine may be busy with other things.
const ReadyMax = 60 * time.Second

// Start starts it and returns when it is ready.
func (p *Process) Start() error {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.running() {
		return fmt.Errorf("%s runs already", p.Name)
	}
	line, err := p.launch()
	if err != nil {
		return fmt.Errorf("start %s: %w", p.Name, err)
	}
	var first string
	select {
	case first = <-line:
		if first == "" && !p.Silent {
			err = errors.New("it has ended before it was ready")
		}
	case <-time.After(ReadyMax):
		err = fmt.Errorf("it was not ready within %v", ReadyMax)
	}
	if err == nil && p.Ready != nil {
		err = p.Ready(first)
	}
	if err == nil && !p.running() {
		err = errors.New("it has ended at once")
	}
	if err != nil {
		p.kill()
		return fmt.Errorf("start %s: %w\n%s", p.Name, err, p.Tail())
	}
	return nil
}

// launch starts it and gives its first line, or an empty one.
func (p *Process) launch() (<-chan string, error) {
	log, err := os.OpenFile(p.Log, os.O_CREATE|os.O_WRONLY|os.O_APPEND, 0o600)
	if err != nil {
		return nil, err
	}
	cmd := exec.Command(p.Path, p.Args...)
	// Without what would configure the programs under test.
	cmd.Env = slices.DeleteFunc(os.Environ(), func(v string) bool { return strings.HasPrefix(v, "TXMESH_") })
	cmd.Stderr = log
	cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true, Pdeathsig: syscall.SIGKILL}
	stdout, err := cmd.StdoutPipe()
	if err == nil {
		err = p.Host.Do(cmd.Start)
	}
	if err != nil {
		return nil, errors.Join(err, log.Close())
	}
	line, exited := make(chan string, 1), make(chan struct{})
	if p.Silent {
		line <- ""
	}
	p.cmd, p.exited = cmd, exited
	go func() {
		defer close(exited)
		in := bufio.NewReader(stdout)
		if !p.Silent {
			first, _ := in.ReadString('\n') // it is empty then
			line <- first
		}
		_, _ = io.Copy(log, in) // ends with the process
		_ = cmd.Wait()          // how it ended is in ProcessState
		_ = log.Close()
	}()
	return line, nil
}

func (p *Process) running() bool {
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

// Running tells whether it has not ended. One that is stopped runs.
func (p *Process) Running() bool {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.running()
}

// Kill ends it as the end of the world would, and waits for it. It tells whether it was there to be killed.
func (p *Process) Kill() bool {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.kill()
}

func (p *Process) kill() bool {
	if !p.running() {
		return false
	}
	_ = syscall.Kill(-p.cmd.Process.Pid, syscall.SIGKILL) // it may have ended meanwhile
	<-p.exited
	status, ok := p.cmd.ProcessState.Sys().(syscall.WaitStatus)
	return ok && status.Signal() == syscall.SIGKILL
}

// Signal sends it a signal, such as SIGSTOP, SIGCONT or SIGTERM.
func (p *Process) Signal(s syscall.Signal) error {
	p.mu.Lock()
	defer p.mu.Unlock()
	if !p.running() {
		return fmt.Errorf("signal %v to %s: it does not run", s, p.Name)
	}
	return syscall.Kill(-p.cmd.Process.Pid, s)
}

// Ended waits until it has ended and tells its exit status.
func (p *Process) Ended(within time.Duration) (int, error) {
	p.mu.Lock()
	cmd, exited := p.cmd, p.exited
	p.mu.Unlock()
	select {
	case <-exited:
		return cmd.ProcessState.ExitCode(), nil
	case <-time.After(within):
		return 0, fmt.Errorf("%s has not ended within %v", p.Name, within)
	}
}

// Tail is the last that it has said.
func (p *Process) Tail() string {
	const linesMax = 30
	text, err := os.ReadFile(p.Log)
	if err != nil {
		return err.Error()
	}
	lines := strings.Split(strings.TrimSpace(string(text)), "\n")
	return "--- " + p.Name + "\n" + strings.Join(lines[max(0, len(lines)-linesMax):], "\n")
}
