// Package takeover says which journals of a shared engine this sidecar holds: it claims its own, keeps its leases
// beating, watches those of its service and adopts the journals that nobody holds any more. Machine decides, from what
// was seen and a clock that nobody else reads; Keeper does what it says. It never loads a journal or runs an engine:
// it says when. Nothing here is needed for safety, for which the epochs stand; a wrong judgement costs work. Start at
// Machine.Step.
//
//  1. A sidecar that starts claims its own journal at once, whoever holds it: it alone has the data directory of that id.
//  2. Every holder raises the beat of each lease all the time. Who has seen a beat stand still for the lease time, by its
//     own clock, takes the lease for lapsed.
//  3. All who watch rank the live sidecars of the service alike (rendezvous hashing over their ids). The first claims;
//     the second does so half a lease time later if the first has not, and so on. Stand-bys do it for a service of which
//     no sidecar is left.
//  4. Who finds itself fenced stops at once. A sidecar that has lost its own journal this way has stepped back: it takes
//     it again when the adopter is through with it, or after a long while.
//  5. An adopter that has finished what was open gives the journal back: it is free, its holder is not its owner, and
//     nobody adopts it any more. In the end it is retired.
//  6. A sidecar that leaves releases its own journal and tells the one that ranks first. Those that it had adopted and
//     not finished it only tells about, so that free with another holder always means finished.
package takeover

import (
	"errors"
	"time"

	"txmesh/txlog"
)

// Why a journal is dropped, beside txlog.ErrFenced.
var (
	ErrIdle    = errors.New("takeover: nothing is open in the adopted journal")
	ErrLeaving = errors.New("takeover: this sidecar leaves")
)

// Config is what a Machine is made of.
type Config struct {
	Self    txlog.Holder
	Standby bool          // watches all services and adopts for those that have no sidecar left
	Lease   time.Duration // default: 3 s; the same for all sidecars of a mesh
	Retire  time.Duration // how long a finished journal stays free; default: 24 h
}

func (c Config) withDefaults() Config {
	if c.Lease <= 0 {
		c.Lease = 3 * time.Second
	}
	if c.Retire <= 0 {
		c.Retire = 24 * time.Hour
	}
	return c
}

// service is whose leases this sidecar watches.
func (c Config) service() string {
	if c.Standby {
		return ""
	}
	return c.Self.Service
}

// Event is what a Machine is told: Tick, Observed, Claimed, Renewed, Started, Stopped, Fenced, Offered, Ordered or Leave.
type Event interface{ event() }

// Tick comes again and again, several times within a sixth of the lease time.
type Tick struct {
	Idle []string // held owners without an open transaction
}

// Observed is what an Observe has found, ordered by owner.
type Observed struct {
	Leases []txlog.Lease
	Err    error
}

// Claimed is what a Claim has come to. An error other than txlog.ErrFenced means unknown.
type Claimed struct {
	Owner string
	Lease txlog.Lease
	Err   error
}

// Renewed is what a Renew has come to. An error other than txlog.ErrFenced means unknown.
type Renewed struct {
	Owner txlog.Owner
	Err   error
}

// Started says that the engine of an Adopt runs, or could not be started.
type Started struct {
	Owner txlog.Owner
	Err   error
}

// Stopped says that the engine of a Drop has stopped: it appends no more.
type Stopped struct{ Owner txlog.Owner }

// Fenced says that an engine's append was refused for its epoch.
type Fenced struct{ Owner txlog.Owner }

// Offered is the word of a holder that leaves: it has stopped, and this sidecar ranks first.
type Offered struct{ Owner txlog.Owner }

// Ordered is the word of the control plane that a holder is gone.
type Ordered struct {
	Owner   txlog.Owner
	Adopter string
}

// Leave says that this sidecar is to end.
type Leave struct{}

func (Tick) event()     {}
func (Observed) event() {}
func (Claimed) event()  {}
func (Renewed) event()  {}
func (Started) event()  {}
func (Stopped) event()  {}
func (Fenced) event()   {}
func (Offered) event()  {}
func (Ordered) event()  {}
func (Leave) event()    {}

// Action is what a Machine wants done: Observe, Claim, Renew, Adopt, Drop, Release, Retire or Offer. Those whose outcome
// it needs are answered by an event. They may be done side by side.
type Action interface{ action() }

// Observe reads the leases of a service; "" means all. Answered by Observed.
type Observe struct{ Service string }

// Claim takes a journal. Answered by Claimed.
type Claim struct {
	Owner  string
	Known  uint64
	Holder txlog.Holder
}

// Renew raises a beat. Answered by Renewed.
type Renew struct{ Owner txlog.Owner }

// Adopt starts an engine on a journal that is held from now on. Answered by Started.
type Adopt struct{ Lease txlog.Lease }

// Drop stops the engine of a journal. Answered by Stopped.
type Drop struct {
	Owner txlog.Owner
	Why   error
}

// Release says that nobody holds a journal any more. Its engine has stopped before.
type Release struct{ Owner txlog.Owner }

// Retire forgets a journal that has been free for long.
type Retire struct{ Owner txlog.Owner }

// Offer tells the sidecar that ranks first that it may claim a journal.
type Offer struct {
	Heir  txlog.Holder
	Owner txlog.Owner
}

func (Observe) action() {}
func (Claim) action()   {}
func (Renew) action()   {}
func (Adopt) action()   {}
func (Drop) action()    {}
func (Release) action() {}
func (Retire) action()  {}
func (Offer) action()   {}
