//go:build linux

package netns

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"runtime"
	"unsafe"

	"golang.org/x/sys/unix"
)

const tunPath = "/dev/net/tun"

// device is the name of what joins a host to the wire.
const device = "wire"

// Host is one host. It has a loopback and one device. Its methods are safe for many goroutines.
type Host struct {
	Name    string
	address netip.Prefix
	device  *os.File
	network *os.File // the namespace
	work    chan func()
	gone    chan struct{}
}

// newHost starts the thread that is the host, and never anything else: it makes the namespaces, and what it starts lives
// in them, and dies with it.
func newHost(name string, address netip.Prefix, w *wire) (*Host, error) {
	h := &Host{Name: name, address: address, work: make(chan func()), gone: make(chan struct{})}
	made := make(chan error, 1)
	go func() {
		defer close(h.gone)
		runtime.LockOSThread() // for ever: the thread ends with the goroutine
		err := h.enter()
		made <- err
		if err != nil {
			return
		}
		for f := range h.work {
			f()
		}
	}()
	if err := <-made; err != nil {
		return nil, err
	}
	w.attach(address.Addr(), h.device)
	return h, nil
}

// enter makes the namespaces around this thread and the device inside.
func (h *Host) enter() error {
	if err := unix.Unshare(unix.CLONE_NEWNET | unix.CLONE_NEWNS | unix.CLONE_FS); err != nil {
		return fmt.Errorf("make namespaces: %w", err)
	}
	// What is mounted from here on is seen here only.
	if err := unix.Mount("", "/", "", unix.MS_REC|unix.MS_PRIVATE, ""); err != nil {
		return fmt.Errorf("make mounts private: %w", err)
	}
	var err error
	if h.network, err = os.Open(fmt.Sprintf("/proc/self/task/%d/ns/net", unix.Gettid())); err != nil {
		return err
	}
	if h.device, err = openTun(device); err != nil {
		return errors.Join(err, h.network.Close())
	}
	if err := errors.Join(up("lo", netip.Prefix{}), up(device, h.address)); err != nil {
		return errors.Join(err, h.device.Close(), h.network.Close())
	}
	return nil
}

// openTun makes a device in the namespace of this thread, which is gone when it is closed.
func openTun(name string) (*os.File, error) {
	fd, err := unix.Open(tunPath, unix.O_RDWR|unix.O_CLOEXEC|unix.O_NONBLOCK, 0)
	if err != nil {
		return nil, fmt.Errorf("open %s: %w", tunPath, err)
	}
	ifr, err := unix.NewIfreq(name)
	if err == nil {
		ifr.SetUint16(unix.IFF_TUN | unix.IFF_NO_PI)
		err = unix.IoctlIfreq(fd, unix.TUNSETIFF, ifr)
	}
	if err != nil {
		return nil, errors.Join(fmt.Errorf("make the device %s: %w", name, err), unix.Close(fd))
	}
	return os.NewFile(uintptr(fd), tunPath), nil
}

// up brings a device up, with an address if there is one.
func up(name string, address netip.Prefix) error {
	fd, err := unix.Socket(unix.AF_INET, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return err
	}
	set := func(what uint, value func(*unix.Ifreq) error) {
		ifr, ifrErr := unix.NewIfreq(name)
		if err = errors.Join(err, ifrErr); err != nil {
			return
		}
		if err = value(ifr); err == nil {
			err = unix.IoctlIfreq(fd, what, ifr)
		}
	}
	if address.IsValid() {
		mask := net.CIDRMask(address.Bits(), address.Addr().BitLen())
		set(unix.SIOCSIFADDR, func(i *unix.Ifreq) error { return i.SetInet4Addr(address.Addr().AsSlice()) })
		set(unix.SIOCSIFNETMASK, func(i *unix.Ifreq) error { return i.SetInet4Addr(mask) })
	}
	set(unix.SIOCSIFFLAGS, func(i *unix.Ifreq) error { i.SetUint16(unix.IFF_UP); return nil })
	if err != nil {
		err = fmt.Errorf("bring up %s %v: %w", name, address, err)
	}
	return errors.Join(err, unix.Close(fd))
}

