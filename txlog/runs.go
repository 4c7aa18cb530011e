package txlog

import (
	"fmt"
	"slices"
	"strconv"
	"strings"

	"txmesh/txn"
)

// A branch names those that were answered before it, which in a long transaction are nearly all: written out, the names
// alone would be megabytes for a thousand branches. So runs of the numbers that the machine gives are written as
// runMark, first, '-', last, in decimal. A name that begins with the mark has one more in front.
const (
	runMark   = "\x00"
	runsFrom  = 8 // names; for fewer it is not worth a copy of the record
	runLenMin = 3
	runsMax   = 1 << 16 // names that a list with runs may have: a few bytes must not take all memory
)

// shorten returns a record whose names are written as runs where that is shorter.
func shorten(r txn.Record) txn.Record {
	switch r := r.(type) {
	case txn.Enlisted:
		if long(r.Branch.After) {
			r.Branch.After = toRuns(r.Branch.After)
			return r
		}
	case txn.Began:
		if slices.ContainsFunc(r.Spec.Branches, func(b txn.Branch) bool { return long(b.After) }) {
			r.Spec.Branches = slices.Clone(r.Spec.Branches)
			for i := range r.Spec.Branches {
				r.Spec.Branches[i].After = toRuns(r.Spec.Branches[i].After)
			}
			return r
		}
	}
	return r
}

// lengthen is the inverse of shorten.
func lengthen(r txn.Record) (txn.Record, error) {
	switch r := r.(type) {
	case txn.Enlisted:
		if slices.ContainsFunc(r.Branch.After, isMarked) {
			var err error
			r.Branch.After, err = fromRuns(r.Branch.After)
			return r, err
		}
	case txn.Began:
		for i := range r.Spec.Branches {
			b := &r.Spec.Branches[i]
			if !slices.ContainsFunc(b.After, isMarked) {
				continue
			}
			var err error
			if b.After, err = fromRuns(b.After); err != nil {
				return nil, err
			}
		}
	}
	return r, nil
}

func isMarked(name string) bool { return strings.HasPrefix(name, runMark) }

// long reports whether toRuns would change something, or is worth to try.
func long(names []string) bool {
	return len(names) >= runsFrom && len(names) <= runsMax || slices.ContainsFunc(names, isMarked)
}

func toRuns(names []string) []string {
	var out []string
	for i := 0; i < len(names); {
		n := runAt(names[i:])
		switch {
		case n >= runLenMin && len(names) <= runsMax:
			out = append(out, runMark+names[i]+"-"+names[i+n-1])
		case isMarked(names[i]):
			out, n = append(out, runMark+names[i]), 1
		default:
			out, n = append(out, names[i]), 1
		}
		i += n
	}
	return out
}

func fromRuns(in []string) ([]string, error) {
	var out []string
	for _, name := range in {
		text, marked := strings.CutPrefix(name, runMark)
		if !marked || isMarked(text) {
			out = append(out, text)
			continue
		}
		from, to, _ := strings.Cut(text, "-")
		first, ok1 := number(from)
		last, ok2 := number(to)
		if !ok1 || !ok2 || last < first || last-first >= runsMax-len(out) {
			return nil, fmt.Errorf("names %q are no run: %w", text, ErrCorrupt)
		}
		for n := first; n <= last; n++ {
			out = append(out, strconv.Itoa(n))
		}
	}
	return out, nil
}

// runAt returns how many names from the first on count up.
func runAt(names []string) int {
	first, ok := number(names[0])
	if !ok {
		return 1
	}
	n := 1
	for n < len(names) && names[n] == strconv.Itoa(first+n) {
		n++
	}
	return n
}

// number reads what strconv.Itoa writes of a number that is not negative.
func number(s string) (int, bool) {
	n, err := strconv.Atoi(s)
	return n, err == nil && n >= 0 && strconv.Itoa(n) == s
}
