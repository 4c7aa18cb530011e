package policies

import (
	"txmesh/txn"
)

// BuiltinOutcome judges an answer by the built-in table alone, for who has no rule of the call at hand. The cause is
// empty for OK.
func BuiltinOutcome(o txn.Op, res *Message) (out txn.Outcome, cause string) {
	out = (&Call{}).table(o, res)
	return out, because(out, res.Said())
}
