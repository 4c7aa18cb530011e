package sim

import (
	"bytes"
	"fmt"
	"io"

	"txmesh/txn"
)

// describe is an event as the trace shows it.
func describe(id txn.ID, e txn.Event) string {
	switch e := e.(type) {
	case txn.Begin:
		return fmt.Sprintf("begin %s %s %s", id, e.Spec.Mode, e.Spec.Name)
	case txn.Enlist:
		return fmt.Sprintf("enlist in %s: %s under %s, calling %v, home %q", id, e.Branch.Name, e.Branch.Key, e.Calling, e.Branch.Home)
	case txn.Decide:
		return fmt.Sprintf("decide %s: commit %v %s", id, e.Commit, e.Reason)
	case txn.Returned:
		return fmt.Sprintf("returned %s of %s: %s %s", e.Op, name(id, e.Branch), e.Outcome, e.Cause)
	case txn.Force:
		return fmt.Sprintf("force %s of %s", e.Op, name(id, e.Branch))
	default:
		return fmt.Sprintf("%T %s", e, id)
	}
}

// describeRecord is a record as the trace shows it.
func describeRecord(r txn.Record) string {
	switch r := r.(type) {
	case txn.Began:
		return "began"
	case txn.Enlisted:
		return fmt.Sprintf("enlisted %s %s after %v home %q", r.Branch.ID, r.Branch.Name, r.Branch.After, r.Branch.Home)
	case txn.Decided:
		return fmt.Sprintf("decided commit=%v %s stand %v undo %v", r.Commit, r.Reason, r.Stand, r.Undo)
	case txn.Settled:
		return fmt.Sprintf("settled %s of %s: %s %s", r.Op, r.Branch, r.Outcome, r.Cause)
	case txn.Deferred:
		return fmt.Sprintf("deferred %s of %s: %s %s", r.Op, r.Branch, r.Outcome, r.Cause)
	default:
		return fmt.Sprintf("%+v", r)
	}
}

func readAll(r io.Reader) []byte {
	b, err := io.ReadAll(r)
	if err != nil {
		panic(err) // it is a buffer
	}
	return b
}

func body(b []byte) io.ReadCloser { return io.NopCloser(bytes.NewReader(b)) }
