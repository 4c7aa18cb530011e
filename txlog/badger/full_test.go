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
	s := openStore(t, badger.Options{Dir: t.TempDir(), FreeBytes: d.ask, GateBytes: 16 << 20, ReserveBytes: 20 << 20})
	if err := s.Accepts(); err != nil {
		t.Fatal(err)
	}
	d.free.Store(16<<20 - 1)
	err := s.Accepts()
	if !errors.Is(err, txlog.ErrFull) || !strings.Contains(err.Error(), "16777215 bytes free, 16777216 needed; free space on its disk") {
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

// The reserve is taken again only beside what the tables of a log need: they may be on their way to the disk.
func TestTheReserveIsNotTakenFromWhatTablesNeed(t *testing.T) {
	const reserve, floor = 20 << 20, 13<<20 + 64<<10 // two memtables and a log, with an empty tree
	var d fakeDisk
	d.free.Store(floor + reserve - 1)
	s := openStore(t, badger.Options{Dir: t.TempDir(), FreeBytes: d.ask, GateBytes: 1, ReserveBytes: reserve})
	for _, tt := range []struct {
		name string
		free uint64
		want string // of the message; empty: accepted
	}{
		{"one byte less than a reserve and the tables", floor + reserve - 1, "the reserve is in use"},
		{"room for both", floor + reserve, ""},
		{"held, room for the tables", floor, ""},
		{"held, one byte less than the tables", floor - 1, "13697023 bytes free, 13697024 needed"},
	} {
		d.free.Store(tt.free)
		err := s.Accepts()
		if tt.want == "" && err != nil || tt.want != "" && (!errors.Is(err, txlog.ErrFull) || !strings.Contains(err.Error(), tt.want)) {
			t.Errorf("%s: accepts = %v, want %q", tt.name, err, tt.want)
		}
	}
	d.free.Store(1 << 40) // to close
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
