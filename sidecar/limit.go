package sidecar

import (
	"io"
	"net"
	"sync"
	"time"

	"txmesh/interceptor/socket"
)

// limited is a listener that has so many connections at a time. It closes the others, and tells them why if they speak
// plain HTTP: a client that waits in a queue of the kernel cannot know that nobody will come.
type limited struct {
	net.Listener
	slots   chan struct{} // one token for each open connection
	telling chan struct{} // one for each that is being told
	answer  string        // to a client that is one too many
	refused func()        // told of each
}

// limit makes the listener of it.
func limit(l net.Listener, conns int, answer string, refused func()) *limited {
	return &limited{Listener: l, slots: make(chan struct{}, conns), telling: make(chan struct{}, tellingMax), answer: answer, refused: refused}
}

// crowded is the answer to an HTTP client that is one too many: the proxy's own for that case.
const crowded = "HTTP/1.1 503 Service Unavailable\r\nContent-Type: application/problem+json\r\ntx-error: " + crowdedCode + "\r\n" +
	"Connection: close\r\n\r\n" + `{"type":"https://txmesh.io/codes#` + crowdedCode + `","title":"too many connections","status":503,"code":"` + crowdedCode +
	`","detail":"too many connections; use fewer connections, keep them alive, or raise max-connections","retryable":true}` + "\n"

// How many clients at a time are told that they are too many, for how long, and how much of what they send is read.
const (
	tellingMax   = 64
	tellingTime  = 500 * time.Millisecond
	tellingBytes = 64 << 10
)

// crowdedCode is in the proxy's table.
const crowdedCode = "TXM0210"

// Accept returns the next connection that has a slot.
func (l *limited) Accept() (net.Conn, error) {
	for {
		c, err := l.Listener.Accept()
		if err != nil {
			return nil, err
		}
		select {
		case l.slots <- struct{}{}:
			return &slotted{Conn: socket.Quick(c), free: sync.OnceFunc(func() { <-l.slots })}, nil
		default:
			l.refused()
			select {
			case l.telling <- struct{}{}:
				go l.turnAway(c)
			default:
				_ = c.Close() // nothing more is expected of it
			}
		}
	}
}

// turnAway tells a client why it goes, and reads for a moment what it sends: else a reset would overtake the answer.
func (l *limited) turnAway(c net.Conn) {
	defer func() {
		_ = c.Close() // nothing more is expected of it
		<-l.telling
	}()
	half, ok := c.(*net.TCPConn)
	if !ok || l.answer == "" || c.SetDeadline(time.Now().Add(tellingTime)) != nil {
		return
	}
	if _, err := c.Write([]byte(l.answer)); err == nil && half.CloseWrite() == nil {
		_, _ = io.CopyN(io.Discard, c, tellingBytes) // until it goes, or long enough
	}
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

// capped returns what makes a limited one of a listener: to each port as many connections as to those of the data path.
func (s *Sidecar) capped(answer string) func(net.Listener) net.Listener {
	return func(l net.Listener) net.Listener {
		return limit(l, s.cfg.MaxConnections, answer, func() { s.metrics.onRefusedCode(crowdedCode) })
	}
}

// crowdedPeer is the answer at the peer port: none over TLS.
func (s *Sidecar) crowdedPeer() string {
	if s.cfg.Identity.Used() {
		return ""
	}
	return crowded
}
