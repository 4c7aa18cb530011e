package raw

import (
	"errors"
	"fmt"
	"io"
	"net"
	"sync"
	"syscall"

	"golang.org/x/sys/unix"
)

const (
	pipeBytes = 256 << 10 // of one pipe; users without privileges may have 64 MiB of them in all
	pipesKept = 64
)

var errNoSplice = errors.New("no splice")

// pipe is two ends of a pipe that is empty while nobody uses it.
type pipe struct{ r, w int }

// pipes lends pipes. A connection has one only while bytes of it are in there: those that wait have none, so that many
// idle connections cost neither memory nor file descriptors. This is why TCPConn.ReadFrom will not do, which keeps one
// for each direction from begin to end.
type pipes struct {
	mu     sync.Mutex // guards the rest
	free   []pipe
	closed bool
}

func (p *pipes) get() (pipe, error) {
	p.mu.Lock()
	if n := len(p.free); n > 0 {
		out := p.free[n-1]
		p.free = p.free[:n-1]
		p.mu.Unlock()
		return out, nil
	}
	p.mu.Unlock()
	var fds [2]int
	if err := unix.Pipe2(fds[:], unix.O_NONBLOCK|unix.O_CLOEXEC); err != nil {
		return pipe{}, fmt.Errorf("%w: make a pipe: %w", errNoSplice, err)
	}
	_, _ = unix.FcntlInt(uintptr(fds[0]), unix.F_SETPIPE_SZ, pipeBytes) // a smaller one works as well
	return pipe{fds[0], fds[1]}, nil
}

// put takes an empty pipe back.
func (p *pipes) put(x pipe) {
	p.mu.Lock()
	if !p.closed && len(p.free) < pipesKept {
		p.free = append(p.free, x)
		p.mu.Unlock()
		return
	}
	p.mu.Unlock()
	x.close()
}

func (p *pipes) close() {
	p.mu.Lock()
	free := p.free
	p.free, p.closed = nil, true
	p.mu.Unlock()
	for _, x := range free {
		x.close()
	}
}

func (x pipe) close() {
	_ = unix.Close(x.r) // nothing of worth is in it
	_ = unix.Close(x.w)
}

// splicer is the state of one direction between its system calls.
type splicer struct {
	pipes *pipes
	pipe  pipe
	held  bool // pipe is ours
	n     int  // bytes in it
	err   error
}

// splice moves bytes from one socket to another through a pipe.
func (s *session) splice(f *flow, from, to *net.TCPConn) error {
	in, err := from.SyscallConn()
	if err != nil {
		return err
	}
	out, err := to.SyscallConn()
	if err != nil {
		return errors.Join(errWrite, err)
	}
	x := &splicer{pipes: &s.p.pipes}
	defer x.release()
	fill, drain := x.fill, x.drain // one closure each, not one a call
	for {
		if err := errors.Join(in.Read(fill), x.err); err != nil {
			return err
		}
		if x.n == 0 {
			if f.brokeOff() {
				return io.ErrUnexpectedEOF
			}
			return io.EOF
		}
		s.count(f, x.n)
		if err := errors.Join(out.Write(drain), x.err); err != nil {
			return errors.Join(errWrite, err)
		}
	}
}

// fill takes what the socket has. It reports false to be called again when there is something.
func (x *splicer) fill(fd uintptr) bool {
	if !x.held {
		if x.pipe, x.err = x.pipes.get(); x.err != nil {
			return true
		}
		x.held = true
	}
	x.n, x.err = move(int(fd), x.pipe.w, pipeBytes)
	switch {
	case errors.Is(x.err, unix.EAGAIN):
		x.err = nil
		x.release()
		return false
	case errors.Is(x.err, unix.EINVAL), errors.Is(x.err, unix.ENOSYS): // some sandboxes lack it
		x.err = errNoSplice
	}
	return true
}

// drain gives the socket all that was taken. It reports false to be called again when there is room.
func (x *splicer) drain(fd uintptr) bool {
	for x.n > 0 {
		n, err := move(x.pipe.r, int(fd), x.n)
		if errors.Is(err, unix.EAGAIN) {
			return false
		}
		if err != nil {
			x.err = err
			return true
		}
		x.n -= n
	}
	return true
}

func move(from, to, bytes int) (int, error) {
	for {
		n, err := unix.Splice(from, nil, to, nil, bytes, unix.SPLICE_F_NONBLOCK|unix.SPLICE_F_MOVE)
		if !errors.Is(err, unix.EINTR) {
			return int(max(n, 0)), err
		}
	}
}

// release gives the pipe back, unless something is left in it.
func (x *splicer) release() {
	switch {
	case !x.held:
	case x.n > 0:
		x.pipe.close()
	default:
		x.pipes.put(x.pipe)
	}
	x.held = false
}

// brokeOff tells a reset from an end. The error of a reset is told once, and the writer of the other direction may have
// been the one that heard of it; but a socket that this side has not ended is closed only by a reset.
func (f *flow) brokeOff() bool {
	if f.fin.Load() {
		return false
	}
	raw, ok := f.from.(syscall.Conn)
	if !ok {
		return false
	}
	c, err := raw.SyscallConn()
	if err != nil {
		return false
	}
	closed := false
	err = c.Control(func(fd uintptr) { closed = isClosed(int(fd)) })
	return err == nil && closed
}

// broke waits until a connection that has said its last word breaks, or is closed here: then it returns false.
func broke(c net.Conn) bool {
	t := tcp(c)
	if t == nil {
		return false
	}
	raw, err := t.SyscallConn()
	if err != nil {
		return false
	}
	return raw.Read(func(fd uintptr) bool { return isClosed(int(fd)) }) == nil
}

func isClosed(fd int) bool {
	const tcpClose = 7 // TCP_CLOSE of the kernel
	info, err := unix.GetsockoptTCPInfo(fd, unix.IPPROTO_TCP, unix.TCP_INFO)
	return err == nil && info.State == tcpClose
}
