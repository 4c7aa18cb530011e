package redirect

import (
	"net"
	"sync"
)

// Conn is a redirected connection that speaks HTTP, with its whole first message still to be read.
type Conn struct {
	*net.TCPConn
	route Route
}

// Bare is the connection without what is known of it.
func (c *Conn) Bare() *net.TCPConn { return c.TCPConn }

// Destination is the service, if it is known, and the endpoint that the client wanted.
func (c *Conn) Destination() (service, endpoint string) { return c.route.Service, c.route.Endpoint }

// Queue is a listener whose connections are put into it, for servers that want one. Create it with NewQueue; it is safe
// for many goroutines.
type Queue struct {
	addr   net.Addr
	conns  chan *Conn
	closed chan struct{}
	once   sync.Once
}

// NewQueue returns a queue that says that it listens on addr.
func NewQueue(addr net.Addr) *Queue {
	return &Queue{addr: addr, conns: make(chan *Conn), closed: make(chan struct{})}
}

// Put gives a connection to who accepts next. After Close it breaks it.
func (q *Queue) Put(c *Conn) {
	select {
	case q.conns <- c:
	case <-q.closed:
		_ = c.SetLinger(0) // the close that follows is all that can be done
		_ = c.Close()      // it shall break
	}
}

// Accept waits for a connection.
func (q *Queue) Accept() (net.Conn, error) {
	select {
	case c := <-q.conns:
		return c, nil
	case <-q.closed:
		return nil, net.ErrClosed
	}
}

// Close ends Accept and Put.
func (q *Queue) Close() error {
	q.once.Do(func() { close(q.closed) })
	return nil
}

// Addr is the address given to NewQueue.
func (q *Queue) Addr() net.Addr { return q.addr }
