package main

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
	"runtime"
	"strings"
	"sync"
	"time"

	"txmesh/txlog"
	"txmesh/txlog/badger"
	"txmesh/txn"
)

// memory prints the anonymous resident memory of this process: with nothing, with an open store, and while it takes
// so many transactions a second of seven records, four of which are synced.
func memory(parent string, perSecond int, length time.Duration) error {
	dir, err := os.MkdirTemp(parent, "journal-")
	if err != nil {
		return err
	}
	defer func() { _ = os.RemoveAll(dir) }() // left behind at worst
	if err := anonymous("nothing"); err != nil {
		return err
	}
	s, err := badger.Open(badger.Options{Dir: filepath.Join(dir, "store"), ReserveBytes: -1})
	if err != nil {
		return err
	}
	if err := anonymous("store open"); err != nil {
		return err
	}
	start := time.Now()
	n := 0
	var wg sync.WaitGroup
	for time.Since(start) < length {
		due := int(time.Since(start).Seconds() * float64(perSecond))
		for ; n < due; n++ {
			i := n
			wg.Go(func() { transaction(s, i) })
		}
		time.Sleep(time.Millisecond)
	}
	if err := anonymous(fmt.Sprintf("after %d transactions, %d a second", n, perSecond)); err != nil {
		return err
	}
	wg.Wait()
	runtime.GC()
	if err := anonymous("after a collection"); err != nil {
		return err
	}
	return s.Close()
}

// transaction writes what a transfer with two branches does.
func transaction(s *badger.Store, n int) {
	id := txn.ID(fmt.Sprintf("0K3V9X2ABCDEF.01JD3ZK%019d", n))
	for i, r := range []txn.Record{
		txn.Began{Spec: txn.Spec{ID: id, Mode: txn.Intercepted, Plan: txn.Intercepted.Plan(), Key: string(id)}},
		txn.Enlisted{Branch: txn.Branch{ID: "1", Ops: [txn.NumOps][]byte{txn.Undo: make([]byte, 150)}}},
		txn.Settled{Branch: "1", Outcome: txn.OK, Result: make([]byte, 80)},
		txn.Enlisted{Branch: txn.Branch{ID: "2", Ops: [txn.NumOps][]byte{txn.Undo: make([]byte, 150)}}},
		txn.Settled{Branch: "2", Outcome: txn.OK, Result: make([]byte, 80)},
		txn.Decided{Commit: true, Stand: []string{"1", "2"}},
		txn.Finished{Phase: txn.Committed},
	} {
		sync := i != 2 && i != 4 && i != 6
		if err := s.Append(context.Background(), []txlog.Entry{{Tx: id, At: time.Now(), Record: r}}, sync); err != nil {
			fmt.Fprintln(os.Stderr, "journal:", err)
			return
		}
	}
}

func anonymous(when string) error {
	b, err := os.ReadFile("/proc/self/status")
	if err != nil {
		return err
	}
	for line := range strings.Lines(string(b)) {
		if f := strings.Fields(line); len(f) == 3 && f[0] == "RssAnon:" {
			fmt.Printf("%s: %s kB anonymous\n", when, f[1])
		}
	}
	return nil
}
