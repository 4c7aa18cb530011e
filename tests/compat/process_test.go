package compat

import (
	"bufio"
	"encoding/json"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"syscall"
	"testing"
	"time"
)

// readyMax is how long a child may take to come up. This machine may be busy with other things.
const readyMax = time.Minute

// serve starts a child that says on its first line of output, in JSON, where it listens, reads that into ready and
// kills the child when the test ends. Of a test that failed it shows what the child wrote.
func serve(t *testing.T, name string, cmd *exec.Cmd, ready any) {
	t.Helper()
	log, err := os.Create(filepath.Join(t.TempDir(), "log"))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { log.Close(); show(t, name, log.Name()) })
	out, in, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	defer out.Close()
	cmd.Stdout, cmd.Stderr = in, log
	begin(t, name, cmd)
	in.Close()
	if err := out.SetReadDeadline(time.Now().Add(readyMax)); err != nil {
		t.Fatal(err)
	}
	line, err := bufio.NewReader(out).ReadBytes('\n')
	if err == nil {
		err = json.Unmarshal(line, ready)
	}
	if err != nil {
		t.Fatalf("start %s: %v; first line %q", name, err, line)
	}
}

// begin starts a child that ends with the test.
func begin(t *testing.T, name string, cmd *exec.Cmd) {
	t.Helper()
	cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true, Pdeathsig: syscall.SIGKILL}
	if err := cmd.Start(); err != nil {
		t.Fatalf("start %s: %v", name, err)
	}
	t.Cleanup(func() {
		_ = syscall.Kill(-cmd.Process.Pid, syscall.SIGKILL) // it may be gone
		_ = cmd.Wait()                                      // it was killed
	})
}

func show(t *testing.T, name, file string) {
	if !t.Failed() {
		return
	}
	data, err := os.ReadFile(file)
	if err != nil {
		t.Error(err)
		return
	}
	const tail = 8 << 10
	t.Logf("--- %s\n%s", name, data[max(0, len(data)-tail):])
}

// sidecar is where the door for clients of DTM is.
type sidecar struct {
	DTM string `json:"dtm"`
}

// url is what a client of DTM is told.
func (s sidecar) url() string { return "http://" + s.DTM + "/api/dtmsvr" }

// startSidecar builds the sidecar of this tree and starts it alone, as the coordinator that clients of DTM look for.
func startSidecar(t *testing.T) sidecar {
	t.Helper()
	bin := filepath.Join(t.TempDir(), "txmesh-sidecar")
	build := exec.Command("go", "build", "-o", bin, "./cmd/txmesh-sidecar")
	build.Dir = filepath.Join("..", "..")
	if out, err := build.CombinedOutput(); err != nil {
		t.Fatalf("build the sidecar: %v\n%s", err, out)
	}
	var s sidecar
	const free = "127.0.0.1:0"
	serve(t, "sidecar", exec.Command(bin, "--dtm", free, "--api", free, "--peer", free, "--data-dir", t.TempDir()), &s)
	if s.DTM == "" {
		t.Fatal("the ready line of the sidecar names no address for dtm")
	}
	return s
}

// status is how a transaction stands, asked as a client of DTM asks.
func (s sidecar) status(t *testing.T, gid string) string {
	t.Helper()
	var reply struct {
		Transaction struct {
			Status string `json:"status"`
		} `json:"transaction"`
	}
	getJSON(t, fmt.Sprintf("%s/query?gid=%s", s.url(), gid), &reply)
	return reply.Transaction.Status
}

// endMax is how long a transaction may take to end.
const endMax = 30 * time.Second

// end waits until the transaction has ended and says how.
func (s sidecar) end(t *testing.T, gid string) string {
	t.Helper()
	deadline := time.Now().Add(endMax)
	for {
		status := s.status(t, gid)
		if status == "succeed" || status == "failed" {
			return status
		}
		if time.Now().After(deadline) {
			t.Fatalf("transaction %s is %s after %v", gid, status, endMax)
		}
		time.Sleep(20 * time.Millisecond)
	}
}
