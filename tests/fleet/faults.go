package fleet

import (
	"fmt"
	"math/rand/v2"
	"strings"
	"time"
)

// Kind is a kind of fault.
type Kind uint8

// The kinds of faults.
const (
	Cut  Kind = iota // nothing arrives between two groups of hosts
	Lose             // a part does not arrive
	Slow             // all arrives late
	Stop             // a process does not go on
	Kill             // a process dies, and is started again when the fault ends
	Fill             // a disk is full
	NumKinds
)

// String is what a timeline calls it.
func (k Kind) String() string {
	switch k {
	case Cut:
		return "cut"
	case Lose:
		return "lose"
	case Slow:
		return "slow"
	case Stop:
		return "stop"
	case Kill:
		return "kill"
	case Fill:
		return "fill"
	case NumKinds:
	}
	panic(fmt.Sprintf("fleet: no kind of fault: %d", k))
}

// Fault is something that is wrong for a time.
type Fault struct {
	At    time.Duration // since the begin of the run
	Lasts time.Duration
	Kind  Kind
	// Between whom: hosts for faults of the wire. Faults of a process or a disk name it in From alone.
	From, To []string
	OneWay   bool          // what goes from To to From is not touched
	Loss     float64       // Lose: the part
	Delay    time.Duration // Slow
	Jitter   time.Duration // Slow
}

// String says in a line what is wrong.
func (f Fault) String() string {
	way := "<->"
	if f.OneWay {
		way = "->"
	}
	text := fmt.Sprint(f.Kind, " ", strings.Join(f.From, ","))
	if len(f.To) > 0 {
		text += fmt.Sprint(" ", way, " ", strings.Join(f.To, ","))
	}
	switch f.Kind {
	case Lose:
		text += fmt.Sprintf(" %.0f %%", 100*f.Loss)
	case Slow:
		text += fmt.Sprintf(" %v ± %v", f.Delay.Round(time.Millisecond), f.Jitter.Round(time.Millisecond))
	case Cut, Stop, Kill, Fill, NumKinds:
	}
	return text
}

// Roster names who can be struck. On a host lives what it is named for, and an application beside each sidecar.
type Roster struct {
	Sidecars []string // hosts
	Stores   []string // hosts
	Controls []string // hosts
	Apps     []string // processes on the hosts of the sidecars
}

func (r Roster) hosts() []string {
	return append(append(append([]string(nil), r.Sidecars...), r.Stores...), r.Controls...)
}

// The bounds of what Draw draws. A lease is 3 s: what lasts longer costs a sidecar its journal.
const (
	pauseMin, pauseMax = 2 * time.Second, 8 * time.Second // between the beginnings of two faults
	lastsMin, lastsMax = 500 * time.Millisecond, 8 * time.Second
	lossMin, lossMax   = 0.02, 0.3
	delayMin, delayMax = 5 * time.Millisecond, 150 * time.Millisecond
)

// Draw returns the faults of a run, ordered by time: the same ones for the same seed. They overlap, but nothing is struck
// by two faults that would end each other. All have ended when the run has.
func Draw(seed uint64, run time.Duration, r Roster) []Fault {
	d := dice{rand.New(rand.NewPCG(seed, 1))}
	busy := map[string]time.Duration{} // a process or disk -> until when
	var all []Fault
	for at := d.between(pauseMin, pauseMax); at+lastsMax < run; at += d.between(pauseMin, pauseMax) {
		f := d.fault(r)
		f.At, f.Lasts = at, d.between(lastsMin, lastsMax)
		if len(f.To) == 0 {
			const recovers = 5 * time.Second // until it may be struck again
			if busy[f.From[0]] > at {
				continue
			}
			busy[f.From[0]] = at + f.Lasts + recovers
		}
		all = append(all, f)
	}
	return all
}

type dice struct{ *rand.Rand }

func (d dice) between(low, high time.Duration) time.Duration {
	return low + time.Duration(d.Int64N(int64(high-low)))
}

func (d dice) one(of []string) string { return of[d.IntN(len(of))] }

// fault draws what happens to whom.
func (d dice) fault(r Roster) Fault {
	processes := append(r.hosts(), r.Apps...)
	switch n := d.IntN(20); {
	case n < 5:
		f := d.link(Cut, r)
		f.OneWay = d.IntN(4) == 0
		return f
	case n < 8:
		f := d.link(Lose, r)
		f.Loss = lossMin + d.Float64()*(lossMax-lossMin)
		return f
	case n < 11:
		f := d.link(Slow, r)
		f.Delay = d.between(delayMin, delayMax)
		f.Jitter = time.Duration(d.Float64() * float64(f.Delay))
		return f
	case n < 14:
		return Fault{Kind: Stop, From: []string{d.one(processes)}}
	case n < 18:
		return Fault{Kind: Kill, From: []string{d.one(processes)}}
	default:
		return Fault{Kind: Fill, From: []string{d.one(append(append([]string(nil), r.Sidecars...), r.Stores...))}}
	}
}

// link draws a fault between a host and another, or between a host and all others.
func (d dice) link(k Kind, r Roster) Fault {
	hosts := r.hosts()
	a := d.one(hosts)
	var others []string
	for _, h := range hosts {
		if h != a {
			others = append(others, h)
		}
	}
	if d.IntN(3) == 0 {
		return Fault{Kind: k, From: []string{a}, To: others}
	}
	return Fault{Kind: k, From: []string{a}, To: []string{d.one(others)}}
}