// up6 adds an address of IPv6 to a device that is up.
func up6(name string, address netip.Prefix) error {
	fail := func(err error) error { return fmt.Errorf("add %v to %s: %w", address, name, err) }
	i, err := net.InterfaceByName(name)
	if err != nil {
		return fail(err)
	}
	fd, err := unix.Socket(unix.AF_INET6, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return fail(err)
	}
	request := struct { // in6_ifreq
		address [16]byte
		bits    uint32
		index   int32
	}{address.Addr().As16(), uint32(address.Bits()), int32(i.Index)}
	_, _, errno := unix.Syscall(unix.SYS_IOCTL, uintptr(fd), unix.SIOCSIFADDR, uintptr(unsafe.Pointer(&request)))
	if err := unix.Close(fd); err != nil {
		return fail(err)
	}
	if errno != 0 {
		return fail(errno)
	}
	return nil
}

// close ends the host and kills what runs on it.
func (h *Host) close() error {
	close(h.work)
	<-h.gone
	return errors.Join(h.device.Close(), h.network.Close())
}

// Do runs f on the thread of the host: it sees the mounts and the network of the host, and so does what it starts. It
// must be short, as others wait for the thread meanwhile.
func (h *Host) Do(f func() error) error {
	done := make(chan error, 1)
	h.work <- func() { done <- f() }
	return <-done
}

// IP is the address of the host in the net.
func (h *Host) IP() string { return h.address.Addr().String() }

// IP6 is the one by IPv6 of a host that Net.DualHost has made.
func (h *Host) IP6() string { return h.address6().Addr().String() }

func (h *Host) address6() netip.Prefix {
	p := netip.MustParsePrefix(network6)
	bytes := p.Addr().As16()
	copy(bytes[p.Bits()/8:], h.address.Addr().AsSlice())
	return netip.PrefixFrom(netip.AddrFrom16(bytes), p.Bits())
}

// At is the host:port of a port of this host.
func (h *Host) At(port int) string { return fmt.Sprintf("%s:%d", h.IP(), port) }

// DialContext connects as a process of the host does. The address is a literal.
func (h *Host) DialContext(ctx context.Context, network, address string) (net.Conn, error) {
	return within(h, func() (net.Conn, error) { return (&net.Dialer{}).DialContext(ctx, network, address) })
}

// Listen listens as a process of the host does.
func (h *Host) Listen(address string) (net.Listener, error) {
	return within(h, func() (net.Listener, error) { return net.Listen("tcp", address) })
}

// ListenPacket listens for UDP as a process of the host does.
func (h *Host) ListenPacket(address string) (net.PacketConn, error) {
	return within(h, func() (net.PacketConn, error) {
		return (&net.ListenConfig{}).ListenPacket(context.Background(), "udp", address)
	})
}

// within runs f, which may block, on a thread that is in the network of the host for the time. A socket stays in the
// network that it was made in.
func within[T any](h *Host, f func() (T, error)) (T, error) {
	type result struct {
		value T
		err   error
	}
	done := make(chan result, 1)
	go func() {
		runtime.LockOSThread()
		var r result
		home, err := os.Open(fmt.Sprintf("/proc/self/task/%d/ns/net", unix.Gettid()))
		if err != nil {
			done <- result{err: err}
			return
		}
		defer home.Close()
		if r.err = unix.Setns(int(h.network.Fd()), unix.CLONE_NEWNET); r.err == nil {
			r.value, r.err = f()
		}
		if unix.Setns(int(home.Fd()), unix.CLONE_NEWNET) == nil {
			runtime.UnlockOSThread() // else the thread ends with the goroutine
		}
		done <- r
	}()
	r := <-done
	return r.value, r.err
}
