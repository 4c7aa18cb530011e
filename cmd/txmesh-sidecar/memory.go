package main

import (
	"context"
	"os"
	"runtime"
	"runtime/debug"
	"runtime/metrics"
	"time"

	"txmesh/sidecar"
)

// How much garbage may gather beside what lives, in percent. Beside an application a small heap is worth some work of
// the collector; a server of its own may use its memory-limit. GOGC, if set, wins.
const (
	gcPercentBeside = 50
	gcPercentAlone  = 400
)

func limitMemory(cfg sidecar.Config) {
	if os.Getenv("GOMEMLIMIT") == "" {
		debug.SetMemoryLimit(cfg.MemoryLimit)
	}
	if os.Getenv("GOGC") != "" {
		return
	}
	if cfg.Alone() {
		debug.SetGCPercent(gcPercentAlone)
		return
	}
	debug.SetGCPercent(gcPercentBeside)
}

// How long nothing was collected when memory is given back, at first and at most, and what is worth doing it again soon.
const (
	quietTime    = 15 * time.Second
	quietTimeMax = 4 * time.Minute
	worthIt      = 2 << 20
)

// giveBack returns memory to the system when a burst is over, until ctx ends. The runtime alone would do it late: where
// little is allocated it collects every two minutes, and what it has found it returns bit by bit. While there is work
// the collector runs more often than every quietTime, and this does nothing.
func giveBack(ctx context.Context) {
	quiet := quietTime
	for before := uint64(0); ; {
		select {
		case <-ctx.Done():
			return
		case <-time.After(quiet):
		}
		cycles, held := collected()
		if cycles != before {
			before, quiet = cycles, quietTime
			continue
		}
		runtime.GC() // pools keep what they have for one collection
		debug.FreeOSMemory()
		var left uint64
		if before, left = collected(); held < left+worthIt {
			quiet = min(2*quiet, quietTimeMax)
		}
	}
}

// collected is how often garbage was collected, and how many bytes the runtime holds.
func collected() (cycles, held uint64) {
	s := []metrics.Sample{{Name: "/gc/cycles/total:gc-cycles"}, {Name: "/memory/classes/total:bytes"}, {Name: "/memory/classes/heap/released:bytes"}}
	metrics.Read(s)
	return s[0].Value.Uint64(), s[1].Value.Uint64() - s[2].Value.Uint64()
}
