package admin

import (
	"fmt"
	"slices"
	"strings"
	"sync"
	"time"

	"txmesh/txn"
)

// surface is what the API offers of a mode: data, as the plan of the mode is.
type surface struct {
	ops       map[txn.Op]string // ops of a branch that may have a target, with the field's own word for each
	ask       string            // the field's own word for the question to the initiator; empty: nobody is asked
	takes     bool              // branches are enlisted while it is open
	results   bool              // the initiator keeps what its calls answered
	ordered   bool              // branches may say what they follow
	limitless bool              // may stay undecided for ever
}

// surfaces are the modes that the API begins with targets. Explicit has none: policies say what its branches are.
var surfaces = sync.OnceValue(func() map[txn.Mode]surface {
	saga := map[txn.Op]string{txn.Forward: "action", txn.Undo: "compensate", txn.Tell: ""}
	settled := func(commit, undo string) map[txn.Op]string {
		return map[txn.Op]string{txn.Commit: commit, txn.Undo: undo, txn.Tell: ""}
	}
	return map[txn.Mode]surface{
		txn.Saga:      {ops: saga, limitless: true},
		txn.SagaGraph: {ops: saga, ordered: true, limitless: true},
		txn.TCC:       {ops: settled("confirm", "cancel"), takes: true, ordered: true},
		txn.XA:        {ops: settled("commit", "rollback"), takes: true, ordered: true},
		txn.Msg:       {ops: map[txn.Op]string{txn.Commit: "action", txn.Tell: ""}, ask: "query"},
		txn.Workflow:  {ops: settled("commit", "rollback"), ask: "resume", takes: true, results: true, ordered: true},
		txn.LRA:       {ops: settled("complete", "compensate"), takes: true, ordered: true, limitless: true},
	}
})

// op finds the op that a word of the client means.
func (s surface) op(word string) (txn.Op, bool) {
	for o := range txn.NumOps {
		if own, offered := s.ops[o]; offered && (word == o.String() || word == own && own != "") {
			return o, true
		}
	}
	return 0, false
}

// words lists what a branch may say.
func (s surface) words() string {
	words := []string{"id", "name"}
	if s.ordered {
		words = append(words, "after")
	}
	for o := range txn.NumOps {
		own, offered := s.ops[o]
		switch {
		case !offered:
		case own == "" || own == o.String():
			words = append(words, o.String())
		default:
			words = append(words, o.String()+" ("+own+")")
		}
	}
	words = append(words, "retry")
	if s.results {
		words = append(words, "outcome", "result")
	}
	return strings.Join(words, ", ")
}

// planOf is the row of the mode, with what outcomes mean everywhere else in txmesh: refused had no effect and is not
// undone; a refused commit or undo is a person's business at once, except in LRA, where it is reported; tries are paced
// as those of policies.
func planOf(mode txn.Mode) txn.Plan {
	p := mode.Plan()
	if p.Refusal == txn.RefusalRetries {
		p.Refusal = txn.RefusalHalts
	}
	p.UndoRefused, p.Retry = false, txn.Explicit.Plan().Retry
	return p
}

// driven reports whether the initiator decides a transaction of this API.
func driven(s txn.Spec) bool {
	return s.Mode == txn.Explicit && s.Door == "" || s.Door == DoorName && !s.Plan.Drives
}

func modeOf(word string) (txn.Mode, error) {
	mode := txn.Mode(word)
	if _, ok := surfaces()[mode]; ok || mode == txn.Explicit {
		return mode, nil
	}
	if word == "" {
		return txn.Explicit, nil
	}
	known := []string{string(txn.Explicit)}
	for m := range surfaces() {
		known = append(known, string(m))
	}
	slices.Sort(known)
	return "", fmt.Errorf("mode %.40q: want one of %s", word, strings.Join(known, ", "))
}

// period reads a duration that a client wrote.
func period(name, text string, least, most time.Duration) (time.Duration, error) {
	d, err := time.ParseDuration(text)
	if err != nil || d < least || d > most {
		return 0, fmt.Errorf("%s %.40q: want a duration such as 30s, from %v to %v", name, text, least, most)
	}
	return d, nil
}
