package engine

import (
	"context"
	"fmt"
	"runtime/debug"
	"sync"

	"txmesh/txn"
)

// startCalls starts as many of the waiting calls as may run at the same time.
func (l *loop) startCalls() {
	for {
		c, lane, ok := l.calls.next()
		if !ok {
			return
		}
		if !l.shard.Has(c.Tx) { // stopped by an operator while this call waited
			l.calls.done(lane)
			continue
		}
		j := job{c, lane, l.life}
		select {
		case l.e.jobs <- j:
		default: // no worker is idle
			l.e.wg.Go(func() { l.e.work(j) })
		}
	}
}

// job is one call to make.
type job struct {
	call txn.Call
	lane *lane
	life uint64
}

// idleMax is how many workers wait for more calls.
const idleMax = 64

// work makes one call and then waits for others: a goroutine that has made one has the stack that the next will need.
func (e *Engine) work(j job) {
	for {
		e.call(j.call, j.lane, j.life)
		if e.idle.Add(1) > idleMax {
			e.idle.Add(-1)
			return
		}
		select {
		case j = <-e.jobs:
			e.idle.Add(-1)
		case <-e.ctx.Done():
			return
		}
	}
}

// call makes one call and answers it exactly once (L6): with what the caller says, or with unknown when the
// time is up, whether or not the caller has come back by then.
func (e *Engine) call(c txn.Call, lane *lane, life uint64) {
	timeout := e.cfg.CallTimeout
	if c.Timeout > 0 {
		timeout = c.Timeout
	}
	ctx, cancel := context.WithTimeout(e.ctx, timeout)
	defer cancel()
	start := e.cfg.Now()
	var once sync.Once
	answer := func(out txn.Outcome, result []byte, cause string) {
		once.Do(func() {
			a := answered{call: c, lane: lane, life: life, outcome: out, result: result, cause: cause, took: e.cfg.Now().Sub(start)}
			e.inbox.put(&request{work: func(l *loop) { l.returned(a) }})
		})
	}
	stop := context.AfterFunc(ctx, func() {
		answer(txn.Unknown, nil, fmt.Sprintf("no answer within %v", timeout))
	})
	defer stop()
	answer(e.guarded(ctx, c))
}

// guarded takes a panic of the caller for what it is: a call with an unknown outcome.
func (e *Engine) guarded(ctx context.Context, c txn.Call) (out txn.Outcome, result []byte, cause string) {
	defer func() {
		if p := recover(); p != nil {
			e.cfg.Log.Error("call panicked", "tx", c.Tx, "branch", c.Branch, "op", c.Op, "panic", p, "stack", string(debug.Stack()))
			out, result, cause = txn.Unknown, nil, fmt.Sprintf("the call panicked: %v", p)
		}
	}()
	out, result, cause = e.cfg.Caller.Call(ctx, c)
	if out > txn.Unknown || out == txn.None && c.Op != txn.Ask {
		return txn.Unknown, nil, fmt.Sprintf("the call answered %s: %s", out, cause)
	}
	return out, result, cause
}
