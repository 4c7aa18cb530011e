package badger_test

import (
	"errors"
	"math"
	"strings"
	"sync/atomic"
	"testing"

	"txmesh/txlog"
	"txmesh/txlog/badger"
	"txmesh/txn"
)

// fakeDisk answers how much is free.
type fakeDisk struct{ free atomic.Uint64 }

func (d *fakeDisk) ask(string) (uint64, error) { return d.free.Load(), nil }

func TestNewTransactionsAreRefusedBelowTheGate(t *testing.T) {
	var d fakeDisk
	d.free.Store(1 << 40)
	s := openStore(t, badger.Options{Dir: t.TempDir(), FreeBytes: d.ask, GateBytes: 1 << 20, ReserveBytes: 20 << 20})
	if err := s.Accepts(); err != nil {
		t.Fatal(err)
	}
	d.free.Store(1<<20 - 1)
	err := s.Accepts()
	if !errors.Is(err, txlog.ErrFull) || !strings.Contains(err.Error(), "1048575 bytes free, 1048576 needed; free space on its disk") {
		t.Errorf("accepts = %v, want the figures and the remedy", err)
	}
	if err := s.Append(t.Context(), []txlog.Entry{{Tx: "open", Record: txn.Finished{Phase: txn.Aborted}}}, true); err != nil {
		t.Errorf("append for an open transaction: %v", err)
	}
	d.free.Store(1 << 40)
	if err := s.Accepts(); err != nil {
		t.Errorf("accepts with space again = %v", err)
	}
}

func TestAppendsAreRefusedBeforeALogWouldMeetAFullDisk(t *testing.T) {
	var d fakeDisk
	d.free.Store(math.MaxInt64)
	o := badger.Options{Dir: t.TempDir(), FreeBytes: d.ask, MemtableBytes: 1 << 20, ReserveBytes: 8 << 20}
	s := openStore(t, o)
	d.free.Store(0)
	e := txlog.Entry{Tx: "open", Record: txn.Settled{Branch: "b", Result: make([]byte, 2<<10)}}
	taken := 0
	var err error
	for ; err == nil && taken < 10_000; taken++ {
		err = s.Append(t.Context(), []txlog.Entry{e}, false)
	}
	if !errors.Is(err, txlog.ErrFull) || !strings.Contains(err.Error(), "0 bytes free") {
		t.Fatalf("append %d = %v, want ErrFull with the figures", taken, err)
	}
	if taken < 200 {
		t.Errorf("refused after %d appends, although the log has its blocks", taken)
	}
	if err := s.Accepts(); !errors.Is(err, txlog.ErrFull) {
		t.Errorf("accepts = %v, want ErrFull", err)
	}
	d.free.Store(math.MaxInt64)
	if err := s.Append(t.Context(), []txlog.Entry{e}, true); err != nil {
		t.Errorf("append with space again: %v", err)
	}
	if err := s.Accepts(); err != nil {
		t.Errorf("accepts with space again: %v", err)
	}
}

func TestAStoreThatHasNoRoomDoesNotOpen(t *testing.T) {
	var d fakeDisk
	d.free.Store(1 << 20)
	_, err := badger.Open(badger.Options{Dir: t.TempDir(), FreeBytes: d.ask})
	if !errors.Is(err, txlog.ErrFull) || !strings.Contains(err.Error(), "1048576 bytes free") {
		t.Errorf("open = %v, want ErrFull with the figures", err)
	}
}

func openStore(t *testing.T, o badger.Options) *badger.Store {
	t.Helper()
	s, err := badger.Open(o)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := s.Close(); err != nil {
			t.Error(err)
		}
	})
	return s
}
