//go:build !linux

package raw

import (
	"errors"
	"net"
)

var errNoSplice = errors.New("no splice")

// pipes is for systems that have splice.
type pipes struct{}

func (*pipes) close() {}

func (*session) splice(*flow, *net.TCPConn, *net.TCPConn) error { return errNoSplice }

// brokeOff believes what the system says of an end.
func (*flow) brokeOff() bool { return false }

// broke does not watch.
func broke(net.Conn) bool { return false }
