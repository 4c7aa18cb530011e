package databases

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strings"
	"syscall"
	"testing"
	"time"
)

// Etcd is a cluster of real members of etcd, each a process with the durable defaults, in a folder of its own and on
// free ports of the loopback. The test that started it may stop, kill and start its members; it is not for many
// goroutines. It ends with the test.
type Etcd struct {
	bin     string
	args    []string
	members []*member
}

type member struct {
	name         string
	client, peer string // URLs
	dir          string
	cmd          *exec.Cmd
	exited       chan struct{}
}

// StartEtcd starts a cluster with so many members, and with more flags if any, and waits until all of them are healthy.
// A test without a server is skipped.
func StartEtcd(tb testing.TB, members int, args ...string) *Etcd {
	tb.Helper()
	bin, err := findEtcd()
	if errors.Is(err, os.ErrNotExist) {
		tb.Skip("etcd is not on this machine: make etcd builds it, with modules from the network")
	}
	if err != nil {
		tb.Fatal(err)
	}
	const tries = 3 // another process may take a free port first
	for range tries {
		c := &Etcd{bin: bin, args: args}
		if err = c.start(members); err == nil {
			tb.Cleanup(c.close)
			return c
		}
		c.close()
	}
	tb.Fatal(err)
	return nil
}

func (c *Etcd) start(members int) error {
	for i := range members {
		m := &member{name: fmt.Sprintf("m%d", i)}
		for _, address := range []*string{&m.client, &m.peer} {
			port, err := freePort()
			if err != nil {
				return err
			}
			*address = "http://127.0.0.1:" + port
		}
		var err error
		if m.dir, err = os.MkdirTemp("", "txmesh-etcd-"); err != nil {
			return err
		}
		c.members = append(c.members, m)
	}
	for i := range c.members {
		if err := c.launch(i); err != nil {
			return err
		}
	}
	for i := range c.members {
		if err := c.Await(i); err != nil {
			return err
		}
	}
	return nil
}

// Endpoints returns the host:port of all members for clients.
func (c *Etcd) Endpoints() []string {
	var out []string
	for _, m := range c.members {
		out = append(out, strings.TrimPrefix(m.client, "http://"))
	}
	return out
}

// Kill kills a member with SIGKILL and waits until it is gone.
func (c *Etcd) Kill(i int) error { return c.end(i, syscall.SIGKILL) }

// Stop asks a member to end and waits until it is gone.
func (c *Etcd) Stop(i int) error { return c.end(i, syscall.SIGTERM) }

func (c *Etcd) end(i int, s syscall.Signal) error {
	m := c.members[i]
	if err := m.cmd.Process.Signal(s); err != nil {
		return fmt.Errorf("end member %d: %w", i, err)
	}
	<-m.exited
	return nil
}

// Pause halts a member with SIGSTOP: its connections stay open, and nothing answers.
func (c *Etcd) Pause(i int) error {
	pid := c.members[i].cmd.Process.Pid
	if err := syscall.Kill(pid, syscall.SIGSTOP); err != nil {
		return err
	}
	for deadline := time.Now().Add(readyMax); ; time.Sleep(time.Millisecond) {
		stat, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
		if err != nil {
			return err
		}
		if _, state, ok := strings.Cut(string(stat), ") "); ok && strings.HasPrefix(state, "T") {
			return nil
		}
		if time.Now().After(deadline) {
			return fmt.Errorf("member %d was not stopped within %v", i, readyMax)
		}
	}
}

// Resume ends a Pause.
func (c *Etcd) Resume(i int) error { return c.members[i].cmd.Process.Signal(syscall.SIGCONT) }

// Restart starts a member again that was killed or stopped, with its data. It does not wait; Await does.
func (c *Etcd) Restart(i int) error { return c.launch(i) }

func (c *Etcd) launch(i int) error {
	m := c.members[i]
	var cluster []string
	for _, other := range c.members {
		cluster = append(cluster, other.name+"="+other.peer)
	}
	args := append([]string{c.bin, "--name=" + m.name, "--data-dir=" + m.dir + "/data",
		"--listen-client-urls=" + m.client, "--advertise-client-urls=" + m.client,
		"--listen-peer-urls=" + m.peer, "--initial-advertise-peer-urls=" + m.peer,
		"--initial-cluster=" + strings.Join(cluster, ","), "--initial-cluster-token=" + c.members[0].dir, "--log-level=warn"}, c.args...)
	log, err := os.OpenFile(m.dir+"/log", os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o600)
	if err != nil {
		return err
	}
	defer log.Close()
	cmd := exec.CommandContext(context.Background(), args[0], args[1:]...) // it lives until close
	cmd.Stdout, cmd.Stderr = log, log
	cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
	if err := cmd.Start(); err != nil {
		return fmt.Errorf("start member %d: %w", i, err)
	}
	exited := make(chan struct{})
	m.cmd, m.exited = cmd, exited
	go func() {
		defer close(exited)
		_ = cmd.Wait() // it is killed in the end, which is an error here
	}()
	return nil
}

