package sidecar

import (
	"context"
	"log/slog"
	"net"
	"os"
	"strconv"
	"testing"

	"github.com/google/go-cmp/cmp"
	"golang.org/x/sys/unix"
)

// Rules of the firewall know the sidecar's own connections by their mark; without it, those to a store would be turned
// back to the sidecar.
func TestConnectionsToSharedStoresCarryTheMark(t *testing.T) {
	if os.Geteuid() != 0 {
		t.Skip("left out: to mark a connection needs CAP_NET_ADMIN; run it as root")
	}
	const mark = 0x1ca9
	s := marked(t, mark)
	for _, scheme := range []string{"postgres", "mysql", "etcd"} {
		t.Run(scheme, func(t *testing.T) {
			l, err := net.Listen("tcp", "127.0.0.1:0")
			if err != nil {
				t.Fatal(err)
			}
			defer l.Close()
			s.cfg.Store = scheme + "://" + l.Addr().String() + "/db"
			ctx, stop := context.WithCancel(t.Context())
			opened := make(chan error, 1)
			go func() {
				_, err := s.reachShared(ctx)
				opened <- err
			}()
			c, err := l.Accept()
			if err != nil {
				t.Fatal(err)
			}
			defer c.Close()
			if diff := cmp.Diff(mark, markOf(t, c.RemoteAddr(), c.LocalAddr())); diff != "" {
				t.Errorf("the mark of a connection to the store differs (-want +got):\n%s", diff)
			}
			stop()
			if err := <-opened; err == nil {
				t.Error("a store that says nothing was opened")
			}
		})
	}
}

// markOf is the mark of the socket of this process that is connected from one address to the other; 0: none.
func markOf(t *testing.T, from, to net.Addr) int {
	t.Helper()
	open, err := os.ReadDir("/proc/self/fd")
	if err != nil {
		t.Error(err)
	}
	for _, f := range open {
		fd, err := strconv.Atoi(f.Name())
		if err != nil || portOf4(unix.Getsockname(fd)) != from.(*net.TCPAddr).Port || portOf4(unix.Getpeername(fd)) != to.(*net.TCPAddr).Port {
			continue
		}
		mark, err := unix.GetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_MARK)
		if err != nil {
			t.Error(err)
		}
		return mark
	}
	t.Error("the socket is not found")
	return 0
}

// portOf4 is the port of an address of IPv4; 0: it is none.
func portOf4(a unix.Sockaddr, err error) int {
	if v4, ok := a.(*unix.SockaddrInet4); ok && err == nil {
		return v4.Port
	}
	return 0
}

// Where loopback is redirected too, an unmarked connection to the application would come back as a call of it.
func TestConnectionsToTheApplicationCarryTheMark(t *testing.T) {
	if os.Geteuid() != 0 {
		t.Skip("left out: to mark a connection needs CAP_NET_ADMIN; run it as root")
	}
	const mark = 0x1ca9
	s := marked(t, mark)
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	c, err := s.dialApp(t.Context(), "tcp", l.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	if diff := cmp.Diff(mark, markOf(t, c.LocalAddr(), c.RemoteAddr())); diff != "" {
		t.Errorf("the mark of a connection to the application differs (-want +got):\n%s", diff)
	}
}

// marked is a sidecar that marks its connections, not started.
func marked(t *testing.T, mark uint32) *Sidecar {
	t.Helper()
	cfg := config(t, "a/b", "127.0.0.1:1")
	cfg.Redirect.Mark = mark
	s, err := New(cfg, "test", slog.New(slog.DiscardHandler))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := s.Close(); err != nil {
			t.Error(err)
		}
	})
	return s
}
