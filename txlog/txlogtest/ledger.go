package txlogtest

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"maps"
	"reflect"
	"slices"
	"strings"

	"txmesh/txlog"
	"txmesh/txn"
)

// Ledger reads the lines of a Writer and compares them with what is found in the store after its death.
type Ledger struct {
	notes    []note
	asked    map[string]int // number of notes when a sync was asked for
	durable  int            // so many notes are durable, by the last sync that was acknowledged
	finishes map[string]bool
	cut      bool
	Lines    int
	Syncs    int
}

// note is one acknowledged write.
type note struct {
	id   string
	n    int // entries of each twin; 0: it is a row
	sync bool
	late bool // read after Cut
}

// Cut says that the power is about to be cut: what is read from now on may be found and need not. A process outlives
// its disk here for a moment, and a sync that is under way during the shutdown call may answer it success, or so two
// losses in one run suggest; that is a presumption. Where power fails nobody is left to be told.
func (l *Ledger) Cut() { l.cut = true }

// Read takes lines until the reader ends or stop, called after each, says so. A last line without an end is left
// out.
func (l *Ledger) Read(r *bufio.Reader, stop func(lines int) bool) error {
	if l.asked == nil {
		l.asked, l.finishes = map[string]int{}, map[string]bool{}
	}
	for {
		text, err := r.ReadString('\n')
		if errors.Is(err, io.EOF) {
			return nil
		}
		if err != nil {
			return fmt.Errorf("read ledger: %w", err)
		}
		if err := l.add(strings.Fields(text)); err != nil {
			return fmt.Errorf("line %q: %w", text, err)
		}
		if l.Lines++; stop != nil && stop(l.Lines) {
			return nil
		}
	}
}

func (l *Ledger) add(f []string) error {
	switch {
	case len(f) == 2 && f[0] == ">":
		l.asked[f[1]] = len(l.notes)
		return nil
	case len(f) == 2 && f[0] == "f":
		l.finishes[f[1]] = true
		return nil
	case len(f) >= 3 && f[0] == "<":
		l.Syncs++
		if !l.cut {
			l.durable = max(l.durable, l.asked[f[1]])
		}
		delete(l.asked, f[1])
		return l.note(f[2:], true)
	default:
		return l.note(f, false)
	}
}

func (l *Ledger) note(f []string, sync bool) error {
	switch {
	case len(f) == 2 && f[0] == "r":
		l.notes = append(l.notes, note{id: f[1], sync: sync, late: l.cut})
		return nil
	case len(f) == 3 && f[0] == "+":
		n := note{id: f[1], sync: sync, late: l.cut}
		_, err := fmt.Sscan(f[2], &n.n)
		l.notes = append(l.notes, n)
		return err
	}
	return errors.New("not a line of a writer")
}

// Found is what Check has seen.
type Found struct {
	Transactions, Forgotten, Rows int
	Lost                          []string // acknowledged, and not there
}

// Check compares the store with the ledger. With all it must hold everything that was acknowledged, as after the
// death of the process; else everything that a sync has covered, as after a power cut. An error is a store that
// cannot be read or holds what nobody wrote; losses are in Found.
func (l *Ledger) Check(ctx context.Context, s txlog.Store, all bool) (Found, error) {
	entries, rows := l.required(all)
	var f Found
	for _, id := range slices.Sorted(maps.Keys(entries)) {
		if err := l.checkPair(ctx, s, &f, id, entries[id]); err != nil {
			return f, err
		}
	}
	tab := s.Table("rows")
	for _, key := range slices.Sorted(maps.Keys(rows)) {
		v, err := tab.Get(ctx, key)
		switch {
		case errors.Is(err, txlog.ErrNotFound):
			f.Lost = append(f.Lost, "row "+key)
		case err != nil:
			return f, err
		case string(v) != rowValue(key):
			return f, fmt.Errorf("row %s holds %.40q, want %.40q", key, v, rowValue(key))
		default:
			f.Rows++
		}
	}
	return f, l.checkOpen(ctx, s)
}

// required returns how many entries of each pair must be there, also 0 for those that may, and which rows.
func (l *Ledger) required(all bool) (entries map[string]int, rows map[string]bool) {
	entries, rows = map[string]int{}, map[string]bool{}
	for i, n := range l.notes {
		must := all || !n.late && (n.sync || i < l.durable)
		switch {
		case n.n > 0 && must:
			entries[n.id] = max(entries[n.id], n.n)
		case n.n > 0:
			entries[n.id] += 0
		case must:
			rows[n.id] = true
		}
	}
	return entries, rows
}

// checkPair looks at both twins: whole appends, the right bytes, and enough of them.
func (l *Ledger) checkPair(ctx context.Context, s txlog.Store, f *Found, id string, want int) error {
	var lengths [2]int
	for i, twin := range twins(id) {
		n, err := checkHistory(ctx, s, twin, l.finishes[id])
		if err != nil {
			return err
		}
		lengths[i] = n
	}
	f.Transactions++
	forgotten := l.finishes[id] && (lengths[0] == 0 || lengths[1] == 0)
	switch {
	case forgotten:
		f.Forgotten++
	case lengths[0] != lengths[1]:
		return fmt.Errorf("twins of %s have %d and %d entries: an append was torn", id, lengths[0], lengths[1])
	case !isBoundary(lengths[0]):
		return fmt.Errorf("%s has %d entries: an append was torn", id, lengths[0])
	case lengths[0] < want:
		f.Lost = append(f.Lost, fmt.Sprintf("entries %d to %d of %s", lengths[0], want, id))
	}
	return nil
}

func checkHistory(ctx context.Context, s txlog.Store, id string, finish bool) (int, error) {
	n := 0
	for e, err := range s.History(ctx, txn.ID(id)) {
		if err != nil {
			return n, err
		}
		if want := generated(e.At, id, n, finish); !reflect.DeepEqual(e, want) {
			return n, fmt.Errorf("entry %d of %s is %.200v, want %.200v", n, id, e, want)
		}
		n++
	}
	return n, nil
}

// checkOpen compares the unfinished transactions with their histories.
func (l *Ledger) checkOpen(ctx context.Context, s txlog.Store) error {
	counts := map[txn.ID]int{}
	for e, err := range s.Open(ctx, txlog.Owner{}) {
		if err != nil {
			return err
		}
		if _, ok := e.Record.(txn.Finished); ok {
			return fmt.Errorf("%s is finished and unfinished", e.Tx)
		}
		counts[e.Tx]++
	}
	for id, n := range counts {
		found, err := checkHistory(ctx, s, string(id), false)
		if err != nil {
			return err
		}
		if found != n {
			return fmt.Errorf("unfinished %s has %d entries, its history %d", id, n, found)
		}
	}
	return nil
}
