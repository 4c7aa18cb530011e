// Package load drives a server over a fixed number of connections and says how fast its answers came. A closed loop has
// each connection call as fast as it is answered; an open loop starts calls at a constant rate and measures each from the
// moment at which it should have started, so that a server that stalls is charged for all who waited. Every answer is
// compared with what was sent. It starts no server and judges nothing. Start at Run; HTTP1 and GRPC are the protocols.
package load

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"time"
)

// Caller is one connection. It is used by one goroutine at a time.
type Caller interface {
	// Prepare makes ready for the next call. Its time belongs to no call, but the connection is busy.
	Prepare() error
	// Call makes one call and verifies the answer. After an error the connection is closed and made anew.
	Call() error
	// Close may be called while a call is under way, which then fails.
	Close() error
}

// Options says how to drive.
type Options struct {
	// Dial opens connection number conn. ctx ends when no answer is waited for any more.
	Dial  func(ctx context.Context, conn int) (Caller, error)
	Conns int
	// Rate is the calls a second of an open loop; 0: a closed loop.
	Rate float64
	// Calls that are due in the first Warm are made, but not counted; those of For after that are.
	Warm, For time.Duration
	// Grace is how long answers are waited for after that.
	Grace time.Duration
	// Window is called when the counted time begins and ends; nil: it is not.
	Window func(begins bool)
	// Sleep sleeps until a time; nil: as exactly as this machine can.
	Sleep func(until time.Time)
}

// Result is what was counted. Sent = OK + all Errors.
type Result struct {
	Warm    int64            // calls of the warm-up, whatever became of them
	Sent    int64            // calls that were due in the counted time
	OK      int64            // of these, those that were answered rightly
	Errors  map[string]int64 // and those that were not, by name
	Elapsed time.Duration    // the counted time
	// Latency has all of Sent, also the failed: an error that comes fast does not make the server look fast, see Errors.
	Latency *Histogram
	// Late is by how much the driver itself was late to start the calls of an open loop.
	Late *Histogram
}

// Throughput is the right answers per second.
func (r *Result) Throughput() float64 { return float64(r.OK) / r.Elapsed.Seconds() }

// Run drives until the time is over or ctx ends, in which case it returns the error of ctx.
func Run(ctx context.Context, o Options) (*Result, error) {
	if o.Conns < 1 || o.For <= 0 || o.Dial == nil {
		return nil, fmt.Errorf("drive %d connections for %v: want at least one of each, and Dial", o.Conns, o.For)
	}
	if o.Sleep == nil {
		o.Sleep = sleep
	}
	begin := time.Now().Add(o.Warm)
	d := &drive{Options: o, begin: begin, end: begin.Add(o.For), shards: newShards(), late: NewHistogram()}
	waited, cancel := context.WithDeadline(ctx, d.end.Add(o.Grace))
	defer cancel()

	var all sync.WaitGroup
	work := d.closed
	if o.Rate > 0 {
		d.due = make(chan time.Time)
		work = d.open
		all.Go(func() { d.dispatch(waited) })
	}
	for i := range o.Conns {
		all.Go(func() { work(&worker{drive: d, ctx: waited, conn: i, shard: d.shards[i%len(d.shards)]}) })
	}
	all.Go(func() { d.window(ctx) })
	all.Wait()
	if err := ctx.Err(); err != nil {
		return nil, err
	}
	return d.result()
}

// drive is one run.
type drive struct {
	Options
	begin, end time.Time      // of the counted time
	due        chan time.Time // of an open loop: when calls should start
	late       *Histogram     // belongs to dispatch
	shards     []*shard
}

// window tells the owner when the counted time begins and ends.
func (d *drive) window(ctx context.Context) {
	if d.Window == nil {
		return
	}
	for _, begins := range []bool{true, false} {
		at := d.end
		if begins {
			at = d.begin
		}
		select {
		case <-time.After(time.Until(at)):
			d.Window(begins)
		case <-ctx.Done():
			return
		}
	}
}

// dispatch hands out the calls of an open loop in time. If all connections are busy it waits, and what is due meanwhile
// is handed out late, with the time at which it was due.
func (d *drive) dispatch(ctx context.Context) {
	defer close(d.due)
	exact(func() {
		start := time.Now()
		for n := 0; ; n++ {
			at := start.Add(time.Duration(float64(n) / d.Rate * float64(time.Second)))
			if !at.Before(d.end) {
				return
			}
			if time.Until(at) > 0 {
				d.Sleep(at)
				d.late.Record(time.Since(at))
			}
			select {
			case d.due <- at:
			case <-ctx.Done():
				d.shards[0].never(at, d.begin)
			}
		}
	})
}

// worker is one connection and who drives it.
type worker struct {
	*drive
	ctx   context.Context
	conn  int
	shard *shard
	c     Caller
}

func (d *drive) closed(w *worker) {
	defer w.hangUp()
	for w.ctx.Err() == nil {
		err := w.ready()
		start := time.Now()
		if !start.Before(w.end) {
			return
		}
		w.call(start, err)
	}
}

func (d *drive) open(w *worker) {
	defer w.hangUp()
	err := w.ready()
	for at := range d.due {
		w.call(at, err)
		err = w.ready()
	}
}

// pause keeps a server that refuses connections from being asked in a busy loop.
const pause = 5 * time.Millisecond

// ready connects, if need be, and prepares.
func (w *worker) ready() error {
	if w.c == nil {
		c, err := w.Dial(w.ctx, w.conn)
		if err != nil {
			w.Sleep(time.Now().Add(pause))
			return fmt.Errorf("connect: %w", err)
		}
		w.c = c
	}
	if err := w.c.Prepare(); err != nil {
		w.hangUp()
		return fmt.Errorf("prepare: %w", err)
	}
	return nil
}

// call makes the call that was due at a time, unless the connection is not ready, and counts it.
func (w *worker) call(due time.Time, err error) {
	if err == nil {
		if err = w.c.Call(); err != nil {
			w.hangUp()
		}
	}
	w.shard.count(due, w.begin, time.Since(due), err)
}

func (w *worker) hangUp() {
	if w.c != nil {
		_ = w.c.Close() // what there was to say about it was said by Call
		w.c = nil
	}
}

func (d *drive) result() (*Result, error) {
	r := &Result{Errors: map[string]int64{}, Elapsed: d.For, Latency: NewHistogram(), Late: d.late}
	for _, s := range d.shards {
		r.Warm += s.warm
		r.OK += s.ok
		r.Sent += s.ok
		for name, n := range s.errors {
			r.Errors[name] += n
			r.Sent += n
		}
		r.Latency.Merge(s.latency)
	}
	if r.Latency.Count() != r.Sent {
		return nil, errors.New("the driver has lost count of its calls")
	}
	return r, nil
}
