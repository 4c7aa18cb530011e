package badger_test

import (
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"txmesh/txlog"
	"txmesh/txlog/badger"
	"txmesh/txn"
)

// A table that cannot be written: Badger tries for ever, and the writers would wait for it. A file that is in its
// place does what a failing disk does.
func TestATableThatCannotBeWrittenStopsTheStore(t *testing.T) {
	dir, err := os.MkdirTemp("", "stopped-") //nolint:usetesting // Badger's goroutines may still make files in it
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		for range 100 {
			if os.RemoveAll(dir) == nil {
				return
			}
		}
	})
	s, err := badger.Open(badger.Options{Dir: dir, ReserveBytes: -1, MemtableBytes: 1 << 20})
	if err != nil {
		t.Fatal(err)
	}
	table := filepath.Join(dir, "000001.sst")
	if err := os.WriteFile(table, []byte("in the way"), 0o600); err != nil {
		t.Fatal(err)
	}
	e := txlog.Entry{Tx: "a", Record: txn.Settled{Result: make([]byte, 3<<10)}}
	for i := 0; err == nil && i < 5000; i++ {
		err = s.Append(t.Context(), []txlog.Entry{e}, i%100 == 0)
	}
	want := "stopped after a failed write"
	if err == nil || !strings.Contains(err.Error(), want) || !strings.Contains(err.Error(), "000001.sst") {
		t.Fatalf("append = %v, want %q and the table", err, want)
	}
	_, _, list := s.List(t.Context(), txlog.Query{})
	_, trim := s.Trim(t.Context(), e.At)
	for name, err := range map[string]error{
		"accepts": s.Accepts(), "list": list, "trim": trim, "put": s.Table("t").Put(t.Context(), []txlog.Row{{Key: "k"}}, true),
	} {
		if err == nil || !strings.Contains(err.Error(), want) || errors.Is(err, txlog.ErrFull) {
			t.Errorf("%s = %v, want %q", name, err, want)
		}
	}
	if err := s.Close(); err == nil || !strings.Contains(err.Error(), want) {
		t.Errorf("close = %v, want %q", err, want)
	}
	if err := s.Close(); err != nil {
		t.Errorf("second close = %v", err)
	}
}
