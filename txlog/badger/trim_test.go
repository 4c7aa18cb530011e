package badger_test

import (
	"fmt"
	"io/fs"
	"math/rand/v2"
	"path/filepath"
	"testing"
	"time"

	"txmesh/txlog"
	"txmesh/txlog/badger"
	"txmesh/txn"
)

// diskBytes adds up the tables and segments; the logs have a size of their own.
func diskBytes(t *testing.T, dir string) (tables, segments int64) {
	t.Helper()
	err := filepath.WalkDir(dir, func(path string, d fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		info, err := d.Info()
		if err != nil {
			return err
		}
		switch filepath.Ext(path) {
		case ".sst":
			tables += info.Size()
		case ".val":
			segments += info.Size()
		}
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	return tables, segments
}

// noise cannot be compressed.
func noise(n int) []byte {
	rng := rand.New(rand.NewPCG(3, uint64(n)))
	b := make([]byte, n)
	for i := range b {
		b[i] = byte(rng.Uint32())
	}
	return b
}

func TestTrimGivesSpaceBack(t *testing.T) {
	dir := t.TempDir()
	s := openStore(t, badger.Options{Dir: dir, ReserveBytes: -1, MemtableBytes: 1 << 20, SegmentBytes: 1 << 20})
	small, large := noise(2<<10), noise(32<<10)
	const n = 400
	for i := range n {
		id := txn.ID(fmt.Sprintf("tx-%04d", i))
		es := []txlog.Entry{{Tx: id, At: time.Unix(int64(i), 0), Record: txn.Began{Spec: txn.Spec{ID: id, Note: large}}}}
		for range 20 {
			es = append(es, txlog.Entry{Tx: id, At: es[0].At, Record: txn.Settled{Result: small}})
		}
		if i%40 > 0 { // one in each segment or so stays
			es = append(es, txlog.Entry{Tx: id, At: es[0].At, Record: txn.Finished{Phase: txn.Committed}})
		}
		if err := s.Append(t.Context(), es, false); err != nil {
			t.Fatal(err)
		}
	}
	tables, segments := diskBytes(t, dir)
	forgotten, err := s.Trim(t.Context(), time.Unix(n, 0))
	if err != nil || forgotten != n-n/40 {
		t.Fatalf("trim = %d, %v; want %d", forgotten, err, n-n/40)
	}
	tablesAfter, segmentsAfter := diskBytes(t, dir)
	t.Logf("tables %d to %d bytes, segments %d to %d", tables, tablesAfter, segments, segmentsAfter)
	if tablesAfter > tables/4 || segmentsAfter > segments/4 {
		t.Errorf("after trim tables take %d of %d bytes, segments %d of %d; want at most a quarter",
			tablesAfter, tables, segmentsAfter, segments)
	}
	for i := 0; i < n; i += 40 {
		id := txn.ID(fmt.Sprintf("tx-%04d", i))
		entries := 0
		for e, err := range s.History(t.Context(), id) {
			if err != nil {
				t.Fatal(err)
			}
			if b, ok := e.Record.(txn.Began); ok && string(b.Spec.Note) != string(large) {
				t.Errorf("%s came back with another note", id)
			}
			entries++
		}
		if entries != 21 {
			t.Errorf("%s has %d entries, want 21", id, entries)
		}
	}
}
