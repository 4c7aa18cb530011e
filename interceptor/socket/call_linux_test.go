//go:build linux && !386 && !s390x

package socket

import (
	"testing"

	"golang.org/x/sys/unix"
)

// TestLocalConnectionsAreNotPaced whatever congestion control the host has.
func TestLocalConnectionsAreNotPaced(t *testing.T) {
	q, _ := pair(t)
	name := ""
	var failed error
	if err := q.raw.Control(func(fd uintptr) {
		name, failed = unix.GetsockoptString(int(fd), unix.IPPROTO_TCP, unix.TCP_CONGESTION)
	}); err != nil || failed != nil {
		t.Fatal(err, failed)
	}
	if name != "reno" {
		t.Errorf("congestion control %q", name)
	}
}
