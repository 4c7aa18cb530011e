// Package processes starts the programs under test as processes of their own, and kills them. It knows nothing of what
// they do but that they say on a line of JSON when they are ready. Start at Process.
package processes

import (
	"bufio"
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"strings"
	"syscall"
	"time"
)

// Process is a child that says on its first line of output, in JSON, that it is ready. The rest goes to its log. It is
// used by one goroutine at a time.
type Process struct {
	Name string
	Path string
	Args []string
	Env  []string // beside that of the test run
	Log  string   // file
	UID  uint32   // user and group; 0: ours
	// On runs what starts the child, on the thread of the host that it is to live on; nil: right here.
	On func(start func() error) error

	cmd    *exec.Cmd
	exited chan struct{} // closed when the child is gone and its output is in the log
	err    error         // how it ended; valid once exited is closed
}

// ReadyMax is how long a child may take to come up. This machine may be busy with other things.
const ReadyMax = 30 * time.Second

// Start returns when the child is ready.
func (p *Process) Start(ready any) error {
	log, err := os.OpenFile(p.Log, os.O_CREATE|os.O_WRONLY|os.O_APPEND, 0o600)
	if err != nil {
		return err
	}
	p.cmd = exec.Command(p.Path, p.Args...) //nolint:noctx // it lives until Kill
	p.cmd.Env, p.cmd.Stderr = append(Environ(), p.Env...), log
	p.cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true, Pdeathsig: syscall.SIGKILL}
	if p.UID != 0 {
		p.cmd.SysProcAttr.Credential = &syscall.Credential{Uid: p.UID, Gid: p.UID}
	}
	stdout, err := p.cmd.StdoutPipe()
	if err == nil {
		err = p.launch()
	}
	if err != nil {
		p.cmd = nil
		return errors.Join(fmt.Errorf("start %s: %w", p.Name, err), log.Close())
	}
	p.exited = make(chan struct{})
	first := make(chan []byte, 1)
	go p.watch(stdout, log, first)
	var line []byte
	select {
	case line = <-first:
		if len(bytes.TrimSpace(line)) == 0 {
			err = errors.New("it ended before it was ready")
		} else if err = json.Unmarshal(line, ready); err == nil {
			return nil
		}
	case <-time.After(ReadyMax):
		err = fmt.Errorf("it was not ready within %v", ReadyMax)
	}
	p.Kill()
	return fmt.Errorf("start %s: %w; first line %q; %w\n%s", p.Name, err, line, p.err, p.Tail())
}

func (p *Process) launch() error {
	if p.On != nil {
		return p.On(p.cmd.Start)
	}
	return p.cmd.Start()
}

func (p *Process) watch(stdout io.Reader, log *os.File, first chan<- []byte) {
	defer close(p.exited)
	in := bufio.NewReader(stdout)
	line, err := in.ReadBytes('\n')
	first <- line
	if err == nil {
		_, _ = io.Copy(log, in) // ends with the child
	}
	p.err = errors.Join(p.cmd.Wait(), log.Close())
}

// Running reports whether the child lives.
func (p *Process) Running() bool {
	if p == nil || p.cmd == nil {
		return false
	}
	select {
	case <-p.exited:
		return false
	default:
		return true
	}
}

// Kill ends the child as the end of the world would, and waits for it.
func (p *Process) Kill() {
	if p.Running() {
		_ = p.cmd.Process.Kill() // it may have ended meanwhile
		<-p.exited
	}
}

// Term asks the child to end.
func (p *Process) Term() { _ = p.cmd.Process.Signal(syscall.SIGTERM) }

// End waits for the child and returns its exit status.
func (p *Process) End(within time.Duration) (int, error) {
	select {
	case <-p.exited:
		return p.cmd.ProcessState.ExitCode(), nil
	case <-time.After(within):
		return 0, fmt.Errorf("%s has not ended within %v\n%s", p.Name, within, p.Tail())
	}
}

// Output is all that the child has logged.
func (p *Process) Output() string {
	data, err := os.ReadFile(p.Log)
	if err != nil {
		return err.Error()
	}
	return string(data)
}

// Tail is the end of what the child has logged, for messages.
func (p *Process) Tail() string {
	const linesMax = 30
	lines := strings.Split(strings.TrimSpace(p.Output()), "\n")
	return "--- " + p.Name + "\n" + strings.Join(lines[max(0, len(lines)-linesMax):], "\n")
}

// Environ is ours without what would configure the children.
func Environ() []string {
	var env []string
	for _, v := range os.Environ() {
		if !strings.HasPrefix(v, "TXMESH_") && !strings.HasPrefix(v, "BANK_") {
			env = append(env, v)
		}
	}
	return env
}

// Pause stops the child as it stands, until Continue.
func (p *Process) Pause() { _ = p.cmd.Process.Signal(syscall.SIGSTOP) }

// Continue lets a child that is paused go on.
func (p *Process) Continue() { _ = p.cmd.Process.Signal(syscall.SIGCONT) }

// PID is the child's, while it runs.
func (p *Process) PID() int { return p.cmd.Process.Pid }

// Err is how the child ended. It is for a child that does not run.
func (p *Process) Err() error { return p.err }
