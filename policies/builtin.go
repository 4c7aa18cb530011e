package policies

import (
	"fmt"

	"txmesh/txn"
)

// BuiltinOutcome judges an answer by the built-in table alone, for who has no rule of the call at hand. The cause is
// empty for OK.
func BuiltinOutcome(o txn.Op, status int) (out txn.Outcome, cause string) {
	out = (&Call{}).table(o)(status)
	return out, because(out, fmt.Sprintf("answered %d", status))
}
