package engine

import (
	"fmt"

	"txmesh/txn"
)

// What no store needs to take. A record that the journal refused would look like a failed append, so events that
// would make one are refused before they reach a machine.
const (
	idBytesMax   = 512
	keyBytesMax  = 1 << 10
	nameBytesMax = 512
)

// fits refuses an event that would make a record too large to append.
func (l Limits) fits(id txn.ID, e txn.Event) error {
	n := 0
	switch e := e.(type) {
	case txn.Begin:
		s := e.Spec
		if len(id) > idBytesMax || len(s.Key) > keyBytesMax || len(s.Name) > nameBytesMax {
			return fmt.Errorf("%w: id, key and name have %d, %d and %d bytes, at most %d, %d and %d",
				ErrTooLarge, len(id), len(s.Key), len(s.Name), idBytesMax, keyBytesMax, nameBytesMax)
		}
		n = len(s.Ask) + len(s.Tell) + len(s.Note) + len(s.Print) + bytesOf(s.Join)
		for i := range s.Branches {
			n += branchBytes(&s.Branches[i])
		}
		for _, k := range e.Known {
			n += len(k.Result) + len(k.Cause)
		}
		if e.Decide != nil {
			n += len(e.Decide.Reason) + len(e.Decide.Answer)
		}
	case txn.Enlist:
		n = branchBytes(&e.Branch) + len(e.Result)
	case txn.Returned:
		n = len(e.Result) + len(e.Cause)
	case txn.Decide:
		n = len(e.Reason) + len(e.Answer)
	case txn.Force:
		n = len(e.By) + len(e.Why)
	case txn.Leave, txn.Extend, txn.Wake:
		// small
	}
	if l.Bytes > 0 && n > l.Bytes {
		return fmt.Errorf("%w: %d bytes in one event, at most %d", ErrTooLarge, n, l.Bytes)
	}
	return nil
}

func branchBytes(b *txn.Branch) int {
	n := len(b.ID) + len(b.Key) + len(b.Home) + len(b.Print) + len(b.Name) + len(b.Note) + bytesOf(b.Join) + bytesOf(b.After)
	for _, target := range b.Ops {
		n += len(target)
	}
	return n
}

func bytesOf(ss []string) int {
	n := 0
	for _, s := range ss {
		n += len(s)
	}
	return n
}
