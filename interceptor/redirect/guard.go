package redirect

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"sync"
	"time"
)

// ErrLoop is what Guard.Dial returns for a connection that was redirected to this process.
var ErrLoop = errors.New("own connection was redirected back here")

// guardTime is how far the two ends of a connection of this process may be apart in noticing it.
const guardTime = 2 * time.Second

// Guard recognises connections of this process that are redirected to itself, because they were not excluded: each would
// call the next. Both ends of such a connection are here and have the same pair of addresses; whichever is noticed
// second finds the other. The zero value works. It is safe for many goroutines.
type Guard struct {
	mu       sync.Mutex // guards the rest
	now, old map[ends]side
	since    time.Time
}

// ends is a connection as the client sees it.
type ends struct{ client, server netip.AddrPort }

// side says which ends have been noticed.
type side uint8

const (
	dialled side = 1 << iota
	accepted
)

// notice reports whether the other end is here as well.
func (g *Guard) notice(e ends, s side) bool {
	g.mu.Lock()
	defer g.mu.Unlock()
	if now := time.Now(); now.Sub(g.since) > guardTime {
		g.old, g.now, g.since = g.now, make(map[ends]side), now
	}
	g.now[e] |= s
	return (g.now[e]|g.old[e])&^s != 0
}

// Dial is a dial that returns ErrLoop for a connection that ends in this process.
func (g *Guard) Dial(dial func(ctx context.Context, network, address string) (net.Conn, error)) func(context.Context, string, string) (net.Conn, error) {
	return func(ctx context.Context, network, address string) (net.Conn, error) {
		conn, err := dial(ctx, network, address)
		if err != nil {
			return nil, err
		}
		if e := (ends{addrPort(conn.LocalAddr()), addrPort(conn.RemoteAddr())}); g.notice(e, dialled) {
			conn.Close() // nothing was sent
			return nil, fmt.Errorf("connect to %s: %w: exclude this process by user id or mark", address, ErrLoop)
		}
		return conn, nil
	}
}

func addrPort(a net.Addr) netip.AddrPort {
	t, ok := a.(*net.TCPAddr)
	if !ok {
		return netip.AddrPort{}
	}
	p := t.AddrPort()
	return netip.AddrPortFrom(p.Addr().Unmap().WithZone(""), p.Port())
}
