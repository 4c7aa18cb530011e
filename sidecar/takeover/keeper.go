package takeover

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"math/rand/v2"
	"sync"
	"time"

	"txmesh/txlog"
)

// Options is what a Keeper is made of. Leases, Self, Adopt and Drop are required. The functions are called side by side
// for different owners, never for one owner at the same time.
type Options struct {
	Config
	Leases txlog.Leases

	// Adopt starts an engine on the journal of an owner, whose transactions are those of a service. Where it fails,
	// nothing runs, and an error that wraps txlog.ErrFenced says that somebody else has the journal.
	Adopt func(ctx context.Context, o txlog.Owner, service string) error
	// Drop stops the engine of an owner and returns when it appends no more.
	Drop func(owner string, why error)
	// Idle reports whether the engine of an adopted owner has no open transaction. Default: it never says so.
	Idle func(owner string) bool
	// Offer tells another sidecar that it may claim a journal. Default: nobody is told, and it is found free or lapsed.
	Offer func(ctx context.Context, heir txlog.Holder, o txlog.Owner) error

	Now func() time.Time // default: time.Now
	Log *slog.Logger     // default: none
}

// Keeper does what a Machine says. Start is called once, then Run; the other methods are safe for many goroutines after
// Start.
type Keeper struct {
	o      Options
	began  time.Time
	ctx    context.Context // of everything that is done; ends with Run
	cancel context.CancelFunc
	wg     sync.WaitGroup // everything that is done
	last   sync.WaitGroup // releases and offers among it
	left   chan struct{}  // closed when nothing is held after HandOver

	mu    sync.Mutex // guards what follows
	m     *Machine
	found map[string]found
	done  bool // left is closed
}

// found is a lease that was looked up.
type found struct {
	lease txlog.Lease
	at    time.Time
}

// New returns a Keeper that holds nothing yet.
func New(o Options) (*Keeper, error) {
	if o.Leases == nil || o.Self.Sidecar == "" || o.Self.Service == "" || o.Adopt == nil || o.Drop == nil {
		return nil, errors.New("takeover: Options needs Leases, Self with sidecar and service, Adopt and Drop")
	}
	o.Config = o.withDefaults()
	if o.Idle == nil {
		o.Idle = func(string) bool { return false }
	}
	if o.Now == nil {
		o.Now = time.Now
	}
	if o.Log == nil {
		o.Log = slog.New(slog.DiscardHandler)
	}
	k := &Keeper{o: o, began: o.Now(), left: make(chan struct{}), found: map[string]found{}}
	k.ctx, k.cancel = context.WithCancel(context.Background())
	return k, nil
}

// Start claims the own journal, whoever holds it. The caller starts the engine on it, and then Run.
func (k *Keeper) Start(ctx context.Context) (txlog.Lease, error) {
	own := k.o.Self.Sidecar
	for {
		l, err := k.o.Leases.Lease(ctx, own)
		if err != nil && !errors.Is(err, txlog.ErrNotFound) {
			return txlog.Lease{}, fmt.Errorf("read the lease of the own journal %s: %w", own, err)
		}
		l, err = k.o.Leases.Claim(ctx, own, l.Owner.Epoch, k.o.Self)
		if errors.Is(err, txlog.ErrFenced) && ctx.Err() == nil {
			continue // an adopter was faster
		}
		if err != nil {
			return txlog.Lease{}, fmt.Errorf("claim the own journal %s: %w", own, err)
		}
		k.mu.Lock()
		defer k.mu.Unlock()
		k.m = NewMachine(k.o.Config, k.now(), l)
		return l, nil
	}
}

// now is monotonic: both times have the reading of such a clock.
func (k *Keeper) now() time.Duration { return k.o.Now().Sub(k.began) }

// Run keeps the leases until the context ends, and returns when nothing is under way any more. What is held then lapses:
// HandOver goes before it.
func (k *Keeper) Run(ctx context.Context) {
	defer k.wg.Wait()
	defer k.end()
	for {
		k.step(Tick{Idle: k.idle()})
		// A twelfth of the lease, more or less: sidecars that started together must not ask together for ever.
		pause := time.NewTimer(time.Duration((0.75 + rand.Float64()/2) * float64(k.o.Lease) / 12))
		select {
		case <-pause.C:
		case <-ctx.Done():
			pause.Stop()
			return
		}
	}
}

// end keeps anything new from being started.
func (k *Keeper) end() {
	k.mu.Lock()
	defer k.mu.Unlock()
	k.cancel()
}

func (k *Keeper) idle() []string {
	var out []string
	for _, l := range k.Held() {
		if id := l.Owner.ID; id != k.o.Self.Sidecar && k.Holds(id) && k.o.Idle(id) {
			out = append(out, id)
		}
	}
	return out
}

// step feeds an event and has done what comes of it.
func (k *Keeper) step(e Event) {
	k.mu.Lock()
	defer k.mu.Unlock()
	if k.ctx.Err() != nil {
		return
	}
	for _, a := range k.m.Step(k.now(), e) {
		k.note(a)
		switch a.(type) {
		case Release, Offer:
			k.last.Add(1)
			k.wg.Go(func() { defer k.last.Done(); k.perform(a) })
		default:
			k.wg.Go(func() { k.perform(a) })
		}
	}
	if k.m.Left() && !k.done {
		k.done = true
		close(k.left)
	}
}

