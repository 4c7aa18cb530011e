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
	finishes map[string]bool
	cut      *span // nil: the power was not cut
	Lines    int
	Syncs    int
}

// note is one acknowledged write.
type note struct {
	id     string
	n      int // entries of each twin; 0: it is a row
	sync   bool
	covers int   // so many notes are durable by it
	stamp  int64 // when the writer was told, by its clock
}

// span is a stretch of Monotonic time.
type span struct{ begin, end int64 }

// Cut says when, by Monotonic, the power was cut: not before begin and not after end. What the writer was told before
// begin must be found. A process outlives its disk here for a moment, and a sync that is under way during the cut can
// answer it success (tests/power/sync_test.go shows it); where power fails nobody is left to be told. So what the
// writer was told from begin on is counted, as late, and need not be found.
func (l *Ledger) Cut(begin, end int64) { l.cut = &span{begin, end} }

// Reopened says that another process has opened the store and answered: what it has read, it acts on, so all that
// was read so far must survive a power cut from now on.
func (l *Ledger) Reopened() {
	for i := range l.notes {
		l.notes[i].sync = true
	}
}

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
		n := note{sync: true, covers: l.asked[f[1]]}
		delete(l.asked, f[1])
		return l.note(f[2:], n)
	default:
		return l.note(f, note{})
	}
}

func (l *Ledger) note(f []string, n note) error {
	if len(f) < 3 {
		return errors.New("not a line of a writer")
	}
	last := len(f) - 1
	_, err := fmt.Sscanf(f[last], "@%d", &n.stamp)
	n.id = f[1]
	switch {
	case last == 3 && f[0] == "+":
		_, e := fmt.Sscan(f[2], &n.n)
		err = errors.Join(err, e)
	case last == 2 && f[0] == "r":
	default:
		return errors.New("not a line of a writer")
	}
	l.notes = append(l.notes, n)
	return err
}

// Found is what Check has seen.
type Found struct {
	Transactions, Forgotten, Rows int
	Lost                          []string // acknowledged, and not there

	Before int // writes that had to be there
	During Late
	After  Late

	has map[string]int // entries of each pair, 1 for a row that is there
}

// Late is the writes that only a sync acknowledged during the cut, or after it, covers.
type Late struct{ Writes, Lost int }

// whole stands for the entries of a transaction that was forgotten after its end.
const whole = 1 << 30

// Check compares the store with the ledger. With all it must hold everything that was acknowledged, as after the
// death of the process; else everything that a sync has covered, as after a power cut. An error is a store that
// cannot be read or holds what nobody wrote; losses are in Found.
func (l *Ledger) Check(ctx context.Context, s txlog.Store, all bool) (Found, error) {
	claims := l.claims(all)
	f := Found{has: map[string]int{}}
	entries, rows := l.required(claims)
	for _, id := range slices.Sorted(maps.Keys(entries)) {
		if err := l.checkPair(ctx, s, &f, id, entries[id]); err != nil {
			return f, err
		}
	}
	for _, key := range slices.Sorted(maps.Keys(rows)) {
		if err := checkRow(ctx, s.Table("rows"), &f, key, rows[key]); err != nil {
			return f, err
		}
	}
	for i, c := range claims {
		l.count(&f, l.notes[i], c)
	}
	return f, l.checkOpen(ctx, s)
}

func checkRow(ctx context.Context, tab txlog.Table, f *Found, key string, must bool) error {
	v, err := tab.Get(ctx, key)
	switch {
	case errors.Is(err, txlog.ErrNotFound) && must:
		f.Lost = append(f.Lost, "row "+key)
		return nil
	case errors.Is(err, txlog.ErrNotFound):
		return nil
	case err != nil:
		return err
	case string(v) != rowValue(key):
		return fmt.Errorf("row %s holds %.40q, want %.40q", key, v, rowValue(key))
	}
	f.Rows++
	f.has["row "+key] = 1
	return nil
}

// claim is what the writer was told of a write.
type claim uint8

const (
	nothing claim = iota // that it is durable: nobody said so
	before               // that it is durable, before the cut
	during
	after
)

// claims returns what was said of each write: by its own sync or by the first later one that covers it.
func (l *Ledger) claims(all bool) []claim {
	cs := make([]claim, len(l.notes))
	for i, n := range l.notes {
		if all {
			cs[i] = before
			continue
		}
		if !n.sync {
			continue
		}
		c := l.when(n.stamp)
		cs[i] = earlier(cs[i], c)
		for j := range n.covers {
			cs[j] = earlier(cs[j], c)
		}
	}
	return cs
}

func (l *Ledger) when(stamp int64) claim {
	switch {
	case l.cut == nil || stamp < l.cut.begin:
		return before
	case stamp <= l.cut.end:
		return during
	}
	return after
}

func earlier(a, b claim) claim {
	if a == nothing {
		return b
	}
	return min(a, b)
}

// count adds one write to what is reported.
func (l *Ledger) count(f *Found, n note, c claim) {
	has := f.has["row "+n.id] > 0
	if n.n > 0 {
		has = f.has[n.id] >= n.n
	}
	var late *Late
	switch c {
	case nothing:
		return
	case before:
		f.Before++
		return
	case during:
		late = &f.During
	case after:
		late = &f.After
	}
	late.Writes++
	if !has {
		late.Lost++
	}
}

// required returns how many entries of each pair must be there, also 0 for those that may, and whether a row must.
func (l *Ledger) required(claims []claim) (entries map[string]int, rows map[string]bool) {
	entries, rows = map[string]int{}, map[string]bool{}
	for i, n := range l.notes {
		must := claims[i] == before
		switch {
		case n.n == 0:
			rows[n.id] = must
		case must:
			entries[n.id] = max(entries[n.id], n.n)
		default:
			entries[n.id] += 0
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
	f.has[id] = min(lengths[0], lengths[1])
	forgotten := l.finishes[id] && (lengths[0] == 0 || lengths[1] == 0)
	switch {
	case forgotten:
		f.Forgotten++
		f.has[id] = whole
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
