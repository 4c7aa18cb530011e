package etcd

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"time"

	"go.etcd.io/etcd/api/v3/etcdserverpb"
	"go.etcd.io/etcd/api/v3/v3rpc/rpctypes"
	clientv3 "go.etcd.io/etcd/client/v3"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"txmesh/txlog"
)

// health is what the engine knows of etcd.
type health struct {
	answered time.Time // when a member last answered for the cluster
	down     error     // why the last probe failed; nil once anything was answered
	full     error
}

// probeEvery is how often etcd is asked for a sign of life when nothing else has had one, and statusEvery how often for
// its size.
const (
	probeEvery  = time.Second
	statusEvery = 10 * time.Second
)

// watch keeps health up to date while nobody else asks etcd anything, so that Accepts recovers by itself.
func (e *Engine) watch() {
	tick := time.NewTicker(probeEvery)
	defer tick.Stop()
	var sized time.Time
	for {
		select {
		case <-e.ctx.Done():
			return
		case <-tick.C:
		}
		e.mu.Lock()
		quiet, full := time.Since(e.health.answered) >= probeEvery, e.health.full != nil
		e.mu.Unlock()
		if quiet {
			e.note(e.probe(e.ctx))
		}
		if full || time.Since(sized) >= statusEvery {
			e.size(e.ctx)
			sized = time.Now()
		}
	}
}

// note keeps why a probe failed.
func (e *Engine) note(err error) {
	if err == nil || e.ctx.Err() != nil {
		return
	}
	e.mu.Lock()
	defer e.mu.Unlock()
	if e.health.down == nil {
		e.opts.Log.Warn("etcd does not answer", "err", err)
	}
	e.health.down = err
}

// probe asks the cluster, not just a member.
func (e *Engine) probe(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, e.opts.Stall)
	defer cancel()
	return e.retry(ctx, func(ctx context.Context, c *clientv3.Client) error {
		_, err := c.Get(ctx, e.keys.leases(), clientv3.WithPrefix(), clientv3.WithLimit(1), clientv3.WithKeysOnly())
		return err
	})
}

// size asks a member how full it is. Members are alike.
func (e *Engine) size(ctx context.Context) {
	ctx, cancel := context.WithTimeout(ctx, e.opts.Try)
	defer cancel()
	c, err := e.member().connect(e)
	if err != nil {
		return
	}
	s, err := etcdserverpb.NewMaintenanceClient(c.ActiveConnection()).Status(ctx, &etcdserverpb.StatusRequest{})
	if err != nil {
		return // who is gone is the probe's business
	}
	quota := e.opts.QuotaBytes
	if quota == 0 {
		quota = s.DbSizeQuota
	}
	e.mu.Lock()
	defer e.mu.Unlock()
	switch noSpace := slices.ContainsFunc(s.Errors, isNoSpace); {
	case noSpace:
		e.health.full = fmt.Errorf("etcd has raised the alarm NOSPACE; compact, defragment, and disarm it: %w", txlog.ErrFull)
	case quota > 0 && s.DbSizeInUse > quota/100*fillPercentMax:
		e.health.full = fmt.Errorf("etcd uses %d of %d bytes; raise --quota-backend-bytes, or keep less: %w", s.DbSizeInUse, quota, txlog.ErrFull)
	default:
		e.health.full = nil
	}
}

// fillPercentMax leaves room for transactions that have begun to end.
const fillPercentMax = 85

func isNoSpace(s string) bool {
	return strings.Contains(s, "NOSPACE") || strings.Contains(s, rpctypes.ErrNoSpace.Error())
}

// alive notes that etcd has answered.
func (e *Engine) alive() {
	e.mu.Lock()
	defer e.mu.Unlock()
	if e.health.down != nil {
		e.opts.Log.Info("etcd answers again")
	}
	e.health.answered, e.health.down = time.Now(), nil
}

// spaceless notes that etcd has refused a write for want of space.
func (e *Engine) spaceless(err error) {
	e.mu.Lock()
	defer e.mu.Unlock()
	e.health.full = err
}

// usable is nil until Close.
func (e *Engine) usable() error {
	e.mu.Lock()
	defer e.mu.Unlock()
	if e.closed {
		return txlog.ErrClosed
	}
	return nil
}

// accepts is Journal.Accepts as far as all owners share it.
func (e *Engine) accepts() error {
	e.mu.Lock()
	defer e.mu.Unlock()
	switch {
	case e.closed:
		return txlog.ErrClosed
	case e.health.down != nil:
		return e.health.down
	}
	return e.health.full
}

// retry makes a request that may be repeated until it is answered, ctx ends or patience does.
func (e *Engine) retry(ctx context.Context, request func(context.Context, *clientv3.Client) error) error {
	until, cancel := context.WithTimeout(ctx, e.opts.Patience)
	defer cancel()
	for pause := pauseMin; ; pause = min(2*pause, pauseMax) {
		err := e.try(until, e.opts.Try, request)
		if err == nil || !errors.Is(err, txlog.ErrUnavailable) {
			return err
		}
		select {
		case <-until.Done():
			return errors.Join(ctx.Err(), err)
		case <-time.After(pause):
		}
	}
}

const (
	pauseMin = 10 * time.Millisecond
	pauseMax = 500 * time.Millisecond
)

// once makes a request that may not be repeated. ErrUnavailable means that nobody knows whether it was done. It gets more
// time than one that goes to another member next.
func (e *Engine) once(ctx context.Context, request func(context.Context, *clientv3.Client) error) error {
	return e.try(ctx, 3*e.opts.Try, request)
}

// try asks one member. When it does not answer, the next request goes to another.
func (e *Engine) try(ctx context.Context, limit time.Duration, request func(context.Context, *clientv3.Client) error) error {
	if err := ctx.Err(); err != nil {
		return err
	}
	m := e.member()
	limited, cancel := context.WithTimeout(ctx, limit)
	defer cancel()
	c, err := m.connect(e)
	if err == nil {
		err = request(limited, c)
	}
	err = e.classify(err)
	if errors.Is(err, txlog.ErrUnavailable) {
		if ctx.Err() != nil {
			return errors.Join(ctx.Err(), err)
		}
		e.leave(m)
	}
	return err
}

// classify gives the errors of the client the names of the seam.
func (e *Engine) classify(err error) error {
	if err == nil {
		e.alive()
		return nil
	}
	code := status.Code(err)
	if named, ok := errors.AsType[rpctypes.EtcdError](err); ok {
		code = named.Code()
	}
	switch {
	case errors.Is(err, rpctypes.ErrNoSpace):
		err = fmt.Errorf("%w: %w", txlog.ErrFull, err)
		e.spaceless(err)
		return err
	case errors.Is(err, rpctypes.ErrTooManyOps), errors.Is(err, rpctypes.ErrRequestTooLarge):
		return fmt.Errorf("%w: %w", txlog.ErrTooLarge, err)
	case errors.Is(err, rpctypes.ErrCompacted), errors.Is(err, rpctypes.ErrPermissionDenied):
		return err
	case code == codes.Unavailable, code == codes.DeadlineExceeded, code == codes.Canceled,
		errors.Is(err, rpctypes.ErrTooManyRequests), errors.Is(err, context.DeadlineExceeded), errors.Is(err, context.Canceled):
		return fmt.Errorf("%w: %w", txlog.ErrUnavailable, err)
	}
	return err
}
