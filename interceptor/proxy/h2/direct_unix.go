//go:build unix

package h2

import (
	"errors"
	"net"
	"syscall"
)

// direct writes to a socket as much as it takes at once. One goroutine uses it at a time.
type direct struct {
	raw syscall.RawConn
	try func(fd uintptr) bool // made once, so that a write allocates nothing
	p   []byte
	n   int
	err error
}

// newDirect returns nil for what is not a plain socket.
func newDirect(conn net.Conn) *direct {
	tcp, ok := conn.(*net.TCPConn)
	if !ok {
		return nil
	}
	raw, err := tcp.SyscallConn()
	if err != nil {
		return nil
	}
	d := &direct{raw: raw}
	d.try = func(fd uintptr) bool {
		d.n, d.err = syscall.Write(int(fd), d.p)
		return true
	}
	return d
}

func (d *direct) write(p []byte) (int, error) {
	for {
		d.p = p
		err := d.raw.Write(d.try)
		d.p = nil
		switch {
		case err != nil:
			return 0, err
		case errors.Is(d.err, syscall.EINTR):
		case errors.Is(d.err, syscall.EAGAIN):
			return 0, nil
		default:
			return max(d.n, 0), d.err
		}
	}
}
