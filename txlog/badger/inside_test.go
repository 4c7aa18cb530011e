package badger

import (
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"txmesh/txlog"
	"txmesh/txn"
)

func openInside(t *testing.T) *Store {
	t.Helper()
	s, err := Open(Options{Dir: t.TempDir(), ReserveBytes: -1, MemtableBytes: 1 << 20})
	if err != nil {
		t.Fatal(err)
	}
	return s
}

// Another Badger might name its logs differently. Then the store would sync a file that nobody writes to.
func TestAStoreWhoseLogsAreNotSeenToChangeStops(t *testing.T) {
	s := openInside(t)
	other, err := os.Create(filepath.Join(t.TempDir(), "elsewhere"))
	if err != nil {
		t.Fatal(err)
	}
	if err := s.mem.next.Close(); err != nil {
		t.Fatal(err)
	}
	s.mem.next = other // the committer has had no work yet
	body := make([]byte, 2<<10)
	for n := 0; err == nil && n < 20_000; n++ {
		err = s.Append(t.Context(), []txlog.Entry{{Tx: "tx", Record: txn.Settled{Result: body}}}, true)
	}
	if err == nil || !strings.Contains(err.Error(), "log 1 is still the active one") {
		t.Errorf("append = %v, want that the log did not change", err)
	}
	_ = s.Close() // it has stopped and says so again
}

// A transaction may begin while Trim forgets an older one of the same id or key. In one batch or in two, in this
// order or that, the outcome is the same.
func TestATransactionThatBeginsWithAForgettingStays(t *testing.T) {
	for _, tt := range []struct {
		name        string
		id          txn.ID
		beginsFirst bool
	}{
		{"same id, after", "old", false},
		{"same key, after", "new", false},
		{"same key, before", "new", true},
	} {
		t.Run(tt.name, func(t *testing.T) {
			s := openInside(t)
			defer func() {
				if err := s.Close(); err != nil {
					t.Error(err)
				}
			}()
			at := time.Unix(1_700_000_000, 0)
			ended := txlog.Entry{Tx: "old", At: at, Record: txn.Finished{Phase: txn.Committed}}
			if err := s.Append(t.Context(), []txlog.Entry{begins("old", at), ended}, true); err != nil {
				t.Fatal(err)
			}
			forgetBeside(t, s, begins(tt.id, at), tt.beginsFirst)
			es, _, err := s.read(t.Context(), tt.id)
			found, errFind := s.Find(t.Context(), "key")
			want := stats{Unfinished: 1, OpenEntries: 1}
			if len(es) != 1 || err != nil || found != tt.id || s.stats != want {
				t.Errorf("%d entries, %v, found by key %q, %v, counted %+v; want the new one alone, and %+v",
					len(es), err, found, errFind, s.stats, want)
			}
		})
	}
}

func begins(id txn.ID, at time.Time) txlog.Entry {
	return txlog.Entry{Tx: id, At: at, Record: txn.Began{Spec: txn.Spec{ID: id, Mode: txn.Saga, Key: "key"}}}
}

// forgetBeside writes an entry and the forgetting of all that has ended as one batch.
func forgetBeside(t *testing.T, s *Store, e txlog.Entry, entryFirst bool) {
	t.Helper()
	victims, err := s.oldest(t.Context(), e.At.Add(time.Hour))
	if err != nil || len(victims) != 1 {
		t.Fatalf("oldest = %v, %v; want one", victims, err)
	}
	entry, err := s.appendRequest([]txlog.Entry{e}, true)
	if err != nil {
		t.Fatal(err)
	}
	forget := &request{victims: victims, rows: victims[0].rows(), bytes: victims[0].bytes(), done: make(chan error, 1)}
	rs := []*request{forget, entry}
	if entryFirst {
		rs = []*request{entry, forget}
	}
	s.mu.Lock()
	s.queue = append(s.queue, rs...)
	s.mu.Unlock()
	s.signal()
	for _, r := range rs {
		if err := <-r.done; err != nil {
			t.Fatal(err)
		}
	}
}

func TestTheReserveFitsTheDisk(t *testing.T) {
	for _, tt := range []struct {
		name          string
		given         Options
		disk          uint64
		reserve, gate int64
	}{
		{"large disk", Options{}, 1 << 40, 48 << 20, 32 << 20},
		{"a third and a quarter of a small one", Options{}, 60 << 20, 20 << 20, 15 << 20},
		{"never less than a change of log", Options{}, 8 << 20, 17<<20 + 64<<10, 2 << 20},
		{"nor with large memtables", Options{MemtableBytes: 64 << 20}, 1 << 40, 212<<20 + 64<<10, 32 << 20},
		{"none", Options{ReserveBytes: -1}, 1 << 40, 0, 32 << 20},
		{"as given", Options{ReserveBytes: 30 << 20, GateBytes: 5}, 60 << 20, 30 << 20, 5},
		{"a file system that does not tell", Options{}, 0, 17<<20 + 64<<10, 0},
		{"or tells anything", Options{}, 1<<64 - 1, 48 << 20, 32 << 20},
	} {
		o := tt.given.withDefaults().fit(tt.disk)
		if o.ReserveBytes != tt.reserve || o.GateBytes != tt.gate {
			t.Errorf("%s: reserve %d, gate %d; want %d, %d", tt.name, o.ReserveBytes, o.GateBytes, tt.reserve, tt.gate)
		}
	}
}
