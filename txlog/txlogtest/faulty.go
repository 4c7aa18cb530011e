package txlogtest

import (
	"context"
	"fmt"
	"sync"
	"time"

	"txmesh/txlog"
)

// Method is what a rule can disturb.
type Method uint8

// The methods that write, and the question whether new work is accepted.
const (
	OnAppend Method = iota
	OnPut
	OnAccepts
)

func (m Method) String() string {
	switch m {
	case OnAppend:
		return "append"
	case OnPut:
		return "put"
	case OnAccepts:
		return "accepts"
	default:
		panic(fmt.Sprintf("txlogtest: method %d", uint8(m)))
	}
}

// Rule disturbs calls of one method. Calls are counted from 1, each method by itself. The first rule that fits
// applies.
type Rule struct {
	On      Method
	From    int                      // the first call that it disturbs; 0: 1
	To      int                      // the last; 0: From, negative: all that follow
	If      func([]txlog.Entry) bool // appends only; nil: any
	Delay   time.Duration            // the call waits so long first, or until its context ends
	Before  func(context.Context)    // called after the delay; nil: nothing
	Err     error                    // what the call answers; nil: what the store answers
	Written bool                     // the store writes all the same: an error that means unknown
}

// Fault is a store that is disturbed by rules. Safe for many goroutines as far as the store is.
type Fault struct {
	txlog.Store

	mu    sync.Mutex // guards the fields below
	rules []Rule
	calls [OnAccepts + 1]int
}

// Faulty returns the store disturbed by rules; what no rule fits passes. Owner and the like are found by the field
// Store.
func Faulty(store txlog.Store, rules ...Rule) *Fault {
	return &Fault{Store: store, rules: rules}
}

// Calls returns how often the method has been called.
func (f *Fault) Calls(m Method) int {
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.calls[m]
}

// Owner returns the store's owner, or the zero one if it has none.
func (f *Fault) Owner() txlog.Owner {
	if o, ok := f.Store.(owned); ok {
		return o.Owner()
	}
	return txlog.Owner{}
}

// rule counts a call and returns the rule that applies to it.
func (f *Fault) rule(m Method, es []txlog.Entry) Rule {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.calls[m]++
	n := f.calls[m]
	for _, r := range f.rules {
		from := max(r.From, 1)
		to := r.To
		if to == 0 {
			to = from
		}
		if r.On == m && n >= from && (to < 0 || n <= to) && (r.If == nil || r.If(es)) {
			return r
		}
	}
	return Rule{}
}

// disturb waits as the rule says.
func (r Rule) disturb(ctx context.Context) error {
	if r.Delay > 0 {
		t := time.NewTimer(r.Delay)
		defer t.Stop()
		select {
		case <-t.C:
		case <-ctx.Done():
			return ctx.Err()
		}
	}
	if r.Before != nil {
		r.Before(ctx)
	}
	return nil
}

// apply calls the store, unless the rule says otherwise.
func (r Rule) apply(ctx context.Context, call func() error) error {
	if err := r.disturb(ctx); err != nil {
		return err
	}
	if r.Err == nil {
		return call()
	}
	if r.Written {
		if err := call(); err != nil {
			return err
		}
	}
	return r.Err
}

// Append implements txlog.Journal.
func (f *Fault) Append(ctx context.Context, es []txlog.Entry, sync bool) error {
	return f.rule(OnAppend, es).apply(ctx, func() error { return f.Store.Append(ctx, es, sync) })
}

// Accepts implements txlog.Journal.
func (f *Fault) Accepts() error {
	return f.rule(OnAccepts, nil).apply(context.Background(), f.Store.Accepts)
}

// Table implements txlog.Store.
func (f *Fault) Table(name string) txlog.Table {
	return faultyTable{Table: f.Store.Table(name), fault: f}
}

type faultyTable struct {
	txlog.Table
	fault *Fault
}

// Put implements txlog.Table.
func (t faultyTable) Put(ctx context.Context, rows []txlog.Row, sync bool) error {
	return t.fault.rule(OnPut, nil).apply(ctx, func() error { return t.Table.Put(ctx, rows, sync) })
}
