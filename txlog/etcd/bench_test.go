package etcd_test

import (
	"fmt"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"txmesh/tests/databases"
	"txmesh/txlog"
	"txmesh/txn"
)

// BenchmarkAppend measures durable appends of three for each transaction: one begins it, one settles, one ends it.
func BenchmarkAppend(b *testing.B) {
	for _, members := range []int{1, 3} {
		c := databases.StartEtcd(b, members)
		for _, load := range []struct{ owners, writers int }{{1, 1}, {1, 256}, {16, 16}} {
			b.Run(fmt.Sprintf("members=%d/owners=%d/writers=%d", members, load.owners, load.writers), func(b *testing.B) {
				var stores []txlog.Store
				for i := range load.owners {
					stores = append(stores, claim(b, open(b, c), fmt.Sprintf("%s-%d-%d-%d", b.Name(), b.N, i, time.Now().UnixNano())))
				}
				appendAll(b, stores, load.writers)
			})
		}
	}
}

func appendAll(b *testing.B, stores []txlog.Store, writers int) {
	var next atomic.Int64
	var all sync.WaitGroup
	start := time.Now()
	b.ResetTimer()
	for o, s := range stores {
		for w := range writers {
			all.Go(func() {
				for n := 0; next.Add(1) <= int64(b.N); n++ {
					id := fmt.Sprintf("%s-%d-%d-%d-%d", b.Name(), start.UnixNano(), o, w, n/3)
					e := []txlog.Entry{{Tx: txn.ID(id), At: time.Unix(1, 0), Record: step(id, n%3)}}
					if err := s.Append(b.Context(), e, true); err != nil {
						b.Error(err)
						return
					}
				}
			})
		}
	}
	all.Wait()
	b.StopTimer()
	b.ReportMetric(float64(b.N)/time.Since(start).Seconds(), "appends/s")
	b.ReportMetric(0, "ns/op")
}

func step(id string, n int) txn.Record {
	switch n {
	case 0:
		spec := txn.Spec{ID: txn.ID(id), Mode: txn.Saga, Name: "transfer", Branches: []txn.Branch{
			{ID: "1", Ops: [txn.NumOps][]byte{txn.Forward: make([]byte, 100), txn.Undo: make([]byte, 100)}},
			{ID: "2", Ops: [txn.NumOps][]byte{txn.Forward: make([]byte, 100), txn.Undo: make([]byte, 100)}}}}
		return txn.Began{Spec: spec}
	case 1:
		return txn.Settled{Branch: "1", Op: txn.Forward, Outcome: txn.OK}
	}
	return txn.Finished{Phase: txn.Committed}
}
