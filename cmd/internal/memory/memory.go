// Package memory keeps the memory of our processes small: it sets the collector of garbage, and gives back to the system
// what a burst has left. It decides no figures. Start at GiveBack.
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

// What is worth doing it again soon, and how long is waited at most where it is not.
const (
	worthIt  = 2 << 20
	quietMax = 4 * time.Minute
)

// GiveBack returns memory to the system when a burst is over, which is when nothing was collected for so long, until ctx
// ends. The runtime alone would do it late: where little is allocated it collects every two minutes, and what it has found
// it returns bit by bit. While there is work the collector runs more often, and this does nothing.
func GiveBack(ctx context.Context, burst time.Duration) {
	quiet := burst
	for before := uint64(0); ; {
		select {
		case <-ctx.Done():
			return
		case <-time.After(quiet):
		}
		cycles, held := collected()
		if cycles != before {
			before, quiet = cycles, burst
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
