package peer

import (
	"context"
	"errors"
	"fmt"
	"sync"

	"txmesh/interceptor"
	"txmesh/sidecar/engine"
	"txmesh/txn"
)

// Transport carries what the Relay sends to another owner. Client is the real one; simulations have their own.
type Transport interface {
	Enlist(ctx context.Context, owner string, id txn.ID, e txn.Enlist, doc *Document) (interceptor.Placed, error)
	Returned(ctx context.Context, owner string, id txn.ID, e txn.Returned, durable bool) error
}

// Relay brings Enlist and Returned to the owner of a transaction: to the engine of this sidecar or one hop away. It
// implements interceptor.Branches, starts no goroutine and reads no clock. It is safe for many goroutines.
type Relay struct {
	l    Local
	t    Transport
	docs Documents

	mu   sync.Mutex // guards sent
	sent map[sentKey]bool
}

type sentKey struct{ owner, hash string }

// NewRelay returns the relay of a sidecar.
func NewRelay(l Local, t Transport, docs Documents) *Relay {
	return &Relay{l: l, t: t, docs: docs, sent: map[sentKey]bool{}}
}

// triesMax counts the first try. A repeat is for a connection that broke: whoever is down stays so for longer.
const triesMax = 2

// Enlist returns when the branch is durable at the owner. Errors of package txn come from there unchanged; any
// other means that the branch may be enlisted or not, and that its forward call must not leave. It does not end with
// its context: a branch that was enlisted for a client that went away would hold up the commit as never answered.
func (r *Relay) Enlist(ctx context.Context, id txn.ID, e txn.Enlist) (interceptor.Placed, error) {
	ctx = context.WithoutCancel(ctx)
	owner := interceptor.OwnerOf(id)
	if r.l.Holds(owner) {
		return enlist(ctx, r.l, id, e)
	}
	if e.Branch.Key == "" && e.Branch.ID == "" {
		return interceptor.Placed{}, fmt.Errorf("relay a branch of %s: it has neither key nor id", id)
	}
	hash := documentOf(e.Branch.Note)
	withDocument := hash != "" && !r.wasSent(owner, hash)
	for try := 1; ; try++ {
		doc, err := r.document(ctx, hash, withDocument)
		if err != nil {
			return interceptor.Placed{}, err
		}
		p, err := r.t.Enlist(ctx, owner, id, e, doc)
		switch {
		case err == nil:
			r.noteSent(owner, hash)
			return p, nil
		case errors.Is(err, ErrDocument) && !withDocument && hash != "":
			withDocument = true
		case !errors.Is(err, ErrUnreachable) || try >= triesMax:
			return interceptor.Placed{}, fmt.Errorf("enlist at owner %s: %w", owner, err)
		}
	}
}

func (r *Relay) document(ctx context.Context, hash string, wanted bool) (*Document, error) {
	if !wanted {
		return nil, nil
	}
	src, err := r.docs.Get(ctx, hash)
	if err != nil {
		return nil, fmt.Errorf("policy document %s: %w", hash, err)
	}
	return &Document{Hash: hash, Source: src}, nil
}

// sentMax bounds the memory of what owners have; forgetting only costs sending a document again.
const sentMax = 10_000

func (r *Relay) wasSent(owner, hash string) bool {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.sent[sentKey{owner, hash}]
}

func (r *Relay) noteSent(owner, hash string) {
	if hash == "" {
		return
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	if len(r.sent) >= sentMax {
		clear(r.sent)
	}
	r.sent[sentKey{owner, hash}] = true
}

// Returned reports an answer. With durable it returns when the owner has made it durable; else when the owner has
// it in its queue, where no later event of this sidecar overtakes it. Repeating it is harmless.
func (r *Relay) Returned(ctx context.Context, id txn.ID, e txn.Returned, durable bool) error {
	owner := interceptor.OwnerOf(id)
	if r.l.Holds(owner) {
		return returned(ctx, r.l, id, e, durable)
	}
	for try := 1; ; try++ {
		err := r.t.Returned(ctx, owner, id, e, durable)
		if err == nil {
			return nil
		}
		if !errors.Is(err, ErrUnreachable) || try >= triesMax || ctx.Err() != nil {
			return fmt.Errorf("report to owner %s: %w", owner, err)
		}
	}
}

// enlist feeds the engine and finds the branch in what it says.
func enlist(ctx context.Context, l Local, id txn.ID, e txn.Enlist) (interceptor.Placed, error) {
	if e.Branch.Key == "" && e.Branch.ID == "" {
		return interceptor.Placed{}, fmt.Errorf("%w: branch of %s has neither key nor id", errMalformed, id)
	}
	var placed interceptor.Placed
	key, branch := e.Branch.Key, e.Branch.ID // were e captured, it would be copied once more
	err := l.DoAndSee(ctx, id, e, func(st txn.State) {
		b := st.ByKey(key)
		if b == nil {
			b = st.Find(branch)
		}
		if b != nil {
			placed = interceptor.Placed{Branch: b.ID, Home: b.Home}
		}
	})
	switch {
	case errors.Is(err, engine.ErrBranches):
		return interceptor.Placed{}, fmt.Errorf("%w: %w", interceptor.ErrBranches, err)
	case err != nil:
		return interceptor.Placed{}, err
	case placed.Branch == "":
		panic("peer: branch is not there after Enlist: " + string(id))
	}
	return placed, nil
}

func returned(ctx context.Context, l Local, id txn.ID, e txn.Returned, durable bool) error {
	if !durable {
		l.Post(id, e)
		return nil
	}
	return l.DoAndSee(ctx, id, e, func(txn.State) {})
}
