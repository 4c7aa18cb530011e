package proxy

import (
	"net"
	"time"

	"txmesh/interceptor/socket"
)

// taker writes to a connection for as long as the other side takes something of it. One goroutine uses it at a time.
type taker struct {
	conn  net.Conn
	idle  time.Duration
	end   time.Time // of all writes; zero: none
	plain bool      // a write that timed out can go on
}

// isPlain reports whether a connection is a socket and nothing else.
func isPlain(conn net.Conn) bool {
	switch conn.(type) {
	case *net.TCPConn, *socket.Conn:
		return true
	}
	return false
}

// newTaker sets the first deadline.
func newTaker(conn net.Conn, idle time.Duration) taker {
	t := taker{conn: conn, idle: idle, plain: isPlain(conn)}
	t.arm()
	return t
}

// arm sets the deadline anew, and reports whether there is time left.
func (t *taker) arm() bool {
	now := time.Now()
	by := now.Add(t.idle)
	if !t.end.IsZero() && t.end.Before(by) {
		by = t.end
	}
	writeUntil(t.conn, by)
	return by.After(now)
}

// until bounds all writes from now on; zero lifts the bound.
func (t *taker) until(end time.Time) {
	t.end = end
	t.arm()
}

// write ends with errStalled when nothing of p is taken for the idle time. To set a deadline for each write would cost
// more than the write of a small answer, so an old one stands until it strikes: what is waiting then has a whole new
// idle time. TLS cannot go on after a write that timed out, and pays.
func (t *taker) write(p []byte) error {
	if !t.plain {
		t.arm()
	}
	for fresh := !t.plain; ; fresh = true {
		n, err := t.conn.Write(p)
		if err == nil || !isTimeout(err) {
			return err
		}
		if !t.end.IsZero() && !time.Now().Before(t.end) {
			return err
		}
		if fresh && (n == 0 || !t.plain) {
			return errStalled
		}
		p = p[n:]
		if !t.arm() {
			return err
		}
	}
}
