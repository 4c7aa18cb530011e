package raw

import (
	"errors"
	"os"
	"runtime"
	"syscall"
	"testing"
)

// spliceExpected says that bytes stay in the kernel here.
const spliceExpected = true

// TestIdleConnectionsAreSmall counts what a connection costs that says nothing: memory of this process, and descriptors
// beyond its two sockets.
func TestIdleConnectionsAreSmall(t *testing.T) {
	const conns, bytesMax = 500, 20 << 10
	l := listener(t)
	r := run(t, Options{}, l.Addr().String())
	memory, files := used(), descriptors(t)
	for range conns {
		client := dial(t, r.at)
		server := accepted(t, l)
		say(t, client, "x") // it has been in use
		hear(t, server, "x")
	}
	// The test's own ends are two of four sockets, and their memory counts as well.
	each, fds := (used()-memory)/conns, descriptors(t)-files-4*conns
	t.Logf("%d bytes for each idle connection, %d descriptors more for all", each, fds)
	if each > bytesMax {
		t.Errorf("%d bytes for each idle connection, want at most %d", each, bytesMax)
	}
	if fds > 2*pipesKept {
		t.Errorf("%d descriptors more, want at most the %d pipes that are kept", fds, pipesKept)
	}
}

func used() int {
	runtime.GC()
	runtime.GC()
	var m runtime.MemStats
	runtime.ReadMemStats(&m)
	return int(m.HeapAlloc + m.StackInuse)
}

func descriptors(t *testing.T) int {
	t.Helper()
	all, err := os.ReadDir("/proc/self/fd")
	must(t, err)
	return len(all)
}

// TestAResetIsNoEnd lets the writer of one direction hear of a reset first: then the kernel tells the reader of an end.
func TestAResetIsNoEnd(t *testing.T) {
	for range 50 {
		r, client, server := pair(t, Options{})
		must(t, client.SetLinger(0))
		heard := make(chan error, 1)
		go func() {
			for {
				if _, err := server.Write(make([]byte, 1<<10)); err != nil {
					heard <- err
					return
				}
			}
		}()
		_, err := client.Read(make([]byte, 1<<10))
		must(t, err)
		must(t, client.Close())
		if err := <-heard; !errors.Is(err, syscall.ECONNRESET) { // after an end it would be EPIPE
			t.Fatalf("the server sees %v", err)
		}
		if got := r.report(t); got.End != Reset {
			t.Fatalf("reported %+v", got)
		}
	}
}
