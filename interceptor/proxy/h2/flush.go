package h2

import (
	"errors"
	"os"
	"time"
)

// batch collects the connections to which something was said, so that much of it leaves in one system call. Who has a
// batch flushes it before it blocks. One goroutine uses it.
type batch struct{ links []*link }

// flush writes what was said.
func (b *batch) flush() {
	for len(b.links) > 0 {
		l := b.links[len(b.links)-1]
		b.links = b.links[:len(b.links)-1]
		l.flush(b)
	}
}

// flush writes out, without waiting for a slow peer: then a goroutine of its own goes on.
func (l *link) flush(b *batch) {
	l.mu.Lock()
	l.queued = false
	if l.writing {
		l.mu.Unlock()
		return
	}
	l.writing = true
	for p := l.outgoing(); p != nil; p = l.outgoing() {
		l.mu.Unlock()
		n, err := 0, error(nil)
		if l.quick != nil {
			n, err = l.quick.Try(p)
		}
		if err == nil && n < len(p) {
			go l.drain(p, n)
			return
		}
		l.written(p, err, b)
	}
	l.stop()
}

// drain writes with blocking until out is empty.
func (l *link) drain(p []byte, n int) {
	var b batch
	for {
		l.written(p, l.put(p[n:]), &b)
		if p, n = l.outgoing(), 0; p == nil {
			l.stop()
			b.flush()
			return
		}
		l.mu.Unlock()
		b.flush()
	}
}

// put writes all of p, for as long as the peer takes something of it. TLS cannot go on after a write that timed out.
func (l *link) put(p []byte) error {
	for {
		// A closed connection says so in Write.
		_ = l.conn.SetWriteDeadline(time.Now().Add(l.writeTime))
		n, err := l.conn.Write(p)
		_ = l.conn.SetWriteDeadline(time.Time{})
		if n == 0 || l.quick == nil || !errors.Is(err, os.ErrDeadlineExceeded) {
			return err
		}
		p = p[n:]
	}
}

// outgoing takes what is to be written, nil if there is nothing; called with mu held.
func (l *link) outgoing() []byte {
	if len(l.out) == 0 || l.dead != nil {
		return nil
	}
	p := l.out
	l.out, l.spare = l.spare[:0], nil
	return p
}

// written takes the buffer back, and lets those go on that waited for room. It returns with mu held.
func (l *link) written(p []byte, err error, b *batch) {
	if err != nil {
		l.fail(err, b)
		l.mu.Lock()
		return
	}
	l.mu.Lock()
	if cap(p) <= outFull {
		l.spare = p[:0]
	}
	waiting := len(l.ready) > 0
	l.drained.Broadcast()
	if waiting {
		l.mu.Unlock()
		l.pump(b)
		l.mu.Lock()
	}
}

// stop ends writing; called with mu held, which it gives up. The last words of a connection that ends are followed by
// an end, and by a moment for the peer to read them.
func (l *link) stop() {
	l.writing = false
	end, half := l.ending && l.dead == nil, l.half
	l.half = false
	l.mu.Unlock()
	switch {
	case l.plain != nil && end:
		l.conn.Close() // both halves have ended
		return
	case half:
		l.endHalf()
		return
	case !end:
		return
	}
	if !l.endHalf() {
		return
	}
	// The reader ends by the peer's end, or by this.
	_ = l.conn.SetReadDeadline(time.Now().Add(lingerTime))
}

// endHalf tells the peer that nothing more comes. Where only the whole connection can end, the reader finds out.
func (l *link) endHalf() bool {
	half, ok := l.conn.(interface{ CloseWrite() error })
	if ok && half.CloseWrite() == nil {
		return true
	}
	l.conn.Close()
	return false
}
