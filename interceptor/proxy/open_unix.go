//go:build unix

package proxy

import (
	"net"
	"syscall"
)

// probe asks the kernel whether a resting connection is still open and silent. It does not block.
type probe struct {
	raw    syscall.RawConn // nil: cannot know
	peek   func(fd uintptr)
	silent bool
}

func newProbe(conn net.Conn) *probe {
	p := new(probe)
	sc, ok := conn.(syscall.Conn)
	if !ok {
		return p
	}
	raw, err := sc.SyscallConn()
	if err != nil {
		return p
	}
	p.raw = raw
	one := make([]byte, 1)
	p.peek = func(fd uintptr) {
		_, _, err := syscall.Recvfrom(int(fd), one, syscall.MSG_PEEK|syscall.MSG_DONTWAIT)
		p.silent = err == syscall.EAGAIN
	}
	return p
}

func (p *probe) isOpen() bool {
	return p.raw == nil || p.raw.Control(p.peek) == nil && p.silent
}
