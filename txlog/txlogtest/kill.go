package txlogtest

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"os"
	"os/exec"
	"slices"
	"strconv"
	"syscall"
	"testing"
	"time"

	"txmesh/txlog"
)

// The environment by which a test binary knows that it is the writing process.
const (
	childDir    = "TXLOGTEST_DIR"
	childRound  = "TXLOGTEST_ROUND"
	childUnsync = "TXLOGTEST_UNSYNC"
)

// Main is for TestMain of a package that uses Child: in the writing process it writes until it is killed, else it
// runs the tests. It does not return.
func Main(m *testing.M, open func(dir string) (txlog.Store, error)) {
	dir := os.Getenv(childDir)
	if dir == "" {
		os.Exit(m.Run())
	}
	if err := writeUntilKilled(dir, open); err != nil {
		fmt.Fprintln(os.Stderr, err)
	}
	os.Exit(3)
}

func writeUntilKilled(dir string, open func(dir string) (txlog.Store, error)) error {
	round, err := strconv.Atoi(os.Getenv(childRound))
	if err != nil {
		return fmt.Errorf("%s: %w", childRound, err)
	}
	s, err := open(dir)
	if err != nil {
		return err
	}
	// Not closed: this process is to die in the midst of it.
	w := Writer{Store: s, Out: os.Stdout, Round: round, Seed: uint64(round), Clock: time.Now,
		Keep: 100 * time.Millisecond, Unsync: os.Getenv(childUnsync) != ""}
	return w.Run(context.Background())
}

// Child is a writing process: this test binary once more. It dies with the test.
type Child struct {
	cmd *exec.Cmd
	Out *bufio.Reader // of the Writer; for a Ledger
}

// StartChild starts a writing process on a directory. With unsync it lies about its syncs. The command before it, if
// any, is one that runs another, like strace.
func StartChild(t *testing.T, dir string, round int, unsync bool, command ...string) *Child {
	t.Helper()
	self, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	command = append(slices.Clone(command), self)
	cmd := exec.CommandContext(t.Context(), command[0], command[1:]...)
	cmd.Env = append(os.Environ(), childDir+"="+dir, childRound+"="+strconv.Itoa(round))
	if unsync {
		cmd.Env = append(cmd.Env, childUnsync+"=1")
	}
	cmd.Stderr = os.Stderr
	cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
	out, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	c := &Child{cmd: cmd, Out: bufio.NewReaderSize(out, 1<<16)}
	t.Cleanup(func() { _ = cmd.Process.Kill() }) // it may be dead already
	return c
}

// Kill sends SIGKILL. What the process has written to Out can still be read.
func (c *Child) Kill() error { return c.cmd.Process.Kill() }

// Wait returns how the process ended: nil if by SIGKILL. Out must have been read to its end.
func (c *Child) Wait() error {
	err := c.cmd.Wait()
	exit, ok := errors.AsType[*exec.ExitError](err)
	if !ok {
		return fmt.Errorf("writing process: %w, want killed", err)
	}
	if ws, ok := exit.Sys().(syscall.WaitStatus); !ok || ws.Signal() != syscall.SIGKILL {
		return fmt.Errorf("writing process: %w, want killed", err)
	}
	return nil
}

// Kills kills a writing process again and again, each time after a random number of acknowledgements, on one
// directory, and checks after each that everything acknowledged is found.
func Kills(t *testing.T, rounds int, open func(dir string) (txlog.Store, error)) {
	dir := t.TempDir()
	rng := rand.New(rand.NewPCG(1, uint64(rounds)))
	var l Ledger
	for round := range rounds {
		c := StartChild(t, dir, round, false)
		until := l.Lines + 1 + rng.IntN(3000)
		if err := l.Read(c.Out, func(n int) bool { return n >= until }); err != nil {
			t.Fatal(err)
		}
		if err := c.Kill(); err != nil {
			t.Fatal(err)
		}
		if err := l.Read(c.Out, nil); err != nil {
			t.Fatal(err)
		}
		if err := c.Wait(); err != nil {
			t.Fatalf("round %d: %v", round, err)
		}
		s, err := open(dir)
		if err != nil {
			t.Fatalf("open after kill %d: %v", round, err)
		}
		found, err := l.Check(t.Context(), s, true)
		if err != nil || len(found.Lost) > 0 {
			t.Fatalf("after kill %d: %d lost (%v ...), %v", round, len(found.Lost), found.Lost[:min(3, len(found.Lost))], err)
		}
		closeStore(t, s)
		t.Logf("kill %d: %d lines, %d syncs, found %d transactions (%d forgotten) and %d rows",
			round, l.Lines, l.Syncs, found.Transactions, found.Forgotten, found.Rows)
	}
}
