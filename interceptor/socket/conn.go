package socket

import (
	"errors"
	"io"
	"net"
	"os"
	"syscall"
)

// onceMax is how much one system call may copy: its thread runs nothing else meanwhile, and a garbage collection that
// begins waits for it.
const onceMax = 64 << 10

// Conn is a TCP connection that is read and written by system calls of which the scheduler is not told. One goroutine at
// a time may read and one may write, and any may close it or set deadlines; otherwise it is the connection that it stands
// on.
type Conn struct {
	*net.TCPConn
	raw  syscall.RawConn
	in   input
	out  output
	talk talk
}

// Quick returns a connection that does the same faster, or the same one where there is nothing to gain. One that only
// knows more than the TCP connection that it stands on has a method Bare that returns that: its Quick knows no more.
func Quick(c net.Conn) net.Conn {
	tcp, ok := c.(*net.TCPConn)
	if b, more := c.(interface{ Bare() *net.TCPConn }); more {
		tcp, ok = b.Bare(), true
	}
	if !ok || !quick {
		return c
	}
	raw, err := tcp.SyscallConn()
	if err != nil {
		return c // closed: whoever uses it finds out
	}
	q := &Conn{TCPConn: tcp, raw: raw}
	q.in.init()
	q.out.init()
	q.talk.init()
	if isLocal(tcp) {
		// Where it fails the connection is as good as before.
		_ = raw.Control(unpaced)
	}
	return q
}

// isLocal reports whether the other side is on this host.
func isLocal(c *net.TCPConn) bool {
	here, ok := c.LocalAddr().(*net.TCPAddr)
	there, both := c.RemoteAddr().(*net.TCPAddr)
	return ok && both && (there.IP.IsLoopback() || there.IP.Equal(here.IP))
}

// input is the read that goes on.
type input struct {
	p    []byte
	n    int
	errs syscall.Errno
	try  func(fd uintptr) bool // made once, so that a read allocates nothing
}

func (r *input) init() {
	r.try = func(fd uintptr) bool {
		r.n, r.errs = receive(fd, r.p, 0)
		return r.errs != syscall.EAGAIN
	}
}

// Read implements net.Conn.
func (c *Conn) Read(p []byte) (int, error) {
	if len(p) == 0 {
		return 0, nil
	}
	r := &c.in
	r.p = p
	err := c.raw.Read(r.try)
	r.p = nil
	switch {
	case err != nil:
		return 0, as("read", err)
	case r.errs != 0:
		return 0, c.failed("read", r.errs)
	case r.n == 0:
		return 0, io.EOF
	}
	return r.n, nil
}

// output is the write that goes on.
type output struct {
	p    []byte // not yet taken
	errs syscall.Errno
	once bool // it shall not wait
	try  func(fd uintptr) bool
}

func (w *output) init() {
	w.try = func(fd uintptr) bool {
		for len(w.p) > 0 {
			n, errs := send(fd, w.p[:min(len(w.p), onceMax)])
			if errs != 0 {
				w.errs = errs
				return w.once || errs != syscall.EAGAIN
			}
			w.p = w.p[n:]
		}
		w.errs = 0
		return true
	}
}

// Write implements net.Conn. After a time-out it can be called again with what it has not taken.
func (c *Conn) Write(p []byte) (int, error) { return c.write(p, false) }

// Try writes as much as is taken at once. It does not block: that nothing is taken is no error.
func (c *Conn) Try(p []byte) (int, error) { return c.write(p, true) }

func (c *Conn) write(p []byte, once bool) (int, error) {
	w := &c.out
	w.p, w.once, w.errs = p, once, 0
	err := c.raw.Write(w.try)
	n := len(p) - len(w.p)
	w.p = nil
	switch {
	case err != nil:
		return n, as("write", err)
	case w.errs != 0 && w.errs != syscall.EAGAIN:
		return n, c.failed("write", w.errs)
	}
	return n, nil
}

// ErrSpoken says that a connection that rested has ended, or that something has come on it that nobody asked for.
var ErrSpoken = errors.New("the kept connection is no longer silent")

// talk is the request that goes on, and the wait for its answer.
type talk struct {
	look
	request, answer []byte
	began           bool
	wrote, read     int
	errs            syscall.Errno // of whichever came last
	try             func(fd uintptr) bool
}

func (t *talk) init() {
	t.look.init()
	t.try = func(fd uintptr) bool {
		if t.began {
			t.read, t.errs = receive(fd, t.answer, 0)
			return t.errs != syscall.EAGAIN
		}
		t.began = true
		if t.peek(fd); !t.silent {
			return true
		}
		t.wrote, t.errs = send(fd, t.request)
		return t.wrote < len(t.request)
	}
}

// Ask writes a request on a connection that has rested, and reads the first bytes of what comes back. It does the same as
// IsSilent, Write and Read, but knows that between the look and the write nothing has come, and spares the read that
// would find nothing. An error belongs to the write if less than the request was written, and to the read otherwise;
// ErrSpoken means that nothing was written, and why.
func (c *Conn) Ask(request, answer []byte) (wrote, read int, err error) {
	t := &c.talk
	t.request, t.answer = request, answer
	t.began, t.silent, t.wrote, t.read, t.errs = false, false, 0, 0, 0
	err = c.raw.Read(t.try)
	t.request, t.answer = nil, nil
	switch wrote = t.wrote; {
	case err != nil:
		return wrote, 0, as("read", err)
	case !t.silent:
		return 0, 0, ErrSpoken
	case wrote < len(request):
		if t.errs != 0 && t.errs != syscall.EAGAIN {
			return wrote, 0, c.failed("write", t.errs)
		}
		more, err := c.Write(request[wrote:])
		return wrote + more, 0, err
	case t.errs != 0:
		return wrote, 0, c.failed("read", t.errs)
	case t.read == 0:
		return wrote, 0, io.EOF
	}
	return wrote, t.read, nil
}

// as gives an error of a RawConn the name that it has elsewhere.
func as(op string, err error) error {
	var e *net.OpError
	if errors.As(err, &e) {
		e.Op = op
	}
	return err
}

// failed is the error that package net has for it.
func (c *Conn) failed(op string, errs syscall.Errno) error {
	return &net.OpError{Op: op, Net: c.LocalAddr().Network(), Source: c.LocalAddr(), Addr: c.RemoteAddr(), Err: os.NewSyscallError(op, errs)}
}

// look is the look whether there is anything to read.
type look struct {
	one    [1]byte
	silent bool
	peek   func(fd uintptr)
}

func (l *look) init() {
	l.peek = func(fd uintptr) {
		_, errs := receive(fd, l.one[:], peek)
		l.silent = errs == syscall.EAGAIN
	}
}

// IsSilent reports whether a connection that rests between two exchanges is open and nothing has come on it; true also
// where that cannot be known. It does not block. Who reads from the connection calls it.
func IsSilent(c net.Conn) bool {
	if q, ok := c.(*Conn); ok {
		return q.raw.Control(q.talk.peek) == nil && q.talk.silent
	}
	s, ok := c.(syscall.Conn)
	if !ok || peek == 0 {
		return true
	}
	raw, err := s.SyscallConn()
	if err != nil {
		return false
	}
	var l look
	l.init()
	return raw.Control(l.peek) == nil && l.silent
}
