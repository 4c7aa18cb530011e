package outbound

import (
	"errors"
	"net"
	"syscall"
	"time"
)

// errStale says that the server had closed a kept connection before anything was written to it.
var errStale = errors.New("the server has closed the kept connection")

// idleMin is how long a connection was not read before it is looked at once more. Servers keep them for seconds.
const idleMin = 100 * time.Millisecond

// tracked is a connection that the transport can break off, and that does not take a request after its server has
// closed it: many close kept connections after seconds, and a request that is written then comes to nothing, or to
// nobody knows what. One goroutine at a time uses it.
type tracked struct {
	net.Conn
	t    *transport
	read time.Time // of the last answer's last byte; zero: none since the last write
}

// Read implements net.Conn.
func (c *tracked) Read(p []byte) (int, error) {
	n, err := c.Conn.Read(p)
	if n > 0 {
		c.read = time.Now()
	}
	return n, err
}

// Write implements net.Conn.
func (c *tracked) Write(p []byte) (int, error) {
	if !c.read.IsZero() && time.Since(c.read) > idleMin && c.isOver() {
		return 0, errStale
	}
	c.read = time.Time{}
	return c.Conn.Write(p)
}

// isOver reports whether there is anything to read, the end included: between two requests nothing else comes.
func (c *tracked) isOver() bool {
	sc, ok := c.Conn.(syscall.Conn)
	if !ok {
		return false
	}
	raw, err := sc.SyscallConn()
	if err != nil {
		return true
	}
	over := false
	err = raw.Read(func(fd uintptr) bool {
		var b [1]byte
		_, _, err := syscall.Recvfrom(int(fd), b[:], syscall.MSG_PEEK|syscall.MSG_DONTWAIT)
		over = !errors.Is(err, syscall.EAGAIN)
		return true
	})
	return over || err != nil
}

// Close implements net.Conn.
func (c *tracked) Close() error {
	c.t.connMu.Lock()
	delete(c.t.conns, c)
	c.t.connMu.Unlock()
	return c.Conn.Close()
}
