package sql_test

import (
	"bytes"
	"context"
	"errors"
	"math/rand/v2"
	"reflect"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"txmesh/txlog"
	shared "txmesh/txlog/sql"
	"txmesh/txn"
)

// eachKind runs a test on every database.
func eachKind(t *testing.T, run func(t *testing.T, dsn string)) {
	for _, k := range kinds {
		t.Run(k.name, func(t *testing.T) { run(t, k.place(t, &set)) })
	}
}

func TestManySidecarsMakeTheTablesAtOnce(t *testing.T) {
	eachKind(t, func(t *testing.T, dsn string) {
		var all sync.WaitGroup
		for range 8 {
			all.Go(func() {
				e, err := shared.Open(t.Context(), shared.Options{DSN: dsn, Conns: 2})
				if err != nil {
					t.Error(err)
					return
				}
				if err := e.Close(); err != nil {
					t.Error(err)
				}
			})
		}
		all.Wait()
	})
}

func TestTablesOfALaterReleaseAreRefused(t *testing.T) {
	for _, k := range kinds {
		t.Run(k.name, func(t *testing.T) {
			dsn := k.place(t, &set)
			open(t, shared.Options{DSN: dsn})
			driver, native := "pgx", dsn
			if k.name == "mariadb" {
				driver, native = "mysql", strings.Replace(strings.Replace(strings.TrimPrefix(dsn, "mysql://"), "@", "@tcp(", 1), "/", ")/", 1)
			}
			execute(t, driver, native, "UPDATE txmesh_store SET version = version + 1")
			_, err := shared.Open(t.Context(), shared.Options{DSN: dsn})
			if !errors.Is(err, txlog.ErrNewer) || !strings.Contains(err.Error(), "schema version 2, this release knows 1") {
				t.Errorf("open = %v, want ErrNewer and both versions", err)
			}
		})
	}
}

// random is what no escaping may change.
func random(n int) []byte {
	b := make([]byte, n)
	rng := rand.New(rand.NewPCG(1, uint64(n)))
	for i := range b {
		b[i] = byte(rng.Uint32())
	}
	return b
}

func TestAnAppendMayBeManyTimesAPacket(t *testing.T) {
	eachKind(t, func(t *testing.T, dsn string) {
		s := claim(t, open(t, shared.Options{DSN: dsn, Timeout: time.Minute}), "AAAAAAAAAAAAA")
		want := []txlog.Entry{{Tx: "a", At: time.Unix(1, 0).UTC(), Record: txn.Began{Spec: txn.Spec{ID: "a", Mode: txn.Saga, Note: random(12 << 20)}}}}
		for i := range 40 { // 40 MiB in entries of one, and 12 MiB in one of them
			want = append(want, txlog.Entry{Tx: "a", At: time.Unix(1, 0).UTC(), Record: txn.Settled{Branch: "b", Result: random(1<<20 + i)}})
		}
		if err := s.Append(t.Context(), want, true); err != nil {
			t.Fatal(err)
		}
		var got []txlog.Entry
		for e, err := range s.History(t.Context(), "a") {
			if err != nil {
				t.Fatal(err)
			}
			got = append(got, e)
		}
		if !reflect.DeepEqual(want, got) { // cmp looks at each byte by itself
			t.Errorf("%d entries, or others than the %d that were appended", len(got), len(want))
		}
		huge := txlog.Entry{Tx: "h", Record: txn.Began{Spec: txn.Spec{ID: "h", Note: make([]byte, 65<<20)}}}
		if err := s.Append(t.Context(), []txlog.Entry{huge}, true); !errors.Is(err, txlog.ErrTooLarge) {
			t.Errorf("append of 65 MiB in one value = %.200v, want ErrTooLarge", err)
		}
		if err := s.Accepts(); err != nil {
			t.Errorf("accepts = %v after it", err)
		}
	})
}

func TestKeysAreOrderedByBytes(t *testing.T) {
	eachKind(t, func(t *testing.T, dsn string) {
		tab := claim(t, open(t, shared.Options{DSN: dsn}), "AAAAAAAAAAAAA").Table("t")
		keys := []string{"", "\x00", "A", "B", "a", "a ", "a%", "a_", "b", "é", "\xfe\xff", "\xff", "\xff\xff", "\xff\xffx"}
		var rows []txlog.Row
		for _, k := range keys {
			rows = append(rows, txlog.Row{Key: k, Value: []byte(k)})
		}
		if err := tab.Put(t.Context(), rows, true); err != nil {
			t.Fatal(err)
		}
		for _, prefix := range []string{"", "a", "\xff", "\xfe", "\xff\xff"} {
			var want, got []string
			for _, k := range keys {
				if strings.HasPrefix(k, prefix) {
					want = append(want, k)
				}
			}
			for row, err := range tab.Scan(t.Context(), prefix) {
				if err != nil {
					t.Fatal(err)
				}
				if !bytes.Equal(row.Value, []byte(row.Key)) {
					t.Errorf("row %q holds %q", row.Key, row.Value)
				}
				got = append(got, row.Key)
			}
			if diff := cmp.Diff(want, got); diff != "" {
				t.Errorf("scan %q (-want +got):\n%s", prefix, diff)
			}
		}
	})
}

func TestWrongAddressesAreExplainedWithoutTheirPassword(t *testing.T) {
	for _, dsn := range []string{"", "sqlite://secret", "mysql://u:secret@h:x/db", "mysql://u:secret@h:1/", "mysql://u:secret@h:1/db?tls=none-such", "postgres://u:secret@h:x/db"} {
		_, err := shared.Open(t.Context(), shared.Options{DSN: dsn})
		if err == nil || strings.Contains(err.Error(), "secret") || !strings.Contains(err.Error(), "dsn: ") {
			t.Errorf("open %q = %v, want an error about the dsn, without the password", dsn, err)
		}
	}
}

func TestAFullQueueRefusesAtOnce(t *testing.T) {
	for _, k := range kinds {
		t.Run(k.name, func(t *testing.T) {
			dsn, o := outage(t, k.name)
			s := claim(t, open(t, shared.Options{DSN: dsn, QueueBytes: 1000, Timeout: time.Minute}), "AAAAAAAAAAAAA")
			o.Freeze()
			defer o.Thaw()
			ctx, stop := context.WithCancel(t.Context())
			defer stop()
			e := txlog.Entry{Tx: "a", Record: txn.Settled{Branch: "b", Result: make([]byte, 600)}}
			for range 2 { // one is on its way, one fills the queue
				go func() { _ = s.Append(ctx, []txlog.Entry{e}, true) }() // ends with the test
			}
			until(t, "the queue is full", func() bool {
				short, done := context.WithTimeout(ctx, 20*time.Millisecond)
				defer done()
				err := s.Append(short, []txlog.Entry{e}, true)
				return errors.Is(err, txlog.ErrUnavailable) && strings.Contains(err.Error(), "wait for the database")
			})
		})
	}
}
