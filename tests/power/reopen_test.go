//go:build power

package power

import (
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"txmesh/txlog/txlogtest"
)

const reopenDir = "POWER_REOPEN_DIR"

// What a killed process wrote and did not sync is in the page cache, and the next one reads it as if it were on the
// disk. It must be there before anything is done by it. The manifest is the worst: a process killed between writing
// down a compaction and syncing that leaves one that no longer names the old tables. Badger removes these when it
// opens, and a power cut would bring the old manifest back without them. ext4 most often hides this, since Badger
// also truncates the manifest to its length, which queues its last block; so the test looks at the order of calls.
func TestWhatAKilledProcessWroteIsSyncedBeforeBadgerOpensIt(t *testing.T) {
	if dir := os.Getenv(reopenDir); dir != "" {
		s, err := open(dir)
		if err != nil {
			t.Fatal(err)
		}
		if err := s.Close(); err != nil {
			t.Fatal(err)
		}
		return
	}
	strace, err := exec.LookPath("strace")
	if err != nil {
		t.Fatalf("%v; install strace", err)
	}
	dir := filepath.Join(t.TempDir(), "store")
	var l txlogtest.Ledger
	c := txlogtest.StartChild(t, dir, 0, false)
	if err := l.Read(c.Out, func(n int) bool { return n == 1500 }); err != nil {
		t.Fatal(err)
	}
	killAndDrain(t, c, &l)
	files := append(filled(t, glob(t, filepath.Join(dir, "*.mem"))), filepath.Join(dir, "MANIFEST"))

	calls := filepath.Join(t.TempDir(), "calls")
	cmd := exec.CommandContext(t.Context(), strace, "-f", "-qq", "-y", "-s", "4096", "-o", calls, "-e", "trace=fsync,fadvise64,openat",
		os.Args[0], "-test.run=^"+t.Name()+"$")
	cmd.Env = append(os.Environ(), reopenDir+"="+dir)
	if out, err := cmd.CombinedOutput(); err != nil {
		t.Fatalf("process that opens the store: %v: %s", err, out)
	}
	b, err := os.ReadFile(calls)
	if err != nil {
		t.Fatal(err)
	}
	lines := strings.Split(string(b), "\n")
	for _, f := range files {
		synced := find(lines, "fsync(", f+">")
		dropped := find(lines, "fadvise64(", f+">") // else it may be what a disk that failed did not take
		opened := find(lines, "openat(", `"`+f+`", O_RDWR`)
		if opened == len(lines) || synced > dropped || dropped > opened {
			t.Errorf("%s: synced by call %d, dropped from the cache by call %d, opened to write by call %d of %d; want this order",
				filepath.Base(f), synced, dropped, opened, len(lines))
		}
	}
}

// filled returns the files that hold something.
func filled(t *testing.T, paths []string) (out []string) {
	t.Helper()
	for _, p := range paths {
		st, err := os.Stat(p)
		if err != nil {
			t.Fatal(err)
		}
		if st.Size() > 0 {
			out = append(out, p)
		}
	}
	return out
}

// find returns the first line that has both parts, or how many there are.
func find(lines []string, call, arg string) int {
	for i, line := range lines {
		if strings.Contains(line, call) && strings.Contains(line, arg) {
			return i
		}
	}
	return len(lines)
}
