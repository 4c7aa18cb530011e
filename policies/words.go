package policies

import (
	"fmt"

	"txmesh/txn"
)

// word is the spelling of a value in documents; a value outside the set is a broken invariant.
func word[E ~uint8](e E, words ...string) string {
	if int(e) >= len(words) {
		panic(fmt.Sprintf("%T %d has no word", e, uint8(e)))
	}
	return words[e]
}

// String is the word used in documents, as in all String methods of this package.
func (w When) String() string { return word(w, "AtDecision", "AfterConfirm", "AfterUndo") }

// String is the word used in documents.
func (n Nested) String() string { return word(n, "Join", "New", "Reject") }

// String is the word used in documents.
func (k Kind) String() string { return word(k, "Undo", "Reserve", "Hold", "Irreversible") }

// String is the word used in documents.
func (b Barrier) String() string { return word(b, "None", "Proxy", "Key", "Database") }

// String is the word used in documents.
func (r Required) String() string { return word(r, "InFlight", "Always", "Never") }

// String is Refuse or Pass; documents call Pass Ignore or Report.
func (r Reaction) String() string { return word(r, "Reject", "Pass") }

// String is the word used in documents.
func (a Async) String() string { return word(a, "Refuse", "Detach") }

// String is the word used in reports.
func (s Severity) String() string { return word(s, "error", "warning") }

func resolveWord(r txn.Resolve) string { return word(r, "Undo", "Query", "Stop") }

func outcomeWord(o txn.Outcome) string { return word(o, "None", "OK", "Refused", "Pending", "Unknown") }

func modeWord(shadow bool) string {
	if shadow {
		return "Shadow"
	}
	return "Enforce"
}