// perform does one thing and tells the machine what came of it. A store that does not answer is asked again.
func (k *Keeper) perform(a Action) {
	ctx, cancel := context.WithTimeout(k.ctx, k.o.Lease/3)
	defer cancel()
	switch a := a.(type) {
	case Observe:
		ls, err := k.o.Leases.Leases(ctx, a.Service)
		k.warn("observe", err)
		k.step(Observed{ls, err})
	case Claim:
		l, err := k.o.Leases.Claim(ctx, a.Owner, a.Known, a.Holder)
		k.warn("claim", err, "owner", a.Owner)
		k.step(Claimed{a.Owner, l, err})
	case Renew:
		err := k.o.Leases.Renew(ctx, a.Owner)
		k.warn("renew", err, "owner", a.Owner.ID)
		k.step(Renewed{a.Owner, err})
	case Adopt:
		err := k.o.Adopt(k.ctx, a.Lease.Owner, a.Lease.Holder.Service)
		k.warn("adopt", err, "owner", a.Lease.Owner.ID)
		k.step(Started{a.Lease.Owner, err})
	case Drop:
		k.o.Drop(a.Owner.ID, a.Why)
		k.step(Stopped{a.Owner})
	case Release:
		k.warn("release", k.o.Leases.Release(ctx, a.Owner), "owner", a.Owner.ID)
	case Retire:
		k.warn("retire", k.o.Leases.Retire(ctx, a.Owner), "owner", a.Owner.ID)
	case Offer:
		if k.o.Offer != nil {
			k.warn("offer", k.o.Offer(ctx, a.Heir, a.Owner), "owner", a.Owner.ID, "heir", a.Heir.Sidecar)
		}
	}
}

func (k *Keeper) warn(action string, err error, args ...any) {
	if err != nil && k.ctx.Err() == nil {
		k.o.Log.Warn("takeover action failed", append(args, "action", action, "error", err)...)
	}
}

// note logs what people want to know of.
func (k *Keeper) note(a Action) {
	switch a := a.(type) {
	case Adopt:
		l := a.Lease
		k.o.Log.Info("journal adopted", "owner", l.Owner.ID, "epoch", l.Owner.Epoch, "service", l.Holder.Service)
	case Drop:
		k.o.Log.Info("journal dropped", "owner", a.Owner.ID, "epoch", a.Owner.Epoch, "why", a.Why)
	case Retire:
		k.o.Log.Info("journal retired", "owner", a.Owner.ID)
	}
}

// Fenced says that an engine's append was refused for its epoch.
func (k *Keeper) Fenced(o txlog.Owner) { k.step(Fenced{o}) }

// Offered says that a holder that leaves has told this sidecar to claim a journal.
func (k *Keeper) Offered(o txlog.Owner) { k.step(Offered{o}) }

// Ordered says that the control plane believes the holder of a journal gone and wants a sidecar to adopt it. It counts
// only where this sidecar has seen the beat stand still as well.
func (k *Keeper) Ordered(o txlog.Owner, adopter string) { k.step(Ordered{o, adopter}) }

// HandOver stops all engines by Drop, releases what can be released and tells who comes next. It returns when that is
// done; after it nothing is claimed any more. Run must still be running.
func (k *Keeper) HandOver(ctx context.Context) error {
	k.step(Leave{})
	select {
	case <-k.left:
	case <-ctx.Done():
		return fmt.Errorf("hand over %d journals: %w", len(k.Held()), ctx.Err())
	}
	k.last.Wait() // nothing is held: no release can begin any more
	return nil
}

// Holds reports whether the journal of an owner is held here and stays.
func (k *Keeper) Holds(owner string) bool {
	k.mu.Lock()
	defer k.mu.Unlock()
	return k.m.Runs(owner)
}

// Held returns the leases of this sidecar, ordered by owner.
func (k *Keeper) Held() []txlog.Lease {
	k.mu.Lock()
	defer k.mu.Unlock()
	return k.m.Held()
}

// Unsure reports whether a lease was not renewed for its whole time, so that others may have taken the journal.
func (k *Keeper) Unsure() bool {
	k.mu.Lock()
	defer k.mu.Unlock()
	return k.m.Unsure(k.now())
}

// Live reports whether the sidecar with this id holds its own journal, and whether anything is known of it.
func (k *Keeper) Live(sidecar string) (live, known bool) {
	k.mu.Lock()
	defer k.mu.Unlock()
	return k.m.Live(sidecar)
}

// foundMax bounds what is kept of Lookup; forgetting only costs asking again.
const foundMax = 10_000

// Lookup returns the lease of an owner, as it is or was a sixth of the lease time ago, or txlog.ErrNotFound.
func (k *Keeper) Lookup(ctx context.Context, owner string) (txlog.Lease, error) {
	k.mu.Lock()
	f, ok := k.found[owner]
	k.mu.Unlock()
	if ok && k.o.Now().Sub(f.at) < k.o.Lease/6 {
		return f.lease, nil
	}
	at := k.o.Now()
	l, err := k.o.Leases.Lease(ctx, owner)
	if err != nil {
		return l, fmt.Errorf("look up who holds %s: %w", owner, err)
	}
	k.mu.Lock()
	defer k.mu.Unlock()
	if len(k.found) >= foundMax {
		clear(k.found)
	}
	k.found[owner] = found{l, at}
	return l, nil
}

// Forget makes the next Lookup of an owner ask the store: who was found had it no more.
func (k *Keeper) Forget(owner string) {
	k.mu.Lock()
	defer k.mu.Unlock()
	delete(k.found, owner)
}
