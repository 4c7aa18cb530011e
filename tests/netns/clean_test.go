//go:build linux

package netns

import (
	"bytes"
	"errors"
	"os"
	"os/exec"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"txmesh/tests/processes"
)

// crashEnv makes this test program the victim of TestNothingIsLeftOfACrash.
const crashEnv = "NETNS_CRASH"

// TestNothingIsLeftOfACrash kills a run of this program that has a host, a disk and a process, with -9, and looks for each
// of them.
func TestNothingIsLeftOfACrash(t *testing.T) {
	if path := os.Getenv(crashEnv); path != "" {
		crash(t, path)
		return
	}
	New(t, 1) // says why not
	dir := t.TempDir() + "/only-here"
	c := exec.CommandContext(t.Context(), os.Args[0], "-test.run=^"+t.Name()+"$", "-test.v")
	c.Env = append(os.Environ(), crashEnv+"="+dir)
	out, err := c.CombinedOutput()
	if err == nil || !bytes.Contains(out, []byte("ready")) {
		t.Fatalf("the victim says %v\n%s", err, out)
	}
	text, err := os.ReadFile(dir + ".pid")
	must(t, err)
	pid, err := strconv.Atoi(strings.TrimSpace(string(text)))
	must(t, err)
	eventually(t, "its process has ended", func() bool { return errors.Is(syscall.Kill(pid, 0), syscall.ESRCH) })
	mounts, err := os.ReadFile("/proc/self/mounts")
	must(t, err)
	if strings.Contains(string(mounts), dir) {
		t.Errorf("the disk is still mounted:\n%s", mounts)
	}
	all, err := os.ReadDir(dir)
	must(t, err)
	if len(all) != 0 {
		t.Errorf("the folder under the disk holds %v", all)
	}
	devices, err := os.ReadFile("/proc/net/dev")
	must(t, err)
	if strings.Contains(string(devices), "wire") {
		t.Errorf("the device is still there:\n%s", devices)
	}
}

func crash(t *testing.T, dir string) {
	h := New(t, 1).Host("a")
	_, err := h.NewDisk(dir, 1<<20)
	must(t, err)
	p := &processes.Process{Name: "left", On: h.Do, Path: "/bin/sh", Log: dir + ".log",
		Args: []string{"-c", "echo here >" + dir + "/file; echo $$ >" + dir + ".pid; echo {}; exec sleep 1000"}}
	must(t, p.Start(&struct{}{}))
	t.Log("ready")
	self, err := os.FindProcess(os.Getpid())
	must(t, err)
	must(t, self.Kill())
	<-time.After(patience)
}
