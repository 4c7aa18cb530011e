// Command journal compares the embedded store with what it stands on: one append with a sync against one fsync of a
// plain file, and many writers against Badger with SyncWrites and one transaction per record, with the same options.
// The sides take turns, and the medians count. It decides nothing. Start at main; the figures are in README.md.
package main

import (
	"context"
	"flag"
	"fmt"
	"os"
	"path/filepath"
	"runtime"
	"runtime/pprof"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	badgerdb "github.com/dgraph-io/badger/v4"

	"txmesh/txlog"
	"txmesh/txlog/badger"
	"txmesh/txn"
)

func main() {
	dir := flag.String("dir", ".", "where the stores lie: the disk to measure")
	rounds := flag.Int("rounds", 5, "turns of each side")
	length := flag.Duration("for", time.Second, "length of a turn")
	writers := flag.Int("writers", 256, "goroutines of the second comparison")
	profile := flag.String("cpuprofile", "", "write a profile of the store's many writers there")
	perSecond := flag.Int("memory", 0, "instead, report memory at so many transactions a second")
	flag.Parse()
	if *perSecond > 0 {
		if err := memory(*dir, *perSecond, *length); err != nil {
			fmt.Fprintln(os.Stderr, "journal:", err)
			os.Exit(1)
		}
		return
	}
	if err := run(*dir, *rounds, *length, *writers, *profile); err != nil {
		fmt.Fprintln(os.Stderr, "journal:", err)
		os.Exit(1)
	}
}

func run(parent string, rounds int, length time.Duration, writers int, profile string) error {
	dir, err := os.MkdirTemp(parent, "journal-")
	if err != nil {
		return err
	}
	defer func() { _ = os.RemoveAll(dir) }() // left behind at worst
	b := &bench{dir: dir, length: length}
	var file, one, rival, many []float64
	for range rounds {
		for _, side := range []struct {
			into *[]float64
			rate func() (float64, error)
		}{
			{&file, b.file},
			{&one, func() (float64, error) { return b.store(1, "") }},
			{&rival, func() (float64, error) { return b.rival(writers) }},
			{&many, func() (float64, error) { return b.store(writers, profile) }},
		} {
			r, err := side.rate()
			if err != nil {
				return err
			}
			*side.into = append(*side.into, r)
		}
	}
	report(writers, file, one, rival, many)
	return nil
}

func report(writers int, file, one, rival, many []float64) {
	fmt.Printf("%s, %d cores, medians of %d (lowest to highest)\n\n", runtime.Version(), runtime.NumCPU(), len(file))
	fmt.Println("| what | per second | each | |")
	fmt.Println("| --- | --- | --- | --- |")
	row("append to a file and fsync, 1 writer", file, "1")
	row("store: append with sync, 1 writer", one, fmt.Sprintf("%.2f fsyncs' time", median(file)/median(one)))
	row(fmt.Sprintf("Badger with SyncWrites, %d writers", writers), rival, "1")
	row(fmt.Sprintf("store: append with sync, %d writers", writers), many, fmt.Sprintf("%.1f times the rate", median(many)/median(rival)))
}

func row(what string, rates []float64, note string) {
	m := median(rates)
	fmt.Printf("| %s | %.0f (%.0f to %.0f) | %.0f us | %s |\n", what, m, slices.Min(rates), slices.Max(rates), 1e6/m, note)
}

func median(v []float64) float64 { return slices.Sorted(slices.Values(v))[len(v)/2] }

type bench struct {
	dir    string
	length time.Duration
	turns  int
}

// place returns a new directory, so that no turn inherits another's data.
func (b *bench) place() string {
	b.turns++
	return filepath.Join(b.dir, fmt.Sprint(b.turns))
}

// entry is what all sides write: a settled op with a small answer.
func entry(id txn.ID) txlog.Entry {
	return txlog.Entry{Tx: id, At: time.Unix(1763900000, 123456789), Record: txn.Settled{
		Branch: string(id) + "-1", Op: txn.Forward, Outcome: txn.OK, Result: []byte(`{"id":"0K3V9X2ABCDEF","status":"booked","amount":4200}`),
	}}
}

// count lets the writers write for one turn and returns how often they did, per second.
func (b *bench) count(writers int, write func(w, i int) error) (float64, error) {
	var n atomic.Int64
	var failed atomic.Pointer[error]
	var wg sync.WaitGroup
	start := time.Now()
	for w := range writers {
		wg.Go(func() {
			for i := 0; time.Since(start) < b.length && failed.Load() == nil; i++ {
				if err := write(w, i); err != nil {
					failed.Store(&err)
				}
				n.Add(1)
			}
		})
	}
	wg.Wait()
	if err := failed.Load(); err != nil {
		return 0, *err
	}
	return float64(n.Load()) / time.Since(start).Seconds(), nil
}

func (b *bench) file() (float64, error) {
	f, err := os.Create(b.place())
	if err != nil {
		return 0, err
	}
	defer func() { _ = f.Close() }() // every write was synced
	body, err := txlog.Encode(entry("0K3V9X2ABCDEF.01JD3ZK0000000000000000000"))
	if err != nil {
		return 0, err
	}
	return b.count(1, func(int, int) error {
		if _, err := f.Write(body); err != nil {
			return err
		}
		return f.Sync()
	})
}

func (b *bench) store(writers int, profile string) (float64, error) {
	s, err := badger.Open(badger.Options{Dir: b.place(), ReserveBytes: -1})
	if err != nil {
		return 0, err
	}
	defer func() { _ = s.Close() }() // every append was synced
	if profile != "" {
		f, err := os.Create(profile)
		if err != nil {
			return 0, err
		}
		defer func() { _ = f.Close() }() // a profile
		if err := pprof.StartCPUProfile(f); err != nil {
			return 0, err
		}
		defer pprof.StopCPUProfile()
	}
	ids := ids(writers)
	return b.count(writers, func(w, _ int) error {
		return s.Append(context.Background(), []txlog.Entry{entry(ids[w])}, true)
	})
}

func ids(n int) []txn.ID {
	out := make([]txn.ID, n)
	for i := range out {
		out[i] = txn.ID(fmt.Sprintf("0K3V9X2ABCDEF.01JD3ZK%019d", i))
	}
	return out
}

func (b *bench) rival(writers int) (float64, error) {
	dir := b.place()
	db, err := badgerdb.Open(badger.Options{Dir: dir}.Tuned().WithLogger(nil).WithSyncWrites(true))
	if err != nil {
		return 0, err
	}
	defer func() { _ = db.Close() }() // every write was synced
	ids := ids(writers)
	return b.count(writers, func(w, i int) error {
		body, err := txlog.Encode(entry(ids[w]))
		if err != nil {
			return err
		}
		return db.Update(func(tx *badgerdb.Txn) error { return tx.Set(fmt.Appendf(nil, "e%s%08d", ids[w], i), body) })
	})
}
