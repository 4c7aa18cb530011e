// Package txn does what the core must not do.
package txn

import (
	"maps"
	"math/rand" // want `the core may not import math/rand`
	"slices"
	"sync" // want `the core may not import sync`
	clock "time"

	"txmesh/txn/barrier"
)

type machine struct {
	mu   sync.Mutex
	work chan int // want `the core has no channels`
	by   map[string]int
	list []int
}

func (m *machine) step(at clock.Time) int {
	go m.step(at)       // want `the core starts no goroutine`
	now := clock.Now    // want `the core reads no clock: time.Now comes in as a value`
	_ = clock.Since(at) // want `the core reads no clock: time.Since comes in as a value`
	m.work <- 1         // want `the core has no channels`
	<-m.work            // want `the core has no channels`
	select {}           // want `the core has no channels`
	for range m.by {    // want `the core does not range over a map: its order differs from run to run`
	}
	for range maps.Keys(m.by) { // want `maps.Keys has no order: sort it at once with slices.Sorted`
	}
	for range barrier.Rows() { // want `the core does not range over a map: its order differs from run to run`
	}
	for range slices.Sorted(maps.Keys(m.by)) {
	}
	for range m.list {
	}
	return rand.Int() + now().Add(clock.Second).Nanosecond()
}
