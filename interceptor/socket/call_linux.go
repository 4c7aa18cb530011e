//go:build linux && !386 && !s390x

package socket

import (
	"errors"
	"syscall"
	"unsafe"
)

// quick says whether there are system calls that the scheduler need not know of; peek is the flag of those that leave
// what they read, 0 if there is none.
const (
	quick = true
	peek  = syscall.MSG_PEEK
)

// receive reads from a socket that does not block.
func receive(fd uintptr, p []byte, flags uintptr) (int, syscall.Errno) {
	if raced && flags == 0 {
		return seen(syscall.Read(int(fd), p))
	}
	return call(syscall.SYS_RECVFROM, fd, p, flags|syscall.MSG_DONTWAIT)
}

// send writes to one. A side that has closed is an error and no signal.
func send(fd uintptr, p []byte) (int, syscall.Errno) {
	if raced {
		return seen(syscall.Write(int(fd), p))
	}
	return call(syscall.SYS_SENDTO, fd, p, syscall.MSG_DONTWAIT|syscall.MSG_NOSIGNAL)
}

// seen is the result of a call of package syscall, which tells the race detector of it: what was written before a message
// left has happened before whatever its receiver does.
func seen(n int, err error) (int, syscall.Errno) {
	var errs syscall.Errno
	errors.As(err, &errs)
	return max(n, 0), errs
}

// call is a system call that the scheduler does not see: never one that may block.
func call(trap, fd uintptr, p []byte, flags uintptr) (int, syscall.Errno) {
	for {
		n, _, errs := syscall.RawSyscall6(trap, fd, uintptr(unsafe.Pointer(unsafe.SliceData(p))), uintptr(len(p)), flags, 0, 0)
		switch errs {
		case 0:
			return int(n), 0
		case syscall.EINTR:
		default:
			return 0, errs
		}
	}
}

// unpaced takes the one congestion control that is always there and sets no timers. Between two processes of one host
// nothing is congested; BBR, where it is the default of the host, would pace each answer.
func unpaced(fd uintptr) {
	_ = syscall.SetsockoptString(int(fd), syscall.IPPROTO_TCP, syscall.TCP_CONGESTION, "reno") // see Quick
}
