package admin

import (
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"regexp"
	"slices"
	"time"

	"txmesh/txn"
)

var branchID = regexp.MustCompile(`^[A-Za-z0-9][A-Za-z0-9_]{0,63}$`)

// retryRequest paces the repeats of a call.
type retryRequest struct {
	Delay      string `json:"delay"`
	MaxDelay   string `json:"maxDelay"`
	StuckAfter string `json:"stuckAfter"`
	TryTimeout string `json:"tryTimeout"`
}

func (q retryRequest) parse() (txn.Retry, error) {
	var r txn.Retry
	for _, f := range []struct {
		name, text string
		to         *time.Duration
		most       time.Duration
	}{
		{"delay", q.Delay, &r.Delay, time.Hour}, {"maxDelay", q.MaxDelay, &r.DelayMax, timeoutMax},
		{"stuckAfter", q.StuckAfter, &r.StuckAfter, 365 * timeoutMax}, {"tryTimeout", q.TryTimeout, &r.TryTimeout, tryMax},
	} {
		if f.text == "" {
			continue
		}
		var err error
		if *f.to, err = period("retry."+f.name, f.text, time.Millisecond, f.most); err != nil {
			return r, err
		}
	}
	return r, nil
}

// over fills what r leaves open.
func over(r, base txn.Retry) txn.Retry {
	if r.Delay == 0 {
		r.Delay = base.Delay
	}
	if r.DelayMax == 0 {
		r.DelayMax = base.DelayMax
	}
	if r.StuckAfter == 0 {
		r.StuckAfter = base.StuckAfter
	}
	if r.TryTimeout == 0 {
		r.TryTimeout = base.TryTimeout
	}
	return r
}

// branchRequest is a branch as a client wrote it, with what the initiator says of its own call.
type branchRequest struct {
	txn.Branch
	outcome txn.Outcome // None, OK or Refused
	result  json.RawMessage
}

// branch checks one branch. Which words it may have depends on the mode.
func (s surface) branch(raw json.RawMessage) (branchRequest, error) {
	var b branchRequest
	var fields map[string]json.RawMessage
	if err := json.Unmarshal(raw, &fields); err != nil {
		return b, err
	}
	for _, word := range slices.Sorted(maps.Keys(fields)) {
		if err := s.field(&b, word, fields[word]); err != nil {
			return b, fmt.Errorf("%s: %w", word, err)
		}
	}
	switch {
	case b.result != nil && b.outcome == txn.None:
		return b, errors.New("result: goes with an outcome")
	case b.empty() && !s.results:
		return b, errors.New("nothing can be asked of it: give it a target")
	}
	return b, nil
}

func (b branchRequest) empty() bool {
	return !slices.ContainsFunc(b.Ops[:], func(t []byte) bool { return t != nil })
}

func (s surface) field(b *branchRequest, word string, raw json.RawMessage) error {
	if o, ok := s.op(word); ok {
		return b.setOp(o, raw)
	}
	switch {
	case word == "id":
		return text(raw, &b.ID, branchID, "want at most 64 letters, digits and _")
	case word == "name":
		return text(raw, &b.Name, txName, "want at most 128 letters, digits and any of . _ / -")
	case word == "after" && s.ordered:
		return strict(raw, &b.After)
	case word == "retry":
		var q retryRequest
		if err := strict(raw, &q); err != nil {
			return err
		}
		var err error
		b.Retry, err = q.parse()
		return err
	case word == "outcome" && s.results:
		return b.setOutcome(raw)
	case word == "result" && s.results:
		b.result = raw
		return nil
	}
	return fmt.Errorf("a branch of this mode has %s", s.words())
}

func (b *branchRequest) setOp(o txn.Op, raw json.RawMessage) error {
	if b.Ops[o] != nil {
		return fmt.Errorf("is %s in other words; write one of them", o)
	}
	var q targetRequest
	if err := strict(raw, &q); err != nil {
		return err
	}
	var err error
	b.Ops[o], err = q.encoded(o)
	return err
}

func (b *branchRequest) setOutcome(raw json.RawMessage) error {
	var word string
	if err := strict(raw, &word); err != nil {
		return err
	}
	switch word {
	case txn.OK.String():
		b.outcome = txn.OK
	case txn.Refused.String():
		b.outcome = txn.Refused
	default:
		return fmt.Errorf("%.40q: want ok or refused; what is not known is not told", word)
	}
	return nil
}

func text(raw json.RawMessage, to *string, form *regexp.Regexp, want string) error {
	if err := strict(raw, to); err != nil {
		return err
	}
	if !form.MatchString(*to) {
		return fmt.Errorf("%.200q: %s", *to, want)
	}
	return nil
}
