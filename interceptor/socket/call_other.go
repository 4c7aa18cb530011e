//go:build !unix

package socket

import "syscall"

// As in call_linux.go; here nothing of it can be done.
const (
	quick = false
	peek  = 0
)

func receive(uintptr, []byte, uintptr) (int, syscall.Errno) { return 0, syscall.ENOSYS }
func send(uintptr, []byte) (int, syscall.Errno)             { return 0, syscall.ENOSYS }
func unpaced(uintptr)                                       {}
