package load

import (
	"runtime"
	"time"

	"golang.org/x/sys/unix"
)

// exact runs f on a thread of its own whose sleeps end in time: the runtime's timers may be a millisecond late when
// nothing else happens.
func exact(f func()) {
	runtime.LockOSThread()
	defer runtime.UnlockOSThread()
	_ = unix.Prctl(unix.PR_SET_TIMERSLACK, 1, 0, 0, 0)                    // without it sleeps are 50 us late, which Result.Late tells
	defer func() { _ = unix.Prctl(unix.PR_SET_TIMERSLACK, 0, 0, 0, 0) }() // its default again: later sleeps do not matter
	f()
}

func sleep(until time.Time) {
	for d := time.Until(until); d > 0; d = time.Until(until) {
		t := unix.NsecToTimespec(int64(d))
		_ = unix.Nanosleep(&t, nil) // interrupted: the loop sleeps the rest
	}
}
