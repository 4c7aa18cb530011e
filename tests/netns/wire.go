//go:build linux

package netns

import (
	"container/heap"
	"math/rand/v2"
	"net/netip"
	"os"
	"sync"
	"time"
)

// Fault is what the wire does to the packets of one direction between two hosts.
type Fault struct {
	Cut    bool          // none arrives
	Loss   float64       // the part that does not arrive, from 0 to 1
	Delay  time.Duration // how much later they arrive
	Jitter time.Duration // at most so much is added to each delay, or taken off it; the order stays
}

// Counts is what became of the packets of one direction.
type Counts struct {
	Passed int // arrived, late or not
	Late   int // of these, after a delay
	Cut    int
	Lost   int
	Full   int // thrown away because too many were under way
}

type pair struct{ from, to netip.Addr }

// link is one direction between two hosts.
type link struct {
	Fault
	counts Counts
	last   time.Time // when the last of the packets under way arrives
	queued int
}

// packet is one that arrives later.
type packet struct {
	at   time.Time
	link *link
	to   *os.File
	data []byte
}

// wire takes the packets of every host out of its device and puts them into the device of the host that they go to.
type wire struct {
	done    chan struct{}
	changed chan struct{} // wakes the one who delivers; holds one
	all     sync.WaitGroup

	mu     sync.Mutex // guards below
	random *rand.Rand
	ports  map[netip.Addr]*os.File
	links  map[pair]*link
	late   late
}

func newWire(seed uint64) *wire {
	w := &wire{done: make(chan struct{}), changed: make(chan struct{}, 1), random: rand.New(rand.NewPCG(seed, 0)),
		ports: map[netip.Addr]*os.File{}, links: map[pair]*link{}}
	w.all.Go(w.deliver)
	return w
}

// attach carries what a device sends until the device is closed.
func (w *wire) attach(address netip.Addr, device *os.File) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.ports[address] = device
	w.all.Go(func() { w.carry(device) })
}

// close waits for all. The devices are closed before.
func (w *wire) close() {
	close(w.done)
	w.all.Wait()
}

func (w *wire) set(p pair, f Fault) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.link(p).Fault = f
}

func (w *wire) heal() {
	w.mu.Lock()
	defer w.mu.Unlock()
	for _, l := range w.links {
		l.Fault = Fault{}
	}
}

func (w *wire) counts(p pair) Counts {
	w.mu.Lock()
	defer w.mu.Unlock()
	return w.link(p).counts
}

// link is called with mu held.
func (w *wire) link(p pair) *link {
	if w.links[p] == nil {
		w.links[p] = &link{}
	}
	return w.links[p]
}

func (w *wire) carry(device *os.File) {
	const packetMax = 64 << 10
	buf := make([]byte, packetMax)
	for {
		n, err := device.Read(buf)
		if err != nil {
			return // closed
		}
		if p, ok := addresses(buf[:n]); ok {
			if to := w.route(p, buf[:n], time.Now()); to != nil {
				_, _ = to.Write(buf[:n]) // a closed device loses it, as a dead host does
			}
		}
	}
}

// addresses reads the header. A host has one name on the wire, its address by IPv4, whatever it speaks. What else there is
// of IPv6 is the kernel's own talk about neighbours, and nobody is there.
func addresses(data []byte) (pair, bool) {
	const header4, header6, version4, version6 = 20, 40, 4, 6
	switch {
	case len(data) >= header4 && data[0]>>4 == version4:
		return pair{netip.AddrFrom4([4]byte(data[12:16])), netip.AddrFrom4([4]byte(data[16:20]))}, true
	case len(data) >= header6 && data[0]>>4 == version6:
		from, ok := of6(data[8:24])
		to, toOK := of6(data[24:40])
		return pair{from, to}, ok && toOK
	}
	return pair{}, false
}

// of6 is the address by IPv4 that is in one of network6.
func of6(address []byte) (netip.Addr, bool) {
	a := netip.AddrFrom16([16]byte(address))
	return netip.AddrFrom4([4]byte(address[12:])), netip.MustParsePrefix(network6).Contains(a)
}

// route returns the device that a packet is to be put into at once, or nil: then it is lost, or kept for later.
func (w *wire) route(p pair, data []byte, now time.Time) *os.File {
	const queuedMax = 10_000
	w.mu.Lock()
	defer w.mu.Unlock()
	to, l := w.ports[p.to], w.link(p)
	switch {
	case to == nil:
		return nil
	case l.Cut:
		l.counts.Cut++
		return nil
	case l.Loss > 0 && w.random.Float64() < l.Loss:
		l.counts.Lost++
		return nil
	case l.queued >= queuedMax:
		l.counts.Full++
		return nil
	}
	l.counts.Passed++
	at := now.Add(l.Delay)
	if l.Jitter > 0 {
		at = at.Add(time.Duration((2*w.random.Float64() - 1) * float64(l.Jitter)))
	}
	if !at.After(l.last) {
		at = l.last.Add(1) // behind it
	}
	if !at.After(now) {
		return to
	}
	l.counts.Late++
	l.last = at
	l.queued++
	heap.Push(&w.late, packet{at, l, to, append([]byte(nil), data...)})
	if w.late[0].at.Equal(at) {
		w.wake()
	}
	return nil
}

func (w *wire) wake() {
	select {
	case w.changed <- struct{}{}:
	default: // it will look anyway
	}
}

// deliver puts the packets that are late where they go when their time has come.
func (w *wire) deliver() {
	timer := time.NewTimer(0)
	defer timer.Stop()
	for {
		due, next := w.due(time.Now())
		for _, p := range due {
			_, _ = p.to.Write(p.data) // as above
		}
		timer.Reset(next)
		select {
		case <-w.done:
			return
		case <-w.changed:
		case <-timer.C:
		}
	}
}

// due takes the packets out whose time has come, and tells how long the next one has.
func (w *wire) due(now time.Time) (due []packet, next time.Duration) {
	const idle = time.Hour
	w.mu.Lock()
	defer w.mu.Unlock()
	for len(w.late) > 0 && !w.late[0].at.After(now) {
		p := heap.Pop(&w.late).(packet)
		p.link.queued--
		due = append(due, p)
	}
	if len(w.late) == 0 {
		return due, idle
	}
	return due, w.late[0].at.Sub(now)
}

// late is a heap of packets, the next one first.
type late []packet

func (l late) Len() int           { return len(l) }
func (l late) Less(i, j int) bool { return l[i].at.Before(l[j].at) }
func (l late) Swap(i, j int)      { l[i], l[j] = l[j], l[i] }
func (l *late) Push(x any)        { *l = append(*l, x.(packet)) }
func (l *late) Pop() any {
	old := *l
	last := old[len(old)-1]
	old[len(old)-1] = packet{}
	*l = old[:len(old)-1]
	return last
}
