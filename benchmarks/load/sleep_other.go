//go:build !linux

package load

import "time"

func exact(f func()) { f() }

func sleep(until time.Time) { time.Sleep(time.Until(until)) }
