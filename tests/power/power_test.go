//go:build power

package power

import (
	"math/rand/v2"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"testing"

	"txmesh/txlog"
	"txmesh/txlog/badger"
	"txmesh/txlog/txlogtest"
)

func TestMain(m *testing.M) { txlogtest.Main(m, open) }

// open opens a store whose logs and segments change often.
func open(dir string) (txlog.Store, error) {
	return badger.Open(badger.Options{
		Dir: dir, MemtableBytes: 1 << 20, SegmentBytes: 1 << 20, ReserveBytes: -1, RetainBytes: 4 << 20,
	})
}

const cuts = 20

func TestPowerCutsLoseNothingThatWasSynced(t *testing.T) {
	lost := cutPower(t, false)
	if lost > 0 {
		t.Errorf("%d acknowledged writes are lost", lost)
	}
}

// The proof that the test above would see a loss: its writer says sync and does not ask for it.
func TestPowerCutsAreSeenWhenTheSyncIsTakenOut(t *testing.T) {
	lost := cutPower(t, true)
	if lost == 0 {
		t.Errorf("nothing is lost in %d cuts without a sync: the cut cuts nothing", cuts)
	}
}

func cutPower(t *testing.T, unsync bool) (lost int) {
	d := newDisk(t, 512<<20)
	dir := filepath.Join(d.mount, "store")
	rng := rand.New(rand.NewPCG(2, 20))
	before := 0
	for round := range cuts {
		var l txlogtest.Ledger // of this round: earlier ones may be trimmed away, or lost on purpose
		c := txlogtest.StartChild(t, dir, round, unsync)
		if err := l.Read(c.Out, worstMoment(t, &l, dir, 2500+rng.IntN(1000))); err != nil {
			t.Fatal(err)
		}
		l.Cut()
		if err := d.cut(); err != nil {
			t.Fatal(err)
		}
		if err := c.Kill(); err != nil {
			t.Fatal(err)
		}
		if err := l.Read(c.Out, nil); err != nil {
			t.Fatal(err)
		}
		_ = c.Wait() // killed, or dead of a bus error on the disk that is gone
		d.off(t)
		d.on(t)
		logs, last := begun(t, dir)
		if !unsync && (logs < 3 || last-before < 3) {
			t.Errorf("cut %d: %d logs and %d segments begun, want 3 of each", round, logs, last-before)
		}
		before = last
		t.Logf("cut %d: %d logs begun, segment %d", round, logs, last)
		lost += check(t, &l, dir, round, unsync)
	}
	return lost
}

// worstMoment stops the reader after so many lines, for every other cut when a log has just been begun and a sync
// acknowledged since: then the former log may not have become a table, and only a sync of its own keeps it.
func worstMoment(t *testing.T, l *txlogtest.Ledger, dir string, until int) func(lines int) bool {
	logs, syncs := -1, -1
	return func(n int) bool {
		switch {
		case n < until:
			return false
		case until%2 == 0:
			return true
		case logs < 0:
			logs, _ = begun(t, dir)
			return false
		case syncs < 0:
			if now, _ := begun(t, dir); now > logs {
				syncs = l.Syncs
			}
			return false
		}
		return l.Syncs > syncs
	}
}

// check opens the store after a cut and compares.
func check(t *testing.T, l *txlogtest.Ledger, dir string, round int, unsync bool) (lost int) {
	t.Helper()
	s, err := open(dir)
	if err != nil {
		t.Fatalf("open after cut %d: %v", round, err)
	}
	defer func() {
		if err := s.Close(); err != nil {
			t.Errorf("close after cut %d: %v", round, err)
		}
	}()
	found, err := l.Check(t.Context(), s, false)
	if err != nil {
		t.Fatalf("after cut %d: %v", round, err)
	}
	t.Logf("cut %d: %d lines, %d syncs; found %d transactions (%d forgotten by trim), %d rows; lost %d",
		round, l.Lines, l.Syncs, found.Transactions, found.Forgotten, found.Rows, len(found.Lost))
	if !unsync && len(found.Lost) > 0 {
		t.Errorf("cut %d lost %v ...", round, found.Lost[:min(5, len(found.Lost))])
	}
	if !unsync && found.Forgotten == 0 {
		t.Errorf("cut %d: trim forgot nothing", round)
	}
	return len(found.Lost)
}

// begun returns how many logs the dead process began after its first, and the number of its last segment. A store
// that was closed has no logs, so they are counted from 1.
func begun(t *testing.T, dir string) (logs, segment int) {
	t.Helper()
	for _, f := range glob(t, filepath.Join(dir, "*.mem")) {
		if st, err := os.Stat(f); err == nil && st.Size() > 0 {
			logs = max(logs, number(t, f)-1)
		}
	}
	for _, f := range glob(t, filepath.Join(dir, "values", "*.val")) {
		segment = max(segment, number(t, f))
	}
	return logs, segment
}

func glob(t *testing.T, pattern string) []string {
	t.Helper()
	files, err := filepath.Glob(pattern)
	if err != nil {
		t.Fatal(err)
	}
	return files
}

// number returns the number that a file is named by.
func number(t *testing.T, path string) int {
	t.Helper()
	name := filepath.Base(path)
	n, err := strconv.Atoi(strings.TrimSuffix(name, filepath.Ext(name)))
	if err != nil {
		t.Fatal(err)
	}
	return n
}
