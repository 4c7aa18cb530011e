//go:build power

package power

import (
	"errors"
	"fmt"
	"path/filepath"
	"testing"
	"time"

	"txmesh/txlog"
	"txmesh/txlog/badger"
	"txmesh/txn"
)

const openAtOnce = 200

// A disk of 64 MB is filled to the last byte by somebody else. This process maps files on it: a store into a page
// without a block would kill it.
func TestOpenTransactionsEndOnAFullDisk(t *testing.T) {
	d := NewDisk(t, 64<<20)
	o := badger.Options{Dir: filepath.Join(d.Mount, "store"), ReserveBytes: 20 << 20, GateBytes: 8 << 20}
	s, err := badger.Open(o)
	if err != nil {
		t.Fatal(err)
	}
	for i := range openAtOnce {
		appendOne(t, s, id(i), txn.Began{Spec: txn.Spec{ID: id(i), Mode: txn.Saga, Key: string(id(i))}})
	}
	if err := s.Accepts(); err != nil {
		t.Fatalf("before the disk is full: %v", err)
	}
	d.fill(t)
	free, err := badger.FreeBytes(d.Mount)
	if err != nil {
		t.Fatal(err)
	}
	err = s.Accepts()
	if !errors.Is(err, txlog.ErrFull) {
		t.Fatalf("accepts = %v with %d bytes free, want ErrFull", err, free)
	}
	t.Logf("%d bytes free: %v", free, err)
	finishAll(t, s)
	if err := s.Close(); err != nil {
		t.Fatal(err)
	}
	if s, err = badger.Open(o); err != nil {
		t.Fatal(err)
	}
	defer func() {
		if err := s.Close(); err != nil {
			t.Error(err)
		}
	}()
	findAll(t, s)
}

func id(i int) txn.ID { return txn.ID(fmt.Sprintf("tx-%03d", i)) }

func appendOne(t *testing.T, s *badger.Store, id txn.ID, r txn.Record) {
	t.Helper()
	if err := s.Append(t.Context(), []txlog.Entry{{Tx: id, At: time.Now(), Record: r}}, true); err != nil {
		t.Fatalf("append %T of %s: %v", r, id, err)
	}
}

// finishAll ends what is open, with more than a log holds, some of it large, so that the reserve is needed.
func finishAll(t *testing.T, s *badger.Store) {
	t.Helper()
	small, large := make([]byte, 3<<10), make([]byte, 12<<10)
	for i := range openAtOnce {
		for n := range 6 {
			appendOne(t, s, id(i), txn.Settled{Branch: fmt.Sprint(n), Outcome: txn.OK, Result: small})
		}
		appendOne(t, s, id(i), txn.Settled{Branch: "large", Outcome: txn.OK, Result: large})
		appendOne(t, s, id(i), txn.Finished{Phase: txn.Committed})
	}
}

func findAll(t *testing.T, s *badger.Store) {
	t.Helper()
	for e, err := range s.Open(t.Context(), txlog.Owner{}) {
		t.Errorf("unfinished: %v, %v", e, err)
	}
	for i := range openAtOnce {
		n := 0
		for _, err := range s.History(t.Context(), id(i)) {
			if err != nil {
				t.Fatal(err)
			}
			n++
		}
		if n != 9 {
			t.Errorf("%s has %d entries, want 9", id(i), n)
		}
	}
}

// When the reserve is used up as well, appends are refused with ErrFull; the process lives, and goes on when there
// is space again.
func TestAStoreOutlivesADiskWithoutAnySpace(t *testing.T) {
	d := NewDisk(t, 64<<20)
	o := badger.Options{Dir: filepath.Join(d.Mount, "store"), ReserveBytes: 8 << 20, GateBytes: 16 << 20, MemtableBytes: 1 << 20}
	s, err := badger.Open(o)
	if err != nil {
		t.Fatal(err)
	}
	d.fill(t)
	body := make([]byte, 3<<10)
	n, refused := 0, error(nil)
	for ; n < 30_000 && refused == nil; n++ {
		refused = s.Append(t.Context(), []txlog.Entry{{Tx: id(n % 100), Record: txn.Settled{Result: body}}}, n%50 == 0)
	}
	if !errors.Is(refused, txlog.ErrFull) {
		t.Fatalf("after %d appends: %v, want ErrFull", n, refused)
	}
	t.Logf("refused after %d appends: %v", n, refused)
	run(t, "rm", filepath.Join(d.Mount, "filler"))
	if err := s.Accepts(); err != nil {
		t.Fatalf("with space again: %v", err)
	}
	appendOne(t, s, "after", txn.Left{})
	if err := s.Close(); err != nil {
		t.Fatal(err)
	}
	if s, err = badger.Open(o); err != nil {
		t.Fatal(err)
	}
	found := 0
	for _, err := range s.Open(t.Context(), txlog.Owner{}) {
		if err != nil {
			t.Fatal(err)
		}
		found++
	}
	if found != n { // n-1 that were taken, and the one after
		t.Errorf("found %d entries, want %d", found, n)
	}
	if err := s.Close(); err != nil {
		t.Fatal(err)
	}
}
