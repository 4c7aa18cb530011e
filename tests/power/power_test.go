//go:build power

package power

import (
	"flag"
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

// The default fits into two minutes; a hunt takes more: make test-net ARGS='-run LoseNothing -cuts 200 -seed 7'.
var (
	cuts = flag.Int("cuts", 20, "power cuts of each test")
	seed = flag.Uint64("seed", 20, "of the moments of the cuts")
)

func TestPowerCutsLoseNothingThatWasSynced(t *testing.T) {
	sum := cutPower(t, false)
	if lost := len(sum.Lost); lost > 0 {
		t.Errorf("%d acknowledged writes are lost", lost)
	}
	if sum.Before == 0 || sum.reopened == 0 {
		t.Errorf("%d writes acknowledged and %d stores reopened before a cut: nothing was tested", sum.Before, sum.reopened)
	}
}

// The proof that the test above would see a loss: its writer says sync and does not ask for it.
func TestPowerCutsAreSeenWhenTheSyncIsTakenOut(t *testing.T) {
	if sum := cutPower(t, true); len(sum.Lost) == 0 {
		t.Errorf("nothing is lost in %d cuts without a sync: the cut cuts nothing", *cuts)
	}
}

// total is what all cuts add up to.
type total struct {
	txlogtest.Found
	reopened int
}

func cutPower(t *testing.T, unsync bool) (sum total) {
	d := NewDisk(t, 512<<20)
	dir := filepath.Join(d.Mount, "store")
	rng := rand.New(rand.NewPCG(2, *seed))
	last := 0
	for round := range *cuts {
		var l txlogtest.Ledger // of this round: earlier ones may be trimmed away, or lost on purpose
		reopen := !unsync && round%4 == 3
		if reopen {
			sum.reopened++
		}
		cutOnce(t, d, dir, &l, moment{round: 2 * round, until: 2500 + rng.IntN(1000), unsync: unsync, reopen: reopen})
		logs, segment := begun(t, dir)
		if !unsync && !reopen && logs < 3 || !unsync && segment-last < 3 {
			t.Errorf("cut %d: %d logs and %d segments begun, want 3 of each", round, logs, segment-last)
		}
		last = segment
		t.Logf("cut %d: %d logs begun, segment %d, reopened after kill -9: %t", round, logs, segment, reopen)
		sum.add(check(t, &l, dir, round, unsync))
	}
	t.Logf("%d cuts, %d after kill -9 and reopening: %d writes acknowledged before, %d lost; %d during, %d lost; %d after, %d lost",
		*cuts, sum.reopened, sum.Before, len(sum.Lost), sum.During.Writes, sum.During.Lost, sum.After.Writes, sum.After.Lost)
	return sum
}

func (s *total) add(f txlogtest.Found) {
	s.Lost = append(s.Lost, f.Lost...)
	s.Before += f.Before
	s.During.Writes, s.During.Lost = s.During.Writes+f.During.Writes, s.During.Lost+f.During.Lost
	s.After.Writes, s.After.Lost = s.After.Writes+f.After.Writes, s.After.Lost+f.After.Lost
}

// moment is when the power of a round is cut.
type moment struct {
	round  int // this one's ids, and the next one's, are free
	until  int // lines
	unsync bool
	reopen bool // kill the process first, and cut when another has opened the store and answered
}

// cutOnce writes, cuts the power and puts the disk on again. The ledger has read all that the writers were told.
func cutOnce(t *testing.T, d *Disk, dir string, l *txlogtest.Ledger, m moment) {
	t.Helper()
	c := txlogtest.StartChild(t, dir, m.round, m.unsync)
	if err := l.Read(c.Out, worstMoment(t, l, dir, m.until)); err != nil {
		t.Fatal(err)
	}
	if m.reopen {
		killAndDrain(t, c, l)
		c = txlogtest.StartChild(t, dir, m.round+1, m.unsync)
		var first txlogtest.Ledger
		if err := first.Read(c.Out, func(int) bool { return true }); err != nil || first.Lines != 1 {
			t.Fatalf("the store did not open after kill -9: %d lines, %v", first.Lines, err)
		}
		l.Reopened()
	}
	begin := txlogtest.Monotonic()
	if err := d.cut(); err != nil {
		t.Fatal(err)
	}
	l.Cut(begin, txlogtest.Monotonic())
	killAndDrain(t, c, l)
	d.off(t)
	d.on(t)
}

// killAndDrain ends a process and reads what it had to say.
func killAndDrain(t *testing.T, c *txlogtest.Child, l *txlogtest.Ledger) {
	t.Helper()
	if err := c.Kill(); err != nil {
		t.Fatal(err)
	}
	if err := l.Read(c.Out, nil); err != nil {
		t.Fatal(err)
	}
	_ = c.Wait() // killed, or dead of a bus error on the disk that is gone
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
func check(t *testing.T, l *txlogtest.Ledger, dir string, round int, unsync bool) txlogtest.Found {
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
	f, err := l.Check(t.Context(), s, false)
	if err != nil {
		t.Fatalf("after cut %d: %v", round, err)
	}
	t.Logf("cut %d: %d lines, %d syncs; found %d transactions (%d forgotten by trim), %d rows; before %d, lost %d; during %+v; after %+v",
		round, l.Lines, l.Syncs, f.Transactions, f.Forgotten, f.Rows, f.Before, len(f.Lost), f.During, f.After)
	if !unsync && len(f.Lost) > 0 {
		t.Errorf("cut %d lost %v ...", round, f.Lost[:min(5, len(f.Lost))])
	}
	if !unsync && f.Forgotten == 0 {
		t.Errorf("cut %d: trim forgot nothing", round)
	}
	return f
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