// Await returns when a member says that it is healthy, which needs a leader.
func (c *Etcd) Await(i int) error {
	m := c.members[i]
	ctx, stop := context.WithTimeout(context.Background(), readyMax)
	defer stop()
	const pause = 20 * time.Millisecond
	for {
		err := healthy(ctx, m.client)
		if err == nil {
			return nil
		}
		select {
		case <-m.exited:
			text, _ := os.ReadFile(m.dir + "/log") // without it, the error alone must do
			return fmt.Errorf("member %d has ended before it was ready: %w\n%s", i, err, text)
		case <-ctx.Done():
			return fmt.Errorf("member %d was not ready within %v: %w", i, readyMax, err)
		case <-time.After(pause):
		}
	}
}

func healthy(ctx context.Context, url string) error {
	ctx, cancel := context.WithTimeout(ctx, 5*time.Second)
	defer cancel()
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, url+"/health", nil)
	if err != nil {
		return err
	}
	r, err := http.DefaultClient.Do(req)
	if err != nil {
		return err
	}
	defer r.Body.Close()
	if r.StatusCode != http.StatusOK {
		return fmt.Errorf("%s/health: %s", url, r.Status)
	}
	return nil
}

func (c *Etcd) close() {
	for _, m := range c.members {
		if m.cmd != nil {
			_ = m.cmd.Process.Kill() // it may have ended already
			<-m.exited
		}
		_ = os.RemoveAll(m.dir) // nobody uses it any more
	}
}

// etcdPath returns where the source of the server is, and where its binary belongs: another one for each release.
func etcdPath() (source, bin string, err error) {
	_, here, _, ok := runtime.Caller(0)
	if !ok {
		return "", "", errors.New("find etcd: the binary does not know where its source is")
	}
	source = filepath.Join(filepath.Dir(here), "..", "etcd")
	hash := sha256.New()
	for _, name := range []string{"main.go", "go.mod", "go.sum"} {
		text, err := os.ReadFile(filepath.Join(source, name))
		if err != nil {
			return "", "", fmt.Errorf("find etcd: %w", err)
		}
		hash.Write(text)
	}
	cache, err := os.UserCacheDir()
	if err != nil {
		return "", "", fmt.Errorf("find etcd: %w", err)
	}
	return source, filepath.Join(cache, "txmesh", "etcd-"+hex.EncodeToString(hash.Sum(nil)[:8])), nil
}

// findEtcd returns the binary that EtcdBinary has built, TXMESH_ETCD if that is set, or an error that wraps os.ErrNotExist.
func findEtcd() (string, error) {
	if bin := os.Getenv("TXMESH_ETCD"); bin != "" {
		return bin, nil
	}
	_, bin, err := etcdPath()
	if err != nil {
		return "", err
	}
	_, err = os.Stat(bin)
	return bin, err
}

// EtcdBinary returns the server, which it builds from the module tests/etcd if it must: that takes minutes, and the network.
func EtcdBinary() (string, error) {
	bin, err := findEtcd()
	if !errors.Is(err, os.ErrNotExist) {
		return bin, err
	}
	source, bin, err := etcdPath()
	if err != nil {
		return "", err
	}
	if err := os.MkdirAll(filepath.Dir(bin), 0o755); err != nil {
		return "", fmt.Errorf("build etcd: %w", err)
	}
	made := fmt.Sprintf("%s.%d", bin, os.Getpid())
	c := exec.CommandContext(context.Background(), "go", "build", "-trimpath", "-o", made, ".")
	c.Dir, c.Env = source, append(os.Environ(), "GOFLAGS=", "GOWORK=off")
	if out, err := c.CombinedOutput(); err != nil {
		return "", fmt.Errorf("build etcd in %s: %w\n%s", source, err, out)
	}
	return bin, os.Rename(made, bin)
}
