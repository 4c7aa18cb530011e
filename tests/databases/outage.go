package databases

import (
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"testing"
)

// Outage disturbs one running database of a set.
type Outage struct {
	tb testing.TB
	k  kind
	db *server
}

// MariaDBOutage returns what disturbs MariaDB. It must have been asked for before.
func (s *Set) MariaDBOutage(tb testing.TB) Outage { return s.outage(tb, mariaDB(s.Durable)) }

// PostgresOutage returns what disturbs PostgreSQL. It must have been asked for before.
func (s *Set) PostgresOutage(tb testing.TB) Outage { return s.outage(tb, postgres(s.Durable)) }

func (s *Set) outage(tb testing.TB, k kind) Outage {
	tb.Helper()
	s.mu.Lock()
	defer s.mu.Unlock()
	db := s.running[k.name]
	if db == nil || db.err != nil {
		tb.Fatalf("%s does not run", k.name)
	}
	return Outage{tb, k, db}
}

// Freeze stops all processes of the database in their tracks. Connections stay.
func (o Outage) Freeze() { o.signal(syscall.SIGSTOP) }

// Thaw lets them go on.
func (o Outage) Thaw() { o.signal(syscall.SIGCONT) }

// Kill ends them without a word.
func (o Outage) Kill() {
	o.tb.Helper()
	o.signal(syscall.SIGKILL)
	<-o.db.exited
}

// Restart starts the database again where it was, after Kill, and returns when it answers.
func (o Outage) Restart() {
	o.tb.Helper()
	if err := o.db.run(o.k); err != nil {
		o.tb.Fatal(err)
	}
}

func (o Outage) signal(sig syscall.Signal) {
	o.tb.Helper()
	parent := o.db.cmd.Process.Pid
	for _, pid := range append([]int{parent}, children(o.tb, parent)...) {
		if err := syscall.Kill(pid, sig); err != nil && err != syscall.ESRCH { // one may have ended just now
			o.tb.Fatal(fmt.Errorf("signal %v to process %d of %s: %w", sig, pid, o.k.name, err))
		}
	}
}

// children returns the processes that have this parent: PostgreSQL has one for each connection.
func children(tb testing.TB, parent int) []int {
	tb.Helper()
	stats, err := filepath.Glob("/proc/[0-9]*/stat")
	if err != nil {
		tb.Fatal(err)
	}
	var out []int
	for _, path := range stats {
		b, err := os.ReadFile(path)
		if err != nil {
			continue // it has ended
		}
		// pid (name) state parent ...; the name may hold anything.
		f := strings.Fields(string(b[strings.LastIndexByte(string(b), ')')+1:]))
		if pid, err := strconv.Atoi(filepath.Base(filepath.Dir(path))); err == nil && len(f) > 1 && f[1] == strconv.Itoa(parent) {
			out = append(out, pid)
		}
	}
	return out
}
