package chaos

import (
	"bufio"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"net"
	"os"
	"os/exec"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	"txmesh/tests/databases"
)

var servers databases.Set

func TestMain(m *testing.M) {
	code := m.Run()
	servers.Close()
	os.Exit(code)
}

// process is a child that is killed and started again. It writes a line when it is ready. It is used by one goroutine at a
// time.
type process struct {
	path  string
	args  []string
	log   string // file
	cmd   *exec.Cmd
	kills int
	down  time.Duration // the longest time from a kill until it was ready again
}

// readyMax is how long a child may take to come up. This machine may be busy with other things.
const readyMax = 30 * time.Second

func (p *process) start() error {
	log, err := os.OpenFile(p.log, os.O_CREATE|os.O_WRONLY|os.O_APPEND, 0o600)
	if err != nil {
		return err
	}
	defer log.Close()
	p.cmd = exec.Command(p.path, p.args...)
	// Without what would configure the sidecar.
	p.cmd.Env = slices.DeleteFunc(os.Environ(), func(v string) bool { return strings.HasPrefix(v, "TXMESH_") })
	p.cmd.Stderr = log
	p.cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
	stdout, err := p.cmd.StdoutPipe()
	if err == nil {
		err = p.cmd.Start()
	}
	if err != nil {
		return err
	}
	late := time.AfterFunc(readyMax, func() { _ = p.cmd.Process.Kill() }) // then the line does not come
	defer late.Stop()
	if _, err := bufio.NewReader(stdout).ReadString('\n'); err != nil {
		return errors.Join(fmt.Errorf("start %s: it was not ready within %v: %w", p.path, readyMax, err), p.kill())
	}
	return nil
}

// kill ends the child as the end of the world would, and waits for it. That it has ended before by itself is an error.
func (p *process) kill() error {
	_ = p.cmd.Process.Kill() // what it ended by tells whether it was this
	err := p.cmd.Wait()
	if status, ok := p.cmd.ProcessState.Sys().(syscall.WaitStatus); ok && status.Signal() == syscall.SIGKILL {
		return nil
	}
	return fmt.Errorf("%s has ended by itself: %w, %v\n%s", p.path, err, p.cmd.ProcessState, p.tail())
}

// again kills the child and starts it anew, after a moment in which nobody is there.
func (p *process) again() error {
	const absentMax = 300 * time.Millisecond
	dead := time.Now()
	if err := p.kill(); err != nil {
		return err
	}
	<-time.After(rand.N(absentMax))
	err := p.start()
	p.kills, p.down = p.kills+1, max(p.down, time.Since(dead))
	return err
}

func (p *process) tail() string {
	const bytesMax = 4000
	log, err := os.ReadFile(p.log)
	if err != nil {
		return err.Error()
	}
	return string(log[max(0, len(log)-bytesMax):])
}

// build puts the programs under test into a folder.
func build(dir string) error {
	out, err := exec.Command("go", "build", "-o", dir+"/", "txmesh/cmd/txmesh-sidecar", "txmesh/tests/chaos/bank").CombinedOutput()
	if err != nil {
		return fmt.Errorf("build: %w\n%s", err, out)
	}
	return nil
}

// freePort is an address that stays the child's while it is down: the kernel takes the ports of callers from higher up.
func freePort() (string, error) {
	const lowest, highest, triesMax = 20000, 29999, 1000
	for range triesMax {
		l, err := net.Listen("tcp", fmt.Sprintf("127.0.0.1:%d", lowest+rand.IntN(highest-lowest+1)))
		if err == nil {
			return l.Addr().String(), l.Close()
		}
	}
	return "", fmt.Errorf("no free port from %d to %d", lowest, highest)
}

// freePorts are different ones.
func freePorts(n int) ([]string, error) {
	var ports []string
	for len(ports) < n {
		port, err := freePort()
		if err != nil {
			return nil, err
		}
		if !strings.Contains(strings.Join(ports, " "), port) {
			ports = append(ports, port)
		}
	}
	return ports, nil
}

// readAll reads a body and closes it.
func readAll(body io.ReadCloser) ([]byte, error) {
	data, err := io.ReadAll(body)
	return data, errors.Join(err, body.Close())
}
