package sql_test

import (
	"fmt"
	"sync"
	"sync/atomic"
	"testing"

	"txmesh/tests/databases"
	"txmesh/txlog"
	shared "txmesh/txlog/sql"
	"txmesh/txn"
)

// BenchmarkAppend appends to transactions of four records each, durably, on a database with its own defaults.
func BenchmarkAppend(b *testing.B) {
	for _, k := range kinds {
		own := &databases.Set{Durable: true}
		for _, c := range []struct{ owners, writers int }{{1, 1}, {1, 256}, {16, 256}} {
			b.Run(fmt.Sprintf("%s/owners=%d/writers=%d", k.name, c.owners, c.writers), func(b *testing.B) {
				e := open(b, shared.Options{DSN: k.place(b, own)})
				var stores []txlog.Store
				for i := range c.owners {
					stores = append(stores, claim(b, e, fmt.Sprintf("AAAAAAAAAAAA%X", i)))
				}
				var n atomic.Int64
				var all sync.WaitGroup
				b.ResetTimer()
				for w := range c.writers {
					all.Go(func() {
						for i := 0; n.Add(1) <= int64(b.N); i++ {
							es := []txlog.Entry{step(fmt.Sprintf("%d-%d", w, i/4), i%4)}
							if err := stores[w%c.owners].Append(b.Context(), es, true); err != nil {
								b.Error(err)
								return
							}
						}
					})
				}
				all.Wait()
				b.ReportMetric(float64(b.N)/b.Elapsed().Seconds(), "appends/s")
			})
		}
		own.Close()
	}
}

func step(id string, n int) txlog.Entry {
	records := []txn.Record{
		txn.Began{Spec: txn.Spec{ID: txn.ID(id), Mode: txn.Saga, Name: "transfer", Branches: []txn.Branch{{ID: "a"}, {ID: "b"}}}},
		txn.Settled{Branch: "a", Outcome: txn.OK, Result: make([]byte, 100)},
		txn.Settled{Branch: "b", Outcome: txn.OK, Result: make([]byte, 100)},
		txn.Finished{Phase: txn.Committed},
	}
	return txlog.Entry{Tx: txn.ID(id), Record: records[n]}
}
