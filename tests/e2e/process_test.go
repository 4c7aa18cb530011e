package e2e

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
	"sync"
	"syscall"
	"testing"
	"time"

	"txmesh/tests/databases"
)

// process is a child that says on its first line of output, in JSON, that it is ready. The rest goes to its log. It is
// used by one goroutine at a time.
type process struct {
	name string
	path string
	args []string
	log  string // file

	cmd    *exec.Cmd
	exited chan struct{} // closed when the child is gone and its output is in the log
	err    error         // how it ended; valid once exited is closed
}

// readyMax is how long a child may take to come up. This machine may be busy with other things.
const readyMax = 30 * time.Second

// start returns when the child is ready.
func (p *process) start(ready any) error {
	log, err := os.OpenFile(p.log, os.O_CREATE|os.O_WRONLY|os.O_APPEND, 0o600)
	if err != nil {
		return err
	}
	p.cmd = exec.Command(p.path, p.args...)
	p.cmd.Env, p.cmd.Stderr = childEnv(), log
	p.cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true, Pdeathsig: syscall.SIGKILL}
	stdout, err := p.cmd.StdoutPipe()
	if err == nil {
		err = p.cmd.Start()
	}
	if err != nil {
		p.cmd = nil
		return errors.Join(fmt.Errorf("start %s: %w", p.name, err), log.Close())
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
	case <-time.After(readyMax):
		err = fmt.Errorf("it was not ready within %v", readyMax)
	}
	p.kill()
	return fmt.Errorf("start %s: %w; first line %q; %w\n%s", p.name, err, line, p.err, p.tail())
}

func (p *process) watch(stdout io.Reader, log *os.File, first chan<- []byte) {
	defer close(p.exited)
	in := bufio.NewReader(stdout)
	line, err := in.ReadBytes('\n')
	first <- line
	if err == nil {
		_, _ = io.Copy(log, in) // ends with the child
	}
	p.err = errors.Join(p.cmd.Wait(), log.Close())
}

func (p *process) running() bool {
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

// kill ends the child as the end of the world would, and waits for it.
func (p *process) kill() {
	if p.running() {
		_ = p.cmd.Process.Kill() // it may have ended meanwhile
		<-p.exited
	}
}

// term asks the child to end.
func (p *process) term() { _ = p.cmd.Process.Signal(syscall.SIGTERM) }

// end waits for the child and returns its exit status.
func (p *process) end(within time.Duration) (int, error) {
	select {
	case <-p.exited:
		return p.cmd.ProcessState.ExitCode(), nil
	case <-time.After(within):
		return 0, fmt.Errorf("%s has not ended within %v\n%s", p.name, within, p.tail())
	}
}

// output is all that the child has logged.
func (p *process) output() string {
	data, err := os.ReadFile(p.log)
	if err != nil {
		return err.Error()
	}
	return string(data)
}

func (p *process) tail() string {
	const linesMax = 30
	lines := strings.Split(strings.TrimSpace(p.output()), "\n")
	return "--- " + p.name + "\n" + strings.Join(lines[max(0, len(lines)-linesMax):], "\n")
}

// childEnv is ours without what would configure the children.
func childEnv() []string {
	var env []string
	for _, v := range os.Environ() {
		if !strings.HasPrefix(v, "TXMESH_") && !strings.HasPrefix(v, "BANK_") {
			env = append(env, v)
		}
	}
	return env
}

// binaries are the programs under test.
type binaries struct{ dir string }

func (b binaries) sidecar() string     { return b.dir + "/txmesh-sidecar" }
func (b binaries) bank() string        { return b.dir + "/bank" }
func (b binaries) participant() string { return b.dir + "/participant" }

// build builds once for all tests of the run, or takes the sidecar of TXMESH_BIN.
var build = sync.OnceValues(func() (binaries, error) {
	dir := os.Getenv(binEnv)
	programs := []string{"build", "-o", dir, "txmesh/examples/bank", "txmesh/tests/e2e/participant"}
	if given := os.Getenv("TXMESH_BIN"); given == "" {
		programs = append(programs, "txmesh/cmd/txmesh-sidecar")
	} else if err := os.Symlink(given+"/txmesh-sidecar", binaries{dir}.sidecar()); err != nil {
		return binaries{}, err // built elsewhere, to measure coverage
	}
	if out, err := exec.Command("go", programs...).CombinedOutput(); err != nil {
		return binaries{}, fmt.Errorf("go %v: %w\n%s", programs, err, out)
	}
	return binaries{dir}, nil
})

// servers are the databases of the tests that need one.
var servers databases.Set

// binEnv names the directory of what is built.
const binEnv = "E2E_BIN"

func TestMain(m *testing.M) {
	dir, err := os.MkdirTemp("", "txmesh-e2e-")
	if err != nil {
		panic(err)
	}
	if err := os.Setenv(binEnv, dir); err != nil {
		panic(err)
	}
	code := m.Run()
	servers.Close()
	if err := os.RemoveAll(dir); err != nil {
		panic(err)
	}
	os.Exit(code)
}
