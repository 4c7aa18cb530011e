package badger_test

import (
	"errors"
	"fmt"
	"strings"
	"testing"

	"txmesh/txlog"
	"txmesh/txlog/badger"
	"txmesh/txn"
)

func TestAppendsUpToTheLimitAreTaken(t *testing.T) {
	s := openStore(t, badger.Options{Dir: t.TempDir(), ReserveBytes: -1, MemtableBytes: 1 << 20, SegmentBytes: 1 << 20})
	long := strings.Repeat("k", 1<<10)
	for _, tt := range []struct {
		name string
		make func(i int) txlog.Entry
	}{
		{"small entries", func(i int) txlog.Entry {
			return txlog.Entry{Tx: "small", Record: txn.Left{Branch: "b"}}
		}},
		{"entries just inline", func(i int) txlog.Entry {
			return txlog.Entry{Tx: "inline", Record: txn.Settled{Result: make([]byte, 4000)}}
		}},
		{"large entries", func(i int) txlog.Entry {
			return txlog.Entry{Tx: "large", Record: txn.Settled{Result: make([]byte, 8000)}}
		}},
		{"whole transactions with long ids, names, keys and reasons", func(i int) txlog.Entry {
			id := txn.ID(fmt.Sprintf("%04d%s", i/3, long[:1<<10-4]))
			return txlog.Entry{Tx: id, Record: []txn.Record{
				txn.Began{Spec: txn.Spec{ID: id, Key: fmt.Sprintf("%04d", i) + long + long[:1<<10-4], Name: long}},
				txn.Decided{Reason: long},
				txn.Finished{Phase: txn.Aborted},
			}[i%3]}
		}},
	} {
		t.Run(tt.name, func(t *testing.T) {
			taken := 0
			for n := 1; ; n = n*5/4 + 1 {
				es := make([]txlog.Entry, n)
				for i := range es {
					es[i] = tt.make(i)
				}
				err := s.Append(t.Context(), es, false)
				if errors.Is(err, badger.ErrTooLarge) {
					break
				}
				if err != nil {
					t.Fatalf("append of %d: %v", n, err)
				}
				taken = n
			}
			if taken < 5 {
				t.Errorf("at most %d at once", taken)
			}
			t.Logf("%d at once", taken)
			if err := s.Append(t.Context(), []txlog.Entry{tt.make(0)}, true); err != nil {
				t.Errorf("after a refusal: %v", err)
			}
		})
	}
}

func TestRowsUpToTheLimitAreTaken(t *testing.T) {
	s := openStore(t, badger.Options{Dir: t.TempDir(), ReserveBytes: -1, MemtableBytes: 1 << 20, SegmentBytes: 1 << 20})
	tab := s.Table("t")
	for size, want := range map[int]error{0: nil, 4 << 10: nil, 4<<10 + 1: nil, 1 << 20: nil, 1<<20 + 1: badger.ErrTooLarge} {
		row := txlog.Row{Key: strings.Repeat("k", 16<<10-4), Value: make([]byte, size)}
		if err := tab.Put(t.Context(), []txlog.Row{row}, true); !errors.Is(err, want) {
			t.Errorf("put of %d bytes = %v, want %v", size, err, want)
		}
	}
	err := tab.Put(t.Context(), []txlog.Row{{Key: strings.Repeat("k", 16<<10), Value: nil}}, true)
	if err == nil || !strings.Contains(err.Error(), "key of 16388 bytes with its table, want at most 16384") {
		t.Errorf("put of a long key = %v", err)
	}
	for name, e := range map[string]txlog.Entry{
		"transaction id of 1025 bytes": {Tx: txn.ID(strings.Repeat("i", 1025)), Record: txn.Left{}},
		"transaction id of 0 bytes":    {Record: txn.Left{}},
		"2049 and 0 bytes":             {Tx: "a", Record: txn.Began{Spec: txn.Spec{Key: strings.Repeat("k", 2049)}}},
		"0 and 1025 bytes":             {Tx: "a", Record: txn.Began{Spec: txn.Spec{Name: strings.Repeat("n", 1025)}}},
	} {
		if err := s.Append(t.Context(), []txlog.Entry{e}, true); err == nil || !strings.Contains(err.Error(), name) {
			t.Errorf("append = %v, want %q in it", err, name)
		}
	}
}
