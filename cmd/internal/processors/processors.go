// Package processors decides how many threads of this process may run Go code at a time, for a process whose system calls
// the runtime does not see (txmesh/interceptor/socket): where the kernel puts a thread aside in one, the runtime cannot give its
// place to another. It never takes more than a container was given. Start at Spare.
package processors

import (
	"context"
	"os"
	"runtime"
	"time"
)

// Spare lets one thread more run Go code than there are processors. While all processors of the machine are busy, each may
// have a thread put aside for others, and so many more, eight at most, may run; that is watched until ctx ends. With processors idle, threads
// that look for work cost more than they find. The variable GOMAXPROCS wins, and so does a limit of the container: there, a
// thread more would be throttled.
func Spare(ctx context.Context) {
	n := runtime.NumCPU()
	if !may(os.Getenv("GOMAXPROCS"), runtime.GOMAXPROCS(0), n) {
		return
	}
	runtime.GOMAXPROCS(n + 1)
	w := watch{own: ownShare(), all: machineShare()}
	tick := time.NewTicker(every)
	defer tick.Stop()
	for {
		select {
		case <-ctx.Done():
			return
		case <-tick.C:
		}
		want := n + 1
		if w.allBusy() {
			want += min(n, moreMax)
		}
		if want != runtime.GOMAXPROCS(0) { // to set it stops all of Go for a moment
			runtime.GOMAXPROCS(want)
		}
	}
}

// may reports whether there may be threads to spare, where the runtime has chosen so many for so many processors.
func may(variable string, chosen, processors int) bool { return variable == "" && chosen >= processors }

// moreMax bounds what large machines add: each thread that may run Go has memory of its own.
const moreMax = 8

const (
	every     = 500 * time.Millisecond
	worth     = 0.2  // of one processor: a process that takes less does not look at the machine
	busy      = 0.94 // of all processors
	calm      = 0.88
	calmLooks = 6 // in a row before threads go: what would wait for them suffers more than they cost
)

// watch tells whether the machine has a processor left.
type watch struct {
	own func() float64 // how much of one processor this process took since it was asked last
	all func() float64 // how much of all processors anything took since it was asked last; 0 where nobody can tell

	is    bool
	calms int // the last looks at which some were idle
}

// allBusy looks once more.
func (w *watch) allBusy() bool {
	share := 0.0
	if w.own() >= worth {
		share = w.all()
	}
	switch {
	case share >= busy:
		w.is, w.calms = true, 0
	case share >= calm:
		w.calms = 0
	default:
		w.calms++
	}
	w.is = w.is && w.calms < calmLooks
	return w.is
}
