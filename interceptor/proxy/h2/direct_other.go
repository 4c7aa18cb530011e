//go:build !unix

package h2

import "net"

// direct would write without blocking; here nothing can.
type direct struct{}

func newDirect(net.Conn) *direct { return nil }

func (d *direct) write([]byte) (int, error) { return 0, nil }
