package sidecar

import (
	"net"
	"sync"
)

// limited is a listener that accepts so many connections at a time; more wait in the queue of the kernel.
type limited struct {
	net.Listener
	slots  chan struct{} // one token for each open connection
	closed chan struct{}
	once   sync.Once
}

func limit(l net.Listener, conns int) *limited {
	return &limited{Listener: l, slots: make(chan struct{}, conns), closed: make(chan struct{})}
}

// Accept waits for a free slot, then for a connection.
func (l *limited) Accept() (net.Conn, error) {
	select {
	case l.slots <- struct{}{}:
	case <-l.closed:
		return nil, net.ErrClosed
	}
	c, err := l.Listener.Accept()
	if err != nil {
		<-l.slots
		return nil, err
	}
	return &slotted{Conn: c, free: sync.OnceFunc(func() { <-l.slots })}, nil
}

// Close closes the listener, also while Accept waits for a slot.
func (l *limited) Close() error {
	l.once.Do(func() { close(l.closed) })
	return l.Listener.Close()
}

// slotted is a connection that frees its slot at its end.
type slotted struct {
	net.Conn
	free func()
}

// Close closes the connection and frees its slot.
func (c *slotted) Close() error {
	defer c.free()
	return c.Conn.Close()
}
