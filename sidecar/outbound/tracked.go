package outbound

import (
	"errors"
	"net"
	"time"

	"txmesh/interceptor/socket"
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
	if !c.read.IsZero() && time.Since(c.read) > idleMin && !socket.IsSilent(c.Conn) {
		return 0, errStale
	}
	c.read = time.Time{}
	return c.Conn.Write(p)
}

// Close implements net.Conn.
func (c *tracked) Close() error {
	c.t.connMu.Lock()
	delete(c.t.conns, c)
	c.t.connMu.Unlock()
	return c.Conn.Close()
}
