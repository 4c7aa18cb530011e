//go:build power

package power

import (
	"bufio"
	"fmt"
	"os"
	"os/exec"
	"strings"
	"testing"
	"time"

	"txmesh/txlog"
	"txmesh/txlog/txlogtest"
	"txmesh/txn"
)

func fixedClock() time.Time { return time.Unix(1e9, 0) }

const eioDir = "POWER_EIO_DIR"

// A disk that fails a sync may have dropped the pages: the store must not go on as if a later sync could help. The
// process runs under strace, which lets the hundredth sync fail, and all after it.
func TestAFailedSyncStopsTheStore(t *testing.T) {
	if dir := os.Getenv(eioDir); dir != "" {
		writeUntilRefused(t, dir)
		return
	}
	strace, err := exec.LookPath("strace")
	if err != nil {
		t.Fatalf("%v; install strace", err)
	}
	dir := t.TempDir()
	cmd := exec.Command(strace, "-f", "-qq", "-o", "/dev/null", "-e", "trace=fdatasync",
		"-e", "inject=fdatasync:error=EIO:when=100+", os.Args[0], "-test.run=^TestAFailedSyncStopsTheStore$")
	cmd.Env = append(os.Environ(), eioDir+"="+dir)
	cmd.Stderr = os.Stderr
	out, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	lines := bufio.NewReader(out)
	var l txlogtest.Ledger
	ended := func(int) bool {
		next, err := lines.Peek(len(refusals))
		return err != nil || string(next) == refusals
	}
	if err := l.Read(lines, ended); err != nil {
		t.Fatal(err)
	}
	rest, err := readAll(lines)
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Wait(); err != nil {
		t.Fatalf("writing process: %v: %s", err, rest)
	}
	for _, call := range []string{"append", "put", "accepts", "trim"} {
		if !strings.Contains(rest, refusals+call+" ok") {
			t.Errorf("no refusal of %s in %q", call, rest)
		}
	}
	s, err := open(dir)
	if err != nil {
		t.Fatal(err)
	}
	found, err := l.Check(t.Context(), s, true)
	if err != nil || len(found.Lost) > 0 {
		t.Errorf("lost %v, %v", found.Lost, err)
	}
	t.Logf("%d lines and %d syncs before the failure; found %d transactions", l.Lines, l.Syncs, found.Transactions)
	if err := s.Close(); err != nil {
		t.Error(err)
	}
}

const refusals = "REFUSES "

func readAll(r *bufio.Reader) (string, error) {
	var b strings.Builder
	_, err := r.WriteTo(&b)
	return b.String(), err
}

// writeUntilRefused is the process under strace.
func writeUntilRefused(t *testing.T, dir string) {
	s, err := open(dir)
	if err != nil {
		t.Fatal(err)
	}
	w := txlogtest.Writer{Store: s, Out: os.Stdout, Seed: 1, Clock: fixedClock}
	first := w.Run(t.Context())
	_, trim := s.Trim(t.Context(), fixedClock())
	for call, err := range map[string]error{
		"append":  s.Append(t.Context(), []txlog.Entry{{Tx: "after", Record: txn.Left{}}}, false),
		"put":     s.Table("t").Put(t.Context(), []txlog.Row{{Key: "k"}}, false),
		"accepts": s.Accepts(), "trim": trim,
	} {
		word := "ok"
		if err == nil {
			word = "wrong: no error"
		} else if !strings.Contains(err.Error(), "input/output error") {
			word = "wrong: " + err.Error()
		}
		fmt.Println(refusals + call + " " + word)
	}
	if first == nil || !strings.Contains(first.Error(), "stopped after a failed write") {
		t.Errorf("the writer ended with %v", first)
	}
}
