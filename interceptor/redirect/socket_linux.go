package redirect

import (
	"encoding/binary"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"syscall"

	"golang.org/x/sys/unix"
)

// originalDst is SO_ORIGINAL_DST and IP6T_SO_ORIGINAL_DST.
const originalDst = 80

// original asks the kernel where a redirected connection wanted to go.
func original(c *net.TCPConn) (netip.AddrPort, error) {
	raw, err := c.SyscallConn()
	if err != nil {
		return netip.AddrPort{}, err
	}
	four := addrPort(c.LocalAddr()).Addr().Is4() // also on a listener for both
	var dst netip.AddrPort
	var asked error
	err = raw.Control(func(fd uintptr) {
		if four {
			dst, asked = original4(int(fd))
			return
		}
		dst, asked = original6(int(fd))
	})
	if err = errors.Join(err, asked); err != nil {
		return netip.AddrPort{}, fmt.Errorf("original destination of a connection from %s: %w", c.RemoteAddr(), err)
	}
	return dst, nil
}

// original4 reads a sockaddr_in into the nearest structure that x/sys can read: 16 bytes, of which port and address are
// the third to the eighth.
func original4(fd int) (netip.AddrPort, error) {
	m, err := unix.GetsockoptIPv6Mreq(fd, unix.SOL_IP, originalDst)
	if err != nil {
		return netip.AddrPort{}, err
	}
	raw := m.Multiaddr
	return netip.AddrPortFrom(netip.AddrFrom4([4]byte(raw[4:8])), binary.BigEndian.Uint16(raw[2:4])), nil
}

// original6 reads a sockaddr_in6, with which the structure begins.
func original6(fd int) (netip.AddrPort, error) {
	m, err := unix.GetsockoptIPv6MTUInfo(fd, unix.SOL_IPV6, originalDst)
	if err != nil {
		return netip.AddrPort{}, err
	}
	var port [2]byte
	binary.NativeEndian.PutUint16(port[:], m.Addr.Port) // it is in the order of the network
	return netip.AddrPortFrom(netip.AddrFrom16(m.Addr.Addr), binary.BigEndian.Uint16(port[:])), nil
}

// peek waits for the first bytes of a connection until enough says that it has seen enough of them, and leaves them in
// the socket. The end of what comes counts as enough.
func peek(c *net.TCPConn, enough func(first []byte) bool) error {
	raw, err := c.SyscallConn()
	if err != nil {
		return err
	}
	var buf [sniffMax]byte
	var failed error
	err = raw.Read(func(fd uintptr) bool {
		n, _, err := unix.Recvfrom(int(fd), buf[:], unix.MSG_PEEK|unix.MSG_DONTWAIT)
		for errors.Is(err, unix.EINTR) {
			n, _, err = unix.Recvfrom(int(fd), buf[:], unix.MSG_PEEK|unix.MSG_DONTWAIT)
		}
		switch {
		case errors.Is(err, unix.EAGAIN):
			return false
		case err != nil:
			failed = err
			return true
		}
		return enough(buf[:n]) || n == 0 || n == len(buf)
	})
	return errors.Join(err, failed)
}

// Marked returns a control function of a net.Dialer that puts a mark on every socket, by which rules of the firewall
// know it; 0: nil.
func Marked(mark uint32) func(network, address string, c syscall.RawConn) error {
	if mark == 0 {
		return nil
	}
	return func(_, address string, c syscall.RawConn) error {
		var failed error
		err := c.Control(func(fd uintptr) {
			failed = unix.SetsockoptInt(int(fd), unix.SOL_SOCKET, unix.SO_MARK, int(mark))
		})
		if errors.Is(failed, unix.EPERM) {
			failed = fmt.Errorf("%w: the mark needs CAP_NET_ADMIN; give it to this process, or exclude it by user id and set no mark", failed)
		}
		if err = errors.Join(err, failed); err != nil {
			return fmt.Errorf("mark the connection to %s with %#x: %w", address, mark, err)
		}
		return nil
	}
}

// Supported is nil where connections can be taken transparently.
func Supported() error { return nil }
