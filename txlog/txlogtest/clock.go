package txlogtest

import (
	"fmt"

	"golang.org/x/sys/unix"
)

// Monotonic returns the nanoseconds of a clock that all processes of this machine share and nobody sets.
func Monotonic() int64 {
	var ts unix.Timespec
	if err := unix.ClockGettime(unix.CLOCK_MONOTONIC, &ts); err != nil {
		panic(fmt.Sprintf("txlogtest: read CLOCK_MONOTONIC: %v", err)) // Linux always has it
	}
	return ts.Nano()
}
