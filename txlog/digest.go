package txlog

import (
	"fmt"
	"maps"
	"slices"
	"strconv"
	"strings"
	"time"

	"txmesh/txn"
)

// Digest is what a store remembers of an unfinished transaction beside its entries: the summary for List and
// what the next entry may change in it. It is a value with a Clone, not safe for many goroutines.
type Digest struct {
	Summary Summary
	Key     string // Spec.Key

	commit bool
	halted map[halt]struct{} // ops that wait for an operator
}

type halt struct {
	branch string
	op     txn.Op
}

// Apply adds one entry. It follows txn.State as far as a list shows it, and accepts any order of records: what
// does not fit is the machine's business.
func (d *Digest) Apply(e Entry) {
	s := &d.Summary
	s.ID = e.Tx
	switch r := e.Record.(type) {
	case txn.Began:
		s.Mode, s.Name, s.Begun, d.Key = r.Spec.Mode, r.Spec.Name, e.At.UTC().Round(0), r.Spec.Key
		s.Branches = len(r.Spec.Branches)
	case txn.Enlisted:
		if r.Again { // its forward is unanswered anew
			delete(d.halted, halt{r.Branch.ID, txn.Forward})
		} else {
			s.Branches++
		}
	case txn.Left:
		s.Branches--
	case txn.Decided:
		d.commit, s.Reason = r.Commit, clip(r.Reason)
		s.Phase = d.settling()
	case txn.Halted:
		if d.halted == nil {
			d.halted = make(map[halt]struct{})
		}
		if r.Branch != "" { // the initiator and the listeners make stuck, and any act of an operator ends that
			d.halted[halt{r.Branch, r.Op}] = struct{}{}
		}
		s.Phase = txn.Stuck
	case txn.Forced:
		delete(d.halted, halt{r.Branch, r.Op})
		if len(d.halted) == 0 {
			s.Phase = d.settling()
		}
	case txn.Stopped:
		s.Reason = clip("stopped by " + r.By + ": " + r.Why)
	case txn.Finished:
		s.Phase, s.Finished = r.Phase, e.At.UTC().Round(0)
	case txn.Extended, txn.Settled, txn.Deferred:
		// not shown in a list
	default:
		panic(fmt.Sprintf("txlog: record of an unknown kind %T", r))
	}
}

// reasonBytesMax bounds the reason in a summary; the whole of it is in the record.
const reasonBytesMax = 512

func clip(reason string) string {
	if len(reason) <= reasonBytesMax {
		return reason
	}
	return strings.ToValidUTF8(reason[:reasonBytesMax], "")
}

func (d *Digest) settling() txn.Phase {
	if d.commit {
		return txn.Committing
	}
	return txn.Aborting
}

// Clone returns a copy that shares nothing that Apply changes.
func (d *Digest) Clone() Digest {
	c := *d
	c.halted = maps.Clone(d.halted)
	return c
}

// listLimit is what a Limit of 0 means.
const listLimit = 100

// Max returns the number of summaries that a page holds at most.
func (q Query) Max() int {
	if q.Limit <= 0 {
		return listLimit
	}
	return q.Limit
}

// Selects reports whether the summary belongs to the listing, the cursor left aside. Begun.After is inclusive,
// Begun.Before is not.
func (q Query) Selects(s Summary) bool {
	return (len(q.Phases) == 0 || slices.Contains(q.Phases, s.Phase)) &&
		(q.Name == "" || q.Name == s.Name) &&
		(q.Begun.After.IsZero() || !s.Begun.Before(q.Begun.After)) &&
		(q.Begun.Before.IsZero() || s.Begun.Before(q.Begun.Before))
}

// Newer reports whether a comes before b in a listing: newest first, and by descending id where the times are
// equal.
func Newer(a, b Summary) bool {
	if !a.Begun.Equal(b.Begun) {
		return a.Begun.After(b.Begun)
	}
	return a.ID > b.ID
}

// After returns the cursor that continues a listing behind this summary.
func After(s Summary) Cursor {
	return Cursor(strconv.FormatInt(s.Begun.UnixNano(), 36) + "." + string(s.ID))
}

// Position returns where the cursor points; ok is false for the empty cursor.
func (c Cursor) Position() (at Summary, ok bool, err error) {
	if c == "" {
		return Summary{}, false, nil
	}
	nanos, id, found := strings.Cut(string(c), ".")
	n, err := strconv.ParseInt(nanos, 36, 64)
	if !found || err != nil {
		return Summary{}, false, fmt.Errorf("cursor %q: not one that a listing gave; start again without it", string(c))
	}
	return Summary{ID: txn.ID(id), Begun: time.Unix(0, n).UTC()}, true, nil
}
