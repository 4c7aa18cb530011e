package txn

import "strconv"

// word returns the name of a value of a closed set; a value outside of it, which a newer release may have
// written, shows as its number.
func word(names []string, v uint8) string {
	if int(v) < len(names) {
		return names[v]
	}
	return strconv.Itoa(int(v))
}

// String returns the op's word in journals, metrics and headers.
func (o Op) String() string {
	return word([]string{"forward", "commit", "undo", "ask", "tell"}, uint8(o))
}

// String returns the outcome's word.
func (o Outcome) String() string {
	return word([]string{"none", "ok", "refused", "pending", "unknown"}, uint8(o))
}

// String returns the phase's word.
func (p Phase) String() string {
	return word([]string{"open", "committing", "aborting", "stuck", "committed", "aborted", "stopped"}, uint8(p))
}

// String returns the word for how an unanswered branch is resolved.
func (r Resolve) String() string { return word([]string{"undo", "ask", "stop"}, uint8(r)) }

// String returns the operator's act.
func (a Act) String() string { return word([]string{"retry", "skip"}, uint8(a)) }
