package txlog_test

import (
	"fmt"
	"math/rand/v2"
	"testing"

	"txmesh/txlog"
	"txmesh/txn"
)

// A list shows what the machine's own fold of the records says, whatever they are.
func TestDigestsAgreeWithTheFold(t *testing.T) {
	for seed := range uint64(2000) {
		rng := rand.New(rand.NewPCG(seed, 1))
		var records []txn.Record
		var d txlog.Digest
		branches, left := 0, map[string]bool{}
		for step := range 30 {
			r := randomRecord(rng, step, branches, left)
			if r == nil {
				continue
			}
			if e, ok := r.(txn.Enlisted); ok && !e.Again {
				branches++
			}
			records = append(records, r)
			before := d.Clone()
			d.Apply(txlog.Entry{Tx: "a", At: at(step), Record: r})
			compareDigest(t, seed, d, records)
			if len(records) > 1 { // a clone is not changed by what follows
				compareDigest(t, seed, before, records[:len(records)-1])
			}
		}
	}
}

func compareDigest(t *testing.T, seed uint64, d txlog.Digest, records []txn.Record) {
	t.Helper()
	s := txn.Fold(records)
	branches := 0
	for _, b := range s.Branches {
		if !b.Left {
			branches++
		}
	}
	got := d.Summary
	if got.Phase != s.Phase || got.Reason != s.Reason || got.Branches != branches {
		t.Fatalf("seed %d after %d records, the last a %T: got %v, %q and %d branches, want %v, %q and %d",
			seed, len(records), records[len(records)-1], got.Phase, got.Reason, got.Branches, s.Phase, s.Reason, branches)
	}
}

// randomRecord fits the branches that are there; nil where none would.
func randomRecord(rng *rand.Rand, step, branches int, left map[string]bool) txn.Record {
	if step == 0 {
		return txn.Began{Spec: txn.Spec{ID: "a", Mode: txn.Saga}}
	}
	if branches == 0 || rng.IntN(6) == 0 {
		return txn.Enlisted{Branch: txn.Branch{ID: fmt.Sprint(branches)}}
	}
	id, op := fmt.Sprint(rng.IntN(branches)), txn.Op(rng.IntN(int(txn.NumOps)))
	if rng.IntN(8) == 0 { // the initiator or the listeners
		id, op = "", txn.Ask+txn.Op(rng.IntN(2))
	}
	switch rng.IntN(9) {
	case 0:
		if id == "" {
			return nil
		}
		return txn.Enlisted{Branch: txn.Branch{ID: id}, Again: true}
	case 1:
		if id == "" || left[id] {
			return nil
		}
		left[id] = true
		return txn.Left{Branch: id}
	case 2:
		return txn.Decided{Commit: rng.IntN(2) == 0, Reason: fmt.Sprint("r", step)}
	case 3, 4:
		return txn.Halted{Branch: id, Op: op}
	case 5, 6:
		return txn.Forced{Branch: id, Op: op, Act: txn.Act(rng.IntN(2))}
	case 7:
		return txn.Settled{Branch: id, Op: op, Outcome: txn.OK}
	default:
		return txn.Finished{Phase: txn.Aborted}
	}
}
