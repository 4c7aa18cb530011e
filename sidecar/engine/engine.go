// Package engine runs transactions: it feeds events to their machines, appends what they record, makes their
// calls afterwards and wakes them on time. It decides nothing itself, never looks into a target and knows no
// protocol. Shard is the deterministic half, which the simulator drives as well; the Engine puts goroutines
// around it: one loop owns the shard, one committer appends, at most one batch at a time, everything that became
// ready meanwhile, and each call has a goroutine of its own. Start at Engine.Do, then loop.go and commit.go.
package engine

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"sync"
	"sync/atomic"
	"time"

	"txmesh/txlog"
	"txmesh/txn"
)

// Errors that callers branch on.
var (
	ErrUnavailable = errors.New("engine: the journal failed; what was asked for may or may not have happened")
	ErrClosed      = errors.New("engine: not running")
	ErrEnded       = errors.New("engine: the transaction ended otherwise")
	ErrElsewhere   = errors.New("engine: the transaction is in the journal, but not run by this engine")
)

// Caller makes one call and says what came of it. The context ends at the call's time-out; a caller returns soon
// after. It gives result away: the bytes are kept. Cause is for people. It is used by many goroutines.
type Caller interface {
	Call(ctx context.Context, c txn.Call) (out txn.Outcome, result []byte, cause string)
}

// Observer is told what has become durable, and what the calls did. Each function may be nil; they run in the
// engine's loop, so they must not block.
type Observer struct {
	Began    func(mode txn.Mode)
	Decided  func(mode txn.Mode, commit bool)
	Halted   func(mode txn.Mode, op txn.Op)
	Finished func(mode txn.Mode, phase txn.Phase, age time.Duration)
	Called   func(op txn.Op, out txn.Outcome, took time.Duration)
	Appended func(entries int, sync bool, took time.Duration, err error)
}

// Config is what an Engine is made of. Store and Caller are required.
type Config struct {
	Store    txlog.Journal
	Owner    txlog.Owner // whose transactions are loaded
	Caller   Caller
	Now      func() time.Time // default: time.Now
	Log      *slog.Logger     // default: none
	Observer Observer
	Limits   Limits // default of Bytes: 2 MiB

	CallTimeout time.Duration // of a call that names none itself; default: 10 s
	CallsMax    int           // calls at the same time; default: 4096
	LaneMax     int           // ... of one Lane; default: 512

	// Lane names the destination of a call: one that hangs delays no call of another. Default: all have one lane.
	Lane func(txn.Call) string

	BatchMax int           // entries in one append beyond which events wait; default: 512
	RetryMin time.Duration // between a failed append and the reload; doubles; default: 100 ms
	RetryMax time.Duration // default: 5 s
}

func (c Config) withDefaults() (Config, error) {
	if c.Store == nil || c.Caller == nil {
		return c, errors.New("engine: Config needs a Store and a Caller")
	}
	if c.Now == nil {
		c.Now = time.Now
	}
	if c.Log == nil {
		c.Log = slog.New(slog.DiscardHandler)
	}
	c.CallTimeout = orDefault(c.CallTimeout, 10*time.Second)
	c.CallsMax = orDefault(c.CallsMax, 4096)
	c.LaneMax = orDefault(c.LaneMax, 512)
	if c.Lane == nil {
		c.Lane = func(txn.Call) string { return "" }
	}
	c.BatchMax = orDefault(c.BatchMax, 512)
	c.Limits.Bytes = orDefault(c.Limits.Bytes, 2<<20)
	c.RetryMin = orDefault(c.RetryMin, 100*time.Millisecond)
	c.RetryMax = max(orDefault(c.RetryMax, 5*time.Second), c.RetryMin)
	return c, nil
}

func orDefault[T ~int | ~int64](v, otherwise T) T {
	if v <= 0 {
		return otherwise
	}
	return v
}

// Engine runs the transactions of one owner. All methods are safe for many goroutines; Start and Close are
// called once.
type Engine struct {
	cfg    Config
	inbox  inbox
	ctx    context.Context // of calls and of loading; ends with Close
	cancel context.CancelFunc
	wg     sync.WaitGroup // every goroutine of the engine
	jobs   chan job       // for workers that are idle
	idle   atomic.Int32   // workers that are, or are about to be
	stop   chan struct{}  // closed by Close
	close  sync.Once
}

// New returns an engine that is not running yet.
func New(cfg Config) (*Engine, error) {
	cfg, err := cfg.withDefaults()
	if err != nil {
		return nil, err
	}
	e := &Engine{cfg: cfg, jobs: make(chan job), stop: make(chan struct{}), inbox: inbox{closed: true, ready: make(chan struct{}, 1)}}
	e.ctx, e.cancel = context.WithCancel(context.Background())
	return e, nil
}

// Start loads the unfinished transactions and goes on with them. It returns when everything that was found is
// durable, so that nothing will be answered or called that a power cut could take back.
func (e *Engine) Start(ctx context.Context) error {
	e.inbox.open()
	l, started := newLoop(e)
	e.wg.Go(l.commitAll)
	e.wg.Go(l.run)
	select {
	case err := <-started:
		if err != nil {
			e.shut()
			return fmt.Errorf("start engine: %w", err)
		}
		return nil
	case <-ctx.Done():
		e.shut()
		return fmt.Errorf("start engine: %w", ctx.Err())
	}
}

// Close stops the engine and waits for its goroutines. What was decided stays in the journal; calls in flight are
// cancelled and made again after the next Start. It does not close the store.
func (e *Engine) Close() error {
	e.shut()
	return nil
}

func (e *Engine) shut() {
	e.close.Do(func() {
		e.inbox.close()
		e.cancel()
		close(e.stop)
	})
	e.wg.Wait()
}
