//go:build linux

package netns

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"math"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"golang.org/x/sys/unix"

	"txmesh/tests/processes"
)

// port is the same on all hosts: each has its own.
const port = 7000

// patience is how long a test waits for what must come.
const patience = 10 * time.Second

func must(t *testing.T, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

// echo sends back what comes to a host by UDP, and by TCP line by line.
func echo(t *testing.T, h *Host) {
	t.Helper()
	packets, err := h.ListenPacket(h.At(port))
	must(t, err)
	lines, err := h.Listen(h.At(port))
	must(t, err)
	t.Cleanup(func() { must(t, errors.Join(packets.Close(), lines.Close())) })
	go func() {
		buf := make([]byte, 100)
		for {
			n, from, err := packets.ReadFrom(buf)
			if err != nil {
				return
			}
			_, _ = packets.WriteTo(buf[:n], from) // a test sees it missing
		}
	}()
	go func() {
		for {
			c, err := lines.Accept()
			if err != nil {
				return
			}
			go func() {
				defer c.Close()
				_, _ = io.Copy(c, c) // ends with the connection
			}()
		}
	}()
}

// pings sends packets from one host to the echo of another, one each pause, and returns how long each was under way, until
// no more have come for the time of a wait.
func pings(t *testing.T, from, to *Host, count int, pause, wait time.Duration) []time.Duration {
	t.Helper()
	c, err := from.DialContext(t.Context(), "udp", to.At(port))
	must(t, err)
	defer c.Close()
	began := time.Now()
	go func() {
		for range count {
			_, _ = c.Write([]byte(time.Since(began).String())) // a test sees it missing
			<-time.After(pause)
		}
	}()
	var took []time.Duration
	buf := make([]byte, 100)
	for len(took) < count {
		must(t, c.SetReadDeadline(time.Now().Add(wait)))
		n, err := c.Read(buf)
		if errors.Is(err, os.ErrDeadlineExceeded) {
			break
		}
		must(t, err)
		sent, err := time.ParseDuration(string(buf[:n]))
		must(t, err)
		took = append(took, time.Since(began)-sent)
	}
	return took
}

// talk is a TCP connection to an echo.
type talk struct {
	net.Conn
	in *bufio.Reader
}

func dial(t *testing.T, from, to *Host) talk {
	t.Helper()
	ctx, stop := context.WithTimeout(t.Context(), patience)
	defer stop()
	c, err := from.DialContext(ctx, "tcp", to.At(port))
	must(t, err)
	t.Cleanup(func() { c.Close() })
	return talk{c, bufio.NewReader(c)}
}

// say sends a line and waits for it to come back.
func (c talk) say(line string, within time.Duration) error {
	if err := c.SetDeadline(time.Now().Add(within)); err != nil {
		return err
	}
	if _, err := fmt.Fprintln(c, line); err != nil {
		return err
	}
	return c.hear(line)
}

func (c talk) hear(line string) error {
	got, err := c.in.ReadString('\n')
	if err == nil && got != line+"\n" {
		return fmt.Errorf("%q came back, want %q", got, line)
	}
	return err
}

func TestHostsReachEachOtherAndSeeNothingElse(t *testing.T) {
	n := New(t, 1)
	a, b := n.Host("a"), n.Host("b")
	echo(t, b)
	must(t, dial(t, a, b).say("hello", patience))
	if got := pings(t, a, b, 100, time.Millisecond, time.Second); len(got) != 100 {
		t.Errorf("%d of 100 packets came back", len(got))
	}
	must(t, a.Do(func() error {
		all, err := net.Interfaces()
		var names []string
		for _, i := range all {
			names = append(names, i.Name)
		}
		if d := cmp.Diff([]string{"lo", "wire"}, names); d != "" {
			t.Errorf("interfaces of a host (-want +got):\n%s", d)
		}
		return err
	}))
}

func TestHostsReachEachOtherByIPv6(t *testing.T) {
	n := New(t, 1)
	a, b := n.DualHost("a"), n.DualHost("b")
	in, err := b.ListenPacket(net.JoinHostPort(b.IP6(), "7000"))
	must(t, err)
	t.Cleanup(func() { must(t, in.Close()) })
	out, err := a.DialContext(t.Context(), "udp", in.LocalAddr().String())
	must(t, err)
	defer out.Close()
	hears := func(said string) error {
		_, err := fmt.Fprint(out, said)
		must(t, errors.Join(err, in.SetReadDeadline(time.Now().Add(patience))))
		buf := make([]byte, 100)
		size, from, err := in.ReadFrom(buf)
		if err == nil && (string(buf[:size]) != said || from.String() != out.LocalAddr().String() || !strings.HasPrefix(from.String(), "["+a.IP6()+"]:")) {
			return fmt.Errorf("%q came from %v", buf[:size], from)
		}
		return err
	}
	must(t, hears("before"))
	n.Send([]*Host{a}, []*Host{b}, Fault{Cut: true})
	_, err = fmt.Fprint(out, "during")
	must(t, err)
	for end := time.Now().Add(patience); n.Counts(a, b).Cut == 0; <-time.After(time.Millisecond) {
		if time.Now().After(end) {
			t.Fatal("a cut wire carries IPv6")
		}
	}
	n.Heal()
	must(t, hears("after"))
}

func TestCutWireCarriesNothingUntilItHeals(t *testing.T) {
	n := New(t, 1)
	a, b, c := n.Host("a"), n.Host("b"), n.Host("c")
	echo(t, b)
	cut := func() { n.Between([]*Host{a}, []*Host{b}, Fault{Cut: true}) }
	cut()
	if got := pings(t, a, b, 20, time.Millisecond, 200*time.Millisecond); len(got) != 0 {
		t.Errorf("%d packets came back over a cut wire", len(got))
	}
	// Before there is a connection: its kernel would say again what nobody has acknowledged yet.
	if there, back := n.Counts(a, b).Cut, n.Counts(b, a).Cut; there == 0 || back != 0 {
		t.Errorf("%d packets cut there and %d back, where none can come from", there, back)
	}
	n.Heal()
	old := dial(t, a, b)
	must(t, old.say("before", patience))
	cut()
	if err := old.say("during", 300*time.Millisecond); !errors.Is(err, os.ErrDeadlineExceeded) {
		t.Errorf("an open connection over a cut wire says %v, want a timeout", err)
	}
	if got := pings(t, c, b, 20, time.Millisecond, time.Second); len(got) != 20 {
		t.Errorf("%d of 20 packets came back from a host whose wire is whole", len(got))
	}
	n.Send([]*Host{a}, []*Host{b}, Fault{})
	if got := pings(t, a, b, 20, time.Millisecond, 200*time.Millisecond); len(got) != 0 {
		t.Errorf("%d answers came back over a wire of which one direction is cut", len(got))
	}
	n.Heal()
	must(t, old.SetDeadline(time.Now().Add(patience)))
	must(t, old.hear("during")) // it was sent again
	if got := pings(t, a, b, 20, time.Millisecond, time.Second); len(got) != 20 {
		t.Errorf("%d of 20 packets came back over a wire that was mended", len(got))
	}
}

func TestOneDirectionIsCutAlone(t *testing.T) {
	n := New(t, 1)
	a, b := n.Host("a"), n.Host("b")
	echo(t, b)
	n.Send([]*Host{b}, []*Host{a}, Fault{Cut: true})
	if got := pings(t, a, b, 20, time.Millisecond, 200*time.Millisecond); len(got) != 0 {
		t.Errorf("%d answers came back", len(got))
	}
	if got := [2]Counts{n.Counts(a, b), n.Counts(b, a)}; got[0].Cut != 0 || got[0].Passed != 20 || got[1].Cut != 20 || got[1].Passed != 0 {
		t.Errorf("there and back = %+v, want 20 passed, and 20 cut", got)
	}
}

// lossSigmas is how far a share may be from what was asked: one run in some millions is.
const lossSigmas = 5

func TestLossIsWhatWasAskedFor(t *testing.T) {
	const count = 2000
	for _, share := range []float64{0.05, 0.3} {
		t.Run(fmt.Sprint(share), func(t *testing.T) {
			n := New(t, 1)
			a, b := n.Host("a"), n.Host("b")
			echo(t, b)
			n.Send([]*Host{a}, []*Host{b}, Fault{Loss: share})
			lost := count - len(pings(t, a, b, count, time.Millisecond, time.Second))
			if c := n.Counts(a, b); c.Lost != lost {
				t.Errorf("%d did not come back; the wire counts %+v", lost, c)
			}
			most := lossSigmas * math.Sqrt(count*share*(1-share))
			if off := math.Abs(float64(lost) - count*share); off > most {
				t.Errorf("%d of %d lost, want %.0f, give or take %.0f", lost, count, count*share, most)
			}
			t.Logf("asked %.1f %%, lost %.2f %%", 100*share, 100*float64(lost)/count)
		})
	}
}

func TestLostPacketsDoNotBreakAConnection(t *testing.T) {
	n := New(t, 1)
	a, b := n.Host("a"), n.Host("b")
	echo(t, b)
	c := dial(t, a, b)
	n.Between([]*Host{a}, []*Host{b}, Fault{Loss: 0.1})
	for i := range 50 {
		must(t, c.say(fmt.Sprint("line ", i), 2*patience))
	}
	if n.Counts(a, b).Lost+n.Counts(b, a).Lost == 0 {
		t.Error("nothing was lost on the way")
	}
}

func TestSeedDecidesWhatIsLost(t *testing.T) {
	lost := func(seed uint64) (which []int) {
		w := newWire(seed)
		defer w.close()
		a, b := netip.MustParseAddr("10.77.0.1"), netip.MustParseAddr("10.77.0.2")
		w.ports[b] = os.Stdin // it only must be there: nothing is written
		w.set(pair{a, b}, Fault{Loss: 0.5})
		for i := range 64 {
			if w.route(pair{a, b}, nil, time.Now()) == nil {
				which = append(which, i)
			}
		}
		return which
	}
	if d := cmp.Diff(lost(1), lost(1)); d != "" {
		t.Errorf("the same seed loses others:\n%s", d)
	}
	if slices.Equal(lost(1), lost(2)) {
		t.Error("another seed loses the same")
	}
}

func TestDelayIsWhatWasAskedFor(t *testing.T) {
	// This machine may be busy: nothing comes early, half comes in time.
	const count, slack = 200, 5 * time.Millisecond
	for _, tt := range []struct {
		name     string
		fault    Fault
		min, max time.Duration // of the median
	}{
		{"none", Fault{}, 0, 0},
		{"25ms", Fault{Delay: 25 * time.Millisecond}, 25 * time.Millisecond, 25 * time.Millisecond},
		{"40ms and jitter", Fault{Delay: 40 * time.Millisecond, Jitter: 20 * time.Millisecond}, 35 * time.Millisecond, 60 * time.Millisecond},
	} {
		t.Run(tt.name, func(t *testing.T) {
			n := New(t, 1)
			a, b := n.Host("a"), n.Host("b")
			echo(t, b)
			n.Send([]*Host{a}, []*Host{b}, tt.fault)
			took := pings(t, a, b, count, 2*time.Millisecond, time.Second)
			slices.Sort(took)
			if len(took) != count {
				t.Fatalf("%d of %d came back", len(took), count)
			}
			least, median := took[0], took[count/2]
			t.Logf("asked %v ± %v: least %v, median %v, most %v", tt.fault.Delay, tt.fault.Jitter, least, median, took[count-1])
			if least < tt.fault.Delay-tt.fault.Jitter {
				t.Errorf("one took %v", least)
			}
			if median < tt.min || median > tt.max+slack {
				t.Errorf("median = %v, want %v to %v", median, tt.min, tt.max+slack)
			}
		})
	}
}

func TestLatePacketsKeepTheirOrder(t *testing.T) {
	n := New(t, 1)
	a, b := n.Host("a"), n.Host("b")
	in, err := b.ListenPacket(b.At(port))
	must(t, err)
	defer func() { must(t, in.Close()) }()
	n.Send([]*Host{a}, []*Host{b}, Fault{Delay: 10 * time.Millisecond, Jitter: 10 * time.Millisecond})
	c, err := a.DialContext(t.Context(), "udp", b.At(port))
	must(t, err)
	defer c.Close()
	for i := range 200 {
		_, err := fmt.Fprint(c, i)
		must(t, err)
	}
	must(t, in.SetReadDeadline(time.Now().Add(patience)))
	buf := make([]byte, 100)
	for i := range 200 {
		size, _, err := in.ReadFrom(buf)
		must(t, err)
		if string(buf[:size]) != fmt.Sprint(i) {
			t.Fatalf("packet %d says %q", i, buf[:size])
		}
	}
}

// ticks is a program on a host that goes on writing into a file.
func ticks(t *testing.T, h *Host) (p *processes.Process, file string) {
	t.Helper()
	file = filepath.Join(t.TempDir(), "ticks")
	p = &processes.Process{Name: "ticks", On: h.Do, Path: "/bin/sh", Log: file + ".log",
		Args: []string{"-c", "cat /proc/net/fib_trie >" + file + "; echo {}; while true; do echo tick >>" + file + "; sleep 0.01; done"}}
	t.Cleanup(p.Kill)
	return p, file
}

func size(path string) int64 {
	s, err := os.Stat(path)
	if err != nil {
		return 0
	}
	return s.Size()
}

func eventually(t *testing.T, what string, holds func() bool) {
	t.Helper()
	for end := time.Now().Add(patience); !holds(); <-time.After(5 * time.Millisecond) {
		if time.Now().After(end) {
			t.Fatalf("not within %v: %s", patience, what)
		}
	}
}

func TestProcessLivesOnItsHost(t *testing.T) {
	h := New(t, 1).Host("a")
	p, file := ticks(t, h)
	for range 2 {
		must(t, p.Start(&struct{}{}))
		before := size(file)
		eventually(t, "it ticks", func() bool { return size(file) > before })
		p.Kill()
	}
	text, err := os.ReadFile(file)
	must(t, err)
	if !strings.Contains(string(text), h.IP()) {
		t.Errorf("the process does not see the address %s but\n%s", h.IP(), text)
	}
}

func TestStoppedProcessGoesOnWhenItMay(t *testing.T) {
	p, file := ticks(t, New(t, 1).Host("a"))
	must(t, p.Start(&struct{}{}))
	p.Pause()
	<-time.After(50 * time.Millisecond) // the signal is under way
	stopped := size(file)
	<-time.After(200 * time.Millisecond)
	if got := size(file); got != stopped || !p.Running() {
		t.Errorf("a stopped process went on from %d to %d; running %t", stopped, got, p.Running())
	}
	p.Continue()
	eventually(t, "it ticks again", func() bool { return size(file) > stopped })
}

func TestDiskOfOneHostIsFullUntilItIsDrained(t *testing.T) {
	const bytes, left = 8 << 20, 64 << 10
	n := New(t, 1)
	a, b := n.Host("a"), n.Host("b")
	path := t.TempDir() + "/disk"
	d, err := a.NewDisk(path, bytes)
	must(t, err)
	write := func(name string, size int) error {
		return a.Do(func() error { return os.WriteFile(path+"/"+name, make([]byte, size), 0o600) })
	}
	must(t, write("before", 1<<20))
	must(t, d.Fill(left))
	if free, err := d.Free(); err != nil || free > left {
		t.Errorf("%d bytes free, %v; want %d at most", free, err, left)
	}
	if err := write("during", left+4096); !errors.Is(err, unix.ENOSPC) {
		t.Errorf("writing to a full disk says %v", err)
	}
	must(t, d.Drain())
	must(t, write("after", 4<<20))
	must(t, errors.Join(b.Do(func() error { return absent(path + "/before") }), absent(path+"/before")))
}

// absent is an error if a file is there.
func absent(path string) error {
	if _, err := os.Stat(path); !errors.Is(err, os.ErrNotExist) {
		return fmt.Errorf("%s is seen elsewhere: %w", path, err)
	}
	return nil
}
