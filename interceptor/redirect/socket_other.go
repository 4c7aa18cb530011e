//go:build !linux

package redirect

import (
	"errors"
	"net"
	"net/netip"
	"syscall"
)

var errLinux = errors.New("transparent mode needs Linux: use upstreams or the forward proxy")

func original(*net.TCPConn) (netip.AddrPort, error) { return netip.AddrPort{}, errLinux }

func peek(*net.TCPConn, func([]byte) bool) error { return errLinux }

// Marked returns a control function of a net.Dialer that refuses every connection, as marks are Linux's; 0: nil.
func Marked(mark uint32) func(network, address string, c syscall.RawConn) error {
	if mark == 0 {
		return nil
	}
	return func(string, string, syscall.RawConn) error { return errLinux }
}

// Supported is nil where connections can be taken transparently.
func Supported() error { return errLinux }
