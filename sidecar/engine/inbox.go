package engine

import (
	"sync"
	"time"

	"txmesh/txn"
)

// request is something for the loop to do.
type request struct {
	id    txn.ID
	event txn.Event            // nil: a look at the state
	until func(txn.State) bool // of Wait and DoAndWait
	see   func(txn.State)      // of DoAndSee: takes the state, and the reply has none
	fresh bool                 // a Begin whose id History does not know
	made  bool                 // a Begin whose id nobody knows
	work  func(*loop)          // anything else; done as it comes
	reply chan reply           // buffered for one; nil: nobody waits
}

type reply struct {
	state *txn.State // nil: nobody wants it, or there is none
	err   error
}

// answer sends the one reply of a request.
func (r *request) answer(s *txn.State, err error) {
	if r.reply != nil {
		r.reply <- reply{s, err}
	}
}

// answered is what an engine's call came to.
type answered struct {
	call    txn.Call
	lane    *lane
	life    uint64 // of the machines that asked for it
	outcome txn.Outcome
	result  []byte
	cause   string
	took    time.Duration
}

// inbox is the unbounded queue in front of the loop: to put something into it never blocks, and order is kept.
// The loop does no I/O, so it cannot fall behind for long.
type inbox struct {
	mu     sync.Mutex // guards the fields below
	rs     []*request
	closed bool

	ready chan struct{} // says that rs may not be empty
}

// put reports whether the loop will see the request.
func (b *inbox) put(r *request) bool {
	b.mu.Lock()
	if b.closed {
		b.mu.Unlock()
		return false
	}
	b.rs = append(b.rs, r)
	b.mu.Unlock()
	select {
	case b.ready <- struct{}{}:
	default: // it knows
	}
	return true
}

// take appends everything that has come to rs.
func (b *inbox) take(rs []*request) []*request {
	b.mu.Lock()
	defer b.mu.Unlock()
	rs = append(rs, b.rs...)
	clear(b.rs)
	b.rs = b.rs[:0]
	return rs
}

func (b *inbox) open() {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.closed = false
}

func (b *inbox) close() {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.closed = true
}
