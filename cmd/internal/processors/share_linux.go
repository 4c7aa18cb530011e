package processors

import (
	"bytes"
	"os"
	"strconv"
	"time"

	"golang.org/x/sys/unix"
)

// ownShare returns watch.own.
func ownShare() func() float64 {
	var was, at time.Duration
	begun := time.Now()
	return func() float64 {
		var u unix.Rusage
		if err := unix.Getrusage(unix.RUSAGE_SELF, &u); err != nil {
			return 0
		}
		is, now := time.Duration(u.Utime.Nano()+u.Stime.Nano()), time.Since(begun)
		share := float64(is-was) / float64(now-at)
		was, at = is, now
		return share
	}
}

// machineShare returns watch.all.
func machineShare() func() float64 {
	var wasBusy, wasTotal uint64
	return func() float64 {
		text, err := os.ReadFile("/proc/stat")
		if err != nil {
			return 0
		}
		busy, total, ok := ticks(text)
		if !ok || total <= wasTotal {
			return 0
		}
		share := float64(busy-wasBusy) / float64(total-wasTotal)
		wasBusy, wasTotal = busy, total
		return share
	}
}

// ticks reads the first line of /proc/stat: what all processors have spent since the machine started. proc_stat(5)
func ticks(text []byte) (busy, total uint64, ok bool) {
	line, _, _ := bytes.Cut(text, []byte("\n"))
	f := bytes.Fields(line)
	const idle, ioWait, steal = 4, 5, 8 // what guests took comes after steal, and is in user too
	if len(f) <= steal || string(f[0]) != "cpu" {
		return 0, 0, false
	}
	for i := 1; i <= steal; i++ {
		n, err := strconv.ParseUint(string(f[i]), 10, 64)
		if err != nil {
			return 0, 0, false
		}
		total += n
		if i != idle && i != ioWait {
			busy += n
		}
	}
	return busy, total, true
}
