package main

import (
	"fmt"
	"sync"
	"sync/atomic"
	"time"
)

// clients is how many send at once. One transaction with two branches waits for four syncs, shared with others.
const clients = 128

// memory offers two-branch transactions at a rate and prints the memory of the owner: idle, and the most seen.
func (b *bench) memory() error {
	var sent, done atomic.Int64
	var failed atomic.Pointer[error]
	var all sync.WaitGroup
	start := time.Now()
	for range clients {
		all.Go(func() {
			for failed.Load() == nil {
				n := sent.Add(1) - 1
				at := start.Add(time.Duration(n) * time.Second / time.Duration(b.rate))
				if at.Sub(start) > b.load || time.Since(start) > b.load {
					return
				}
				time.Sleep(time.Until(at))
				if _, err := b.call("http://" + b.a.Inbound + "/begin/two"); err != nil {
					failed.CompareAndSwap(nil, &err)
					return
				}
				done.Add(1)
			}
		})
	}
	most, err := b.watch(start)
	all.Wait()
	took := time.Since(start)
	if err == nil && failed.Load() != nil {
		err = *failed.Load()
	}
	if err != nil {
		return err
	}
	fmt.Printf("\nMemory of a sidecar (RssAnon): idle %s; at %.0f two-branch transactions a second (%d asked for) from %d clients over %v at most %s.\n",
		mib(b.a.idle), float64(done.Load())/took.Seconds(), b.rate, clients, took.Round(time.Second), mib(most))
	return nil
}

// watch returns the most memory seen during the load.
func (b *bench) watch(start time.Time) (most int64, err error) {
	for time.Since(start) < b.load {
		now, err := b.a.rssAnon()
		if err != nil {
			return 0, err
		}
		most = max(most, now)
		time.Sleep(100 * time.Millisecond)
	}
	return most, nil
}

func mib(n int64) string { return fmt.Sprintf("%.1f MiB", float64(n)/(1<<20)) }
