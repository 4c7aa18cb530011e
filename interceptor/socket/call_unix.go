//go:build unix && (!linux || 386 || s390x)

package socket

import (
	"errors"
	"syscall"
)

// As in call_linux.go; here sockets can be looked at, and are used as package net does.
const (
	quick = false
	peek  = syscall.MSG_PEEK
)

func receive(fd uintptr, p []byte, flags uintptr) (int, syscall.Errno) {
	n, _, err := syscall.Recvfrom(int(fd), p, int(flags)|syscall.MSG_DONTWAIT)
	var errs syscall.Errno
	errors.As(err, &errs)
	return max(n, 0), errs
}

func send(uintptr, []byte) (int, syscall.Errno) { return 0, syscall.ENOSYS }
func unpaced(uintptr)                           {}
