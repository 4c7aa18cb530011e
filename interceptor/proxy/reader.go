package proxy

import (
	"errors"
	"io"
	"net"
	"sync"
	"time"

	"txmesh/interceptor/socket"
)

const (
	smallBuffer = 4 << 10  // of an idle connection
	largeBuffer = 32 << 10 // of a streaming one
)

var errBufferFull = errors.New("read buffer is full")

// buffers lends read buffers of the two sizes to all connections of one server.
type buffers struct{ small, large sync.Pool }

func newBuffers() *buffers {
	return &buffers{
		small: sync.Pool{New: func() any { return new([smallBuffer]byte) }},
		large: sync.Pool{New: func() any { return new([largeBuffer]byte) }},
	}
}

// get returns a buffer of at least n bytes.
func (p *buffers) get(n int) []byte {
	switch {
	case n <= smallBuffer:
		return p.small.Get().(*[smallBuffer]byte)[:]
	case n <= largeBuffer:
		return p.large.Get().(*[largeBuffer]byte)[:]
	}
	return make([]byte, n)
}

func (p *buffers) put(b []byte) {
	switch len(b) {
	case smallBuffer:
		p.small.Put((*[smallBuffer]byte)(b))
	case largeBuffer:
		p.large.Put((*[largeBuffer]byte)(b))
	}
}

// reader buffers one direction of a connection. One goroutine uses it at a time.
type reader struct {
	conn net.Conn
	pool *buffers
	buf  []byte
	r, w int   // buf[r:w] has been read from conn and not been used
	err  error // a lasting error that came with data, or after it
}

func (b *reader) buffered() []byte { return b.buf[b.r:b.w] }

func (b *reader) discard(n int) {
	b.r += n
	if b.r == b.w {
		b.r, b.w = 0, 0
	}
}

// ask writes a request and reads the first bytes of its answer. That they have not come is told by the next fill.
func (b *reader) ask(request []byte) (int, error) {
	quick, ok := b.conn.(*socket.Conn)
	switch {
	case ok:
	case !socket.IsSilent(b.conn):
		return 0, socket.ErrSpoken
	default:
		return b.conn.Write(request)
	}
	if b.buf == nil {
		b.buf = b.pool.get(smallBuffer)
	}
	n, m, err := quick.Ask(request, b.buf[b.w:])
	if n < len(request) {
		return n, err
	}
	if b.w += m; err != nil && !isTimeout(err) {
		b.err = err
	}
	return n, nil
}

// fill reads once, and blocks until there is at least one byte more or an error. It never grows the buffer.
func (b *reader) fill() error {
	if b.err != nil {
		return b.err
	}
	if b.buf == nil {
		b.buf = b.pool.get(smallBuffer)
	}
	if b.w == len(b.buf) {
		if b.r == 0 {
			return errBufferFull
		}
		b.w = copy(b.buf, b.buf[b.r:b.w])
		b.r = 0
	}
	n, err := b.conn.Read(b.buf[b.w:])
	b.w += n
	if err != nil && !isTimeout(err) {
		b.err = err
	}
	if n > 0 {
		return nil
	}
	if err == nil {
		return io.ErrNoProgress
	}
	return err
}

// readUntil and writeUntil set deadlines. Their error is that of a closed connection: Read and Write tell it too.
func readUntil(c net.Conn, t time.Time)  { _ = c.SetReadDeadline(t) }
func writeUntil(c net.Conn, t time.Time) { _ = c.SetWriteDeadline(t) }

// widen makes room for n bytes in all.
func (b *reader) widen(n int) {
	if len(b.buf) >= n {
		return
	}
	wide := b.pool.get(n)
	b.w = copy(wide, b.buffered())
	b.r = 0
	b.pool.put(b.buf)
	b.buf = wide
}

// shrink gives a large buffer back when nothing is in it: idle connections should cost little.
func (b *reader) shrink() {
	if b.r == b.w && len(b.buf) > smallBuffer {
		b.release()
	}
}

// release gives the buffer back, with all that is in it.
func (b *reader) release() {
	b.pool.put(b.buf)
	b.buf, b.r, b.w = nil, 0, 0
}
