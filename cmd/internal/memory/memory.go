// Package memory keeps the memory of our processes small: it sets the collector of garbage, and gives back to the system
// what a burst has left. How much that is its callers say. Start at GiveBack.
package memory

import (
	"context"
	"os"
	"runtime"
	"runtime/debug"
	"runtime/metrics"
	"time"
)

// Limit sets the soft limit of what the runtime holds, in bytes, and how much garbage may gather beside what lives, in
// percent. The variables GOMEMLIMIT and GOGC win, each over its own.
func Limit(bytes int64, gcPercent int) {
	if os.Getenv("GOMEMLIMIT") == "" {
		debug.SetMemoryLimit(bytes)
	}
	if os.Getenv("GOGC") == "" {
		debug.SetGCPercent(gcPercent)
	}
}

// How long nothing was collected when memory is given back, at first and at most, and what is worth doing it again soon.
const (
	quietMin = 15 * time.Second
	quietMax = 4 * time.Minute
	worthIt  = 2 << 20
)

// GiveBack returns memory to the system when a burst is over, until ctx ends. The runtime alone would do it late: where
// little is allocated it collects every two minutes, and what it has found it returns bit by bit. While there is work the
// collector runs more often, and this does nothing.
func GiveBack(ctx context.Context) {
	quiet := quietMin
	for before := uint64(0); ; {
		select {
		case <-ctx.Done():
			return
		case <-time.After(quiet):
		}
		cycles, held := collected()
		if cycles != before {
			before, quiet = cycles, quietMin
			continue
		}
		runtime.GC() // pools keep what they have for one collection
		debug.FreeOSMemory()
		var left uint64
		if before, left = collected(); held < left+worthIt {
			quiet = min(2*quiet, quietMax)
		}
	}
}

// collected is how often garbage was collected, and how many bytes the runtime holds.
func collected() (cycles, held uint64) {
	s := []metrics.Sample{{Name: "/gc/cycles/total:gc-cycles"}, {Name: "/memory/classes/total:bytes"}, {Name: "/memory/classes/heap/released:bytes"}}
	metrics.Read(s)
	return s[0].Value.Uint64(), s[1].Value.Uint64() - s[2].Value.Uint64()
}
