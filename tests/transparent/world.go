//go:build linux

package transparent

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"txmesh/sidecar"
	"txmesh/tests/netns"
	"txmesh/tests/processes"
)

// UID is the user that the sidecar runs as, and whose connections are left alone.
const UID = 7337

// Options says how a host differs from the usual one.
type Options struct {
	Config  []string // further flags of the sidecar
	Rules   []string // further flags of `txmesh-sidecar redirect`
	Exclude []int    // ports that connections go to directly
	UID     uint32   // of the sidecar; 0: UID
	Ours    bool     // the sidecar runs as the user of the test, which must be excluded otherwise
}

// World is a host whose TCP connections all pass its sidecar, those on the loopback device too. Clients and servers on it
// know nothing of that. It ends with the test.
type World struct {
	*netns.Host
	sidecar.Addresses
	Dir     string // of the sidecar
	Sidecar *processes.Process

	tb     testing.TB
	binary string
}

// Run runs a command on a host of its own, as Start makes it with the key detect set to all: what speaks HTTP passes the
// Gate, all else passes as bytes.
func Run(tb testing.TB, cmd *exec.Cmd) error {
	tb.Helper()
	return Start(tb, Options{Config: []string{"--detect", "all"}}).Run(cmd)
}

// Start makes the host. It skips the test where it has not the right to.
func Start(tb testing.TB, o Options) *World {
	tb.Helper()
	return On(tb, netns.New(tb, 1).Host("application"), o)
}

// On is Start on a host that is there already.
func On(tb testing.TB, h *netns.Host, o Options) *World {
	tb.Helper()
	w := &World{Host: h, tb: tb, binary: program(tb), Dir: filepath.Join(tb.TempDir(), "sidecar")}
	if o.UID == 0 && !o.Ours {
		o.UID = UID
	}
	if err := errors.Join(os.MkdirAll(w.Dir, 0o755), os.Chown(w.Dir, int(o.UID), int(o.UID)), open(w.Dir)); err != nil {
		tb.Fatal(err)
	}
	w.Sidecar = &processes.Process{Name: "sidecar", Path: w.binary, On: h.Do, UID: o.UID, Log: w.Dir + ".log", Args: append([]string{
		"--service", "test/application", "--app", "127.0.0.1:9", "--data-dir", filepath.Join(w.Dir, "data"), "--grace-period", "100ms",
		"--inbound", "127.0.0.1:0", "--outbound", "off", "--api", "127.0.0.1:0", "--peer", ":0", "--transparent-outbound", ":0",
		"--transparent-inbound", ":0", "--log-format", "text"}, o.Config...)}
	if err := w.Sidecar.Start(&w.Addresses); err != nil {
		tb.Fatal(err)
	}
	tb.Cleanup(func() {
		w.Sidecar.Kill()
		if tb.Failed() {
			tb.Log(w.Sidecar.Tail())
		}
	})
	args := []string{"redirect", "--loopback", "--outbound-port", portOf(w.TransparentOutbound), "--inbound-port", portOf(w.TransparentInbound),
		"--exclude-inbound", portOf(w.Peer), "--exclude-outbound", portOf(w.API) + "," + portOf(w.Peer)}
	for _, p := range o.Exclude {
		args = append(args, "--exclude-outbound", strconv.Itoa(p))
	}
	w.Redirect(append(args, o.Rules...)...)
	return w
}

// open lets the sidecar's user reach a folder.
func open(dir string) error {
	for d := filepath.Dir(dir); d != os.TempDir() && d != "/" && d != "."; d = filepath.Dir(d) {
		if err := os.Chmod(d, 0o755); err != nil {
			return err
		}
	}
	return nil
}

func portOf(address string) string {
	_, port, err := net.SplitHostPort(address)
	if err != nil {
		panic("transparent: the sidecar listens on " + address)
	}
	return port
}

// Redirect runs the program that writes the rules.
func (w *World) Redirect(args ...string) {
	w.tb.Helper()
	out, err := w.Output(exec.CommandContext(w.tb.Context(), w.binary, args...))
	if err != nil {
		w.tb.Fatalf("%v: %v\n%s", args, err, out)
	}
}

// Run runs a command on the host and waits for it.
func (w *World) Run(cmd *exec.Cmd) error {
	if cmd.SysProcAttr == nil {
		cmd.SysProcAttr = new(syscall.SysProcAttr)
	}
	cmd.SysProcAttr.Pdeathsig = syscall.SIGKILL
	if err := w.Do(cmd.Start); err != nil {
		return err
	}
	return cmd.Wait()
}

// Output is Run with what the command says.
func (w *World) Output(cmd *exec.Cmd) (string, error) {
	var out strings.Builder
	cmd.Stdout, cmd.Stderr = &out, &out
	err := w.Run(cmd)
	return out.String(), err
}

// Client is an application on the host that calls others by HTTP.
func (w *World) Client() *http.Client {
	return &http.Client{Transport: &http.Transport{DialContext: w.DialContext, DisableKeepAlives: true}, Timeout: 30 * time.Second}
}

// Metric is a series of the sidecar, named with its labels as Prometheus writes it; one that is not there fails the test.
func (w *World) Metric(series string) float64 {
	w.tb.Helper()
	req, err := http.NewRequestWithContext(w.tb.Context(), http.MethodGet, "http://"+w.API+"/metrics", nil)
	if err != nil {
		w.tb.Fatal(err)
	}
	res, err := w.Client().Do(req)
	if err != nil {
		w.tb.Fatal(err)
	}
	defer res.Body.Close()
	for in := bufio.NewScanner(res.Body); in.Scan(); {
		if value, ok := strings.CutPrefix(in.Text(), series+" "); ok {
			f, err := strconv.ParseFloat(value, 64)
			if err != nil {
				w.tb.Fatal(err)
			}
			return f
		}
	}
	w.tb.Fatalf("there is no series %s", series)
	return 0
}

// Await waits until a series has reached a value: metrics lie a second behind.
func (w *World) Await(series string, least float64) {
	w.tb.Helper()
	ctx, cancel := context.WithTimeout(w.tb.Context(), 10*time.Second)
	defer cancel()
	tick := time.NewTicker(100 * time.Millisecond)
	defer tick.Stop()
	for {
		got := w.Metric(series)
		if got >= least {
			return
		}
		select {
		case <-tick.C:
		case <-ctx.Done():
			w.tb.Fatalf("%s is %v, want at least %v", series, got, least)
		}
	}
}

// program builds the sidecar once for each test.
func program(tb testing.TB) string {
	tb.Helper()
	path := filepath.Join(tb.TempDir(), "txmesh-sidecar")
	out, err := exec.CommandContext(tb.Context(), "go", "build", "-o", path, "txmesh/cmd/txmesh-sidecar").CombinedOutput()
	if err == nil {
		err = open(path)
	}
	if err != nil {
		tb.Fatal(fmt.Errorf("build the sidecar: %w\n%s", err, out))
	}
	return path
}
