package badger_test

import (
	"bytes"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"txmesh/txlog"
	"txmesh/txlog/badger"
	"txmesh/txn"
)

// damaged fills a store, closes it, spoils its files and opens it again. It returns the error of Open, or of
// reading everything.
func damaged(t *testing.T, spoil func(t *testing.T, dir string)) error {
	t.Helper()
	dir := t.TempDir()
	o := badger.Options{Dir: dir, ReserveBytes: -1}
	s, err := badger.Open(o)
	if err != nil {
		t.Fatal(err)
	}
	for i := range 200 {
		id := txn.ID(fmt.Sprintf("tx-%03d", i))
		spec := txn.Spec{ID: id, Mode: txn.Saga, Note: bytes.Repeat([]byte{byte(i)}, 100*(i%80))}
		if err := s.Append(t.Context(), []txlog.Entry{{Tx: id, Record: txn.Began{Spec: spec}}}, false); err != nil {
			t.Fatal(err)
		}
	}
	if err := s.Close(); err != nil {
		t.Fatal(err)
	}
	spoil(t, dir)
	if s, err = badger.Open(o); err != nil {
		return err
	}
	defer func() { _ = s.Close() }() // it is broken
	for _, err := range s.Open(t.Context(), txlog.Owner{}) {
		if err != nil {
			return err
		}
	}
	return nil
}

func one(t *testing.T, dir, pattern string) string {
	t.Helper()
	files, err := filepath.Glob(filepath.Join(dir, pattern))
	if err != nil || len(files) == 0 {
		t.Fatalf("no %s in %s: %v", pattern, dir, err)
	}
	return files[0]
}

func TestADamagedStoreSaysSo(t *testing.T) {
	flip := func(pattern string, at func(n int) int) func(*testing.T, string) {
		return func(t *testing.T, dir string) {
			path := one(t, dir, pattern)
			b, err := os.ReadFile(path)
			if err != nil {
				t.Fatal(err)
			}
			from := at(len(b))
			for i := from; i < min(from+64, len(b)); i++ {
				b[i] ^= 0xff
			}
			if err := os.WriteFile(path, b, 0o600); err != nil {
				t.Fatal(err)
			}
		}
	}
	remove := func(pattern string) func(*testing.T, string) {
		return func(t *testing.T, dir string) {
			if err := os.Remove(one(t, dir, pattern)); err != nil {
				t.Fatal(err)
			}
		}
	}
	cut := func(pattern string) func(*testing.T, string) {
		return func(t *testing.T, dir string) {
			path := one(t, dir, pattern)
			st, err := os.Stat(path)
			if err != nil {
				t.Fatal(err)
			}
			if err := os.Truncate(path, st.Size()/2); err != nil {
				t.Fatal(err)
			}
		}
	}
	for _, tt := range []struct {
		name  string
		spoil func(*testing.T, string)
		want  string
	}{
		{"table with a changed block", flip("*.sst", func(n int) int { return n / 3 }), "gone"},
		{"table with a changed index", flip("*.sst", func(n int) int { return n - 2000 }), ".sst"},
		{"table with a changed end", flip("*.sst", func(n int) int { return n - 64 }), ".sst"},
		{"table removed", remove("*.sst"), "no such file"},
		{"table cut off", cut("*.sst"), ".sst"},
		{"manifest changed", flip("MANIFEST", func(int) int { return 0 }), "magic"},
		{"manifest removed", remove("MANIFEST"), "OWNER"},
		{"segment changed", flip("values/*.val", func(n int) int { return n / 2 }), "checksum"},
		{"segment cut off", cut("values/*.val"), ".val at byte"},
		{"segment removed", remove("values/*.val"), "segment"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			err := damaged(t, tt.spoil)
			t.Log(err)
			if !errors.Is(err, txlog.ErrCorrupt) || !strings.Contains(err.Error(), tt.want) ||
				!strings.Contains(err.Error(), "docs/reference/store.md") {
				t.Errorf("error %v, want ErrCorrupt with %q and the way out", err, tt.want)
			}
		})
	}
	if err := damaged(t, func(*testing.T, string) {}); err != nil {
		t.Errorf("undamaged: %v", err)
	}
}

// A crash can leave files of length zero, at which Badger stops.
func TestEmptyFilesOfACrashDoNotStopTheStore(t *testing.T) {
	err := damaged(t, func(t *testing.T, dir string) {
		for _, name := range []string{"00007.mem", "000099.vlog"} {
			if err := os.WriteFile(filepath.Join(dir, name), nil, 0o600); err != nil {
				t.Fatal(err)
			}
		}
	})
	if err != nil {
		t.Error(err)
	}
}

func TestAStoreBelongsToOneProcess(t *testing.T) {
	o := badger.Options{Dir: filepath.Join(t.TempDir(), "store"), ReserveBytes: -1}
	openStore(t, o)
	_, err := badger.Open(o)
	if err == nil || !strings.Contains(err.Error(), "another process has it open") {
		t.Errorf("second open = %v, want that another process has it", err)
	}
	st, err := os.Stat(o.Dir)
	if err != nil || st.Mode().Perm() != 0o700 {
		t.Errorf("directory has mode %v, %v; want 0700", st.Mode(), err)
	}
}

func TestWrongOptionsAreAllNamed(t *testing.T) {
	_, err := badger.Open(badger.Options{MemtableBytes: 1, SegmentBytes: 1, InlineBytes: 1, ReserveBytes: 1, Owner: "me"})
	for _, want := range []string{"no directory", "memtable of 1", "segment of 1", "inline bytes 1", "reserve of 1", `owner "me"`} {
		if err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("error %v, want %q in it", err, want)
		}
	}
}
