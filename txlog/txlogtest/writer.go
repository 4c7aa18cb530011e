package txlogtest

import (
	"context"
	"fmt"
	"io"
	"math/rand/v2"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"txmesh/txlog"
	"txmesh/txn"
)

// Writer is a load whose every acknowledgement is a line on Out, so that another process, a Ledger, knows what
// must be found after this one has died. It writes until the store refuses.
//
// Each append of the load goes to two transactions, the twins, so that a torn one is seen.
type Writer struct {
	Store  txlog.Store
	Out    io.Writer // written line by line, each in one call
	Round  int       // makes ids unlike those of other rounds
	Seed   uint64
	Clock  func() time.Time // times of the entries; Trim forgets what finished before Clock less Keep
	Keep   time.Duration
	Unsync bool // every append asks for no sync although its line says so: the proof that the test would see it

	mu    sync.Mutex // guards Out, lines
	lines int
	syncs atomic.Uint64
	due   chan struct{} // a trim is due
}

const (
	writers   = 8
	opsOfOne  = 12       // appends of one pair of transactions; the last finishes it, for three in four
	largeNote = 24 << 10 // beyond any inline limit
)

// Run writes until an append fails and returns that error.
func (w *Writer) Run(ctx context.Context) error {
	errs := make(chan error, writers+1)
	w.due = make(chan struct{}, 1)
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	for n := range writers {
		go func() { errs <- w.write(ctx, n) }()
	}
	go func() { errs <- w.trim(ctx) }()
	err := <-errs
	cancel()
	for range writers {
		<-errs //nolint:errcheck // the first error ended the others
	}
	return err
}

// trimEvery is how many lines lie between two trims: far fewer than in a sidecar.
const trimEvery = 256

func (w *Writer) trim(ctx context.Context) error {
	for {
		select {
		case <-w.due:
		case <-ctx.Done():
			return ctx.Err()
		}
		if _, err := w.Store.Trim(ctx, w.Clock().Add(-w.Keep)); err != nil {
			return err
		}
	}
}

func (w *Writer) write(ctx context.Context, n int) error {
	rng := rand.New(rand.NewPCG(w.Seed, uint64(n)))
	tab := w.Store.Table("rows")
	for i := 0; ; i++ {
		id := fmt.Sprintf("%d.%d.%d", w.Round, n, i)
		if err := w.pair(ctx, rng, id, i%4 != 0); err != nil {
			return err
		}
		row := txlog.Row{Key: id, Value: []byte(rowValue(id))}
		if err := w.op(rng, "r "+id, func(sync bool) error { return tab.Put(ctx, []txlog.Row{row}, sync) }); err != nil {
			return err
		}
	}
}

// pair writes one pair of twins.
func (w *Writer) pair(ctx context.Context, rng *rand.Rand, id string, finish bool) error {
	seq := 0
	for op := range opsOfOne {
		var es []txlog.Entry
		for range opSize(op) {
			for _, twin := range twins(id) {
				es = append(es, generated(w.Clock(), twin, seq, finish))
			}
			seq++
		}
		if finish && op == opsOfOne-1 {
			if err := w.line("f " + id); err != nil {
				return err
			}
		}
		err := w.op(rng, fmt.Sprintf("+ %s %d", id, seq), func(sync bool) error { return w.Store.Append(ctx, es, sync) })
		if err != nil {
			return err
		}
	}
	return nil
}

// op makes one write, with a sync for one in eight, and notes it. What was noted before a sync was asked for must
// be durable once it is acknowledged.
func (w *Writer) op(rng *rand.Rand, note string, write func(sync bool) error) error {
	if rng.IntN(8) > 0 {
		if err := write(false); err != nil {
			return err
		}
		return w.line(w.stamped(note))
	}
	k := w.syncs.Add(1)
	if err := w.line(fmt.Sprintf("> %d.%d", w.Round, k)); err != nil {
		return err
	}
	if err := write(!w.Unsync); err != nil {
		return err
	}
	return w.line(w.stamped(fmt.Sprintf("< %d.%d %s", w.Round, k, note)))
}

// stamped adds when the acknowledgement came: the line itself may be read much later.
func (w *Writer) stamped(note string) string { return fmt.Sprintf("%s @%d", note, Monotonic()) }

func (w *Writer) line(s string) error {
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.lines++; w.lines%trimEvery == 0 {
		select {
		case w.due <- struct{}{}:
		default: // one is due already
		}
	}
	_, err := io.WriteString(w.Out, s+"\n")
	return err
}

// opSize is how many entries an append adds to each twin.
func opSize(op int) int { return 1 + op%3 }

// total is the entries of a whole transaction.
func total() int {
	n := 0
	for op := range opsOfOne {
		n += opSize(op)
	}
	return n
}

// isBoundary reports whether a transaction of n entries ends with a whole append.
func isBoundary(n int) bool {
	for op := 0; op < opsOfOne && n > 0; op++ {
		n -= opSize(op)
	}
	return n == 0
}

func twins(id string) [2]string { return [2]string{id + "a", id + "b"} }

// generated is the entry that the load writes at this place. Only its time is not known to the reader.
func generated(at time.Time, id string, seq int, finish bool) txlog.Entry {
	e := txlog.Entry{Tx: txn.ID(id), At: at}
	switch {
	case seq == 0:
		spec := txn.Spec{ID: e.Tx, Mode: txn.Saga, Key: "key " + id}
		if len(id)%2 == 0 {
			spec.Note = []byte(strings.Repeat(id+" ", largeNote/(len(id)+1)))
		}
		e.Record = txn.Began{Spec: spec}
	case finish && seq == total()-1:
		e.Record = txn.Finished{Phase: txn.Committed}
	default:
		e.Record = txn.Settled{Branch: fmt.Sprintf("%s-%d", id, seq), Result: []byte(strings.Repeat("r", seq*50))}
	}
	return e
}

// rowValue is large for some keys.
func rowValue(key string) string {
	if strings.HasSuffix(key, "3") {
		return strings.Repeat(key, 9<<10/len(key))
	}
	return "value of " + key
}
