package txlog

import (
	"context"
	"errors"

	"txmesh/txn"
)

// ErrChanged says that a row was not, or is no longer, what the caller believed it to be. Nothing was written.
var ErrChanged = errors.New("txlog: the row is not what was expected")

// Shared is an engine that survives the loss of a node and that many sidecars use at once. Every owner has a journal
// in it. All methods are safe for many goroutines.
type Shared interface {
	Leases
	// As returns the store of an owner. Append is for its transactions alone: it is refused with ErrFenced once the
	// owner has a newer epoch than the given one, and with ErrTaken for a transaction of another owner. Open yields
	// what the owner has not finished. History, Find, List and Trim see the transactions of all owners, and tables are
	// those of the whole engine: they are not fenced, Swap guards their rows. Closing the store leaves the engine open.
	As(o Owner) Store
	// OwnerOf returns whose journal holds a transaction, or ErrNotFound.
	OwnerOf(ctx context.Context, id txn.ID) (owner string, err error)
	Close() error
}

// Errors of shared engines that callers branch on.
var (
	ErrTaken       = errors.New("txlog: another owner has begun a transaction of this id") // nothing was written
	ErrUnfinished  = errors.New("txlog: the owner has unfinished transactions")
	ErrUnavailable = errors.New("txlog: the store does not answer")
)

// Leases says which sidecar holds which owner's journal. Time is no part of it: a holder renews its lease again and
// again, and who watches judges by a clock of its own for how long the beat has stood still. A wrong judgement costs
// nothing but work, because the epoch fences who was judged.
type Leases interface {
	// Claim takes the journal of an owner for a holder and gives it an epoch that is higher than all before. known is
	// the epoch that the claimer has seen, 0 for an owner that is not there; ErrFenced says that it is another by now.
	Claim(ctx context.Context, owner string, known uint64, h Holder) (Lease, error)
	// Renew raises the beat of a lease, or says ErrFenced when the owner has another epoch.
	Renew(ctx context.Context, o Owner) error
	// Release says that nobody holds the journal any more, so that the next need not wait; ErrFenced when the owner
	// has another epoch.
	Release(ctx context.Context, o Owner) error
	// Retire forgets an owner that has no unfinished transaction, else ErrUnfinished; ErrFenced when it has another
	// epoch. Epochs go on growing should it ever be claimed again.
	Retire(ctx context.Context, o Owner) error
	// Lease returns one lease, or ErrNotFound.
	Lease(ctx context.Context, owner string) (Lease, error)
	// Leases returns those of a service, ordered by owner; "" means all.
	Leases(ctx context.Context, service string) ([]Lease, error)
}

// Lease is the right to append to the journal of an owner, and how others reach who has it.
type Lease struct {
	Owner  Owner
	Holder Holder
	Beat   uint64 // raised by every Renew
	Free   bool   // released: nobody holds it
}

// Holder is a sidecar that holds journals.
type Holder struct {
	Sidecar string // its own owner id
	Service string // namespace/name of the service whose transactions these are, also when a stand-by holds them
	Peer    string // host:port of its peer port
}
