package main

import (
	"context"
	"fmt"
	"slices"
	"strings"
	"time"
)

// plan is how long turns last.
type plan struct {
	overhead     time.Duration // of a turn: starting and ending processes
	warm, window time.Duration
}

const (
	windowMin = 500 * time.Millisecond
	windowMax = 8 * time.Second
	warmMin   = 300 * time.Millisecond
)

// share gives each of the turns that are left its part of the time that is left: a fifth to warm up.
func (p *plan) share(left time.Duration, turns int) {
	each := left/time.Duration(max(turns, 1)) - p.overhead
	p.warm = max(each/5, warmMin)
	p.window = min(max(each-p.warm, windowMin), windowMax)
}

// cells are the conditions of a run: those of closed loops, then those of open loops.
func (b *bench) cells() (closed, open []cell) {
	bodies, conns := []int{1 << 10, 64 << 10}, []int{1, 32, 256}
	if b.Quick {
		bodies, conns = bodies[:1], conns[1:2]
	}
	for _, p := range []protocol{http1, grpc} {
		for _, body := range bodies {
			for _, n := range conns {
				closed = append(closed, cell{p, body, n, false})
			}
			open = append(open, cell{p, body, 32, true})
		}
	}
	unwanted := func(c cell) bool { return !b.measured(c) }
	return slices.DeleteFunc(closed, unwanted), slices.DeleteFunc(open, unwanted)
}

// turns is how many turns cells take in one round.
func (b *bench) turns(cells []cell) (n int) {
	for _, c := range cells {
		n += len(b.served[c.Protocol])
	}
	return n
}

// measureAll makes all rounds of closed loops, which tell the rates of the open loops, and then those. Within a round all
// proxies have one cell after the other in turns, each round in another order.
func (b *bench) measureAll(ctx context.Context) error {
	closed, open := b.cells()
	left := b.Rounds * (b.turns(closed) + b.turns(open))
	for _, cells := range [][]cell{closed, open} {
		for round := range b.Rounds {
			b.plan.share(b.Budget-time.Since(b.begun), left)
			say("round %d of %d: %d turns left, each %v to warm up and %v counted", round+1, b.Rounds, left, b.plan.warm.Round(10*time.Millisecond), b.plan.window.Round(10*time.Millisecond))
			begun := time.Now()
			for _, c := range cells {
				for _, r := range rotated(b.served[c.Protocol], round) {
					left--
					if err := b.take(ctx, c, r, round, left); err != nil {
						return err
					}
				}
			}
			if n := b.turns(cells); n > 0 {
				b.plan.overhead = time.Since(begun)/time.Duration(n) - b.plan.warm - b.plan.window
			}
		}
	}
	return nil
}

func rotated(rs []rival, by int) []rival {
	if len(rs) == 0 {
		return nil
	}
	by %= len(rs)
	return slices.Concat(rs[by:], rs[:by])
}

// take makes one turn and keeps what it gave. A proxy that fails is told of, and does not end the run.
func (b *bench) take(ctx context.Context, c cell, r rival, round, left int) error {
	rate := 0.0
	if c.Open {
		if rate = b.openRate(c, r.name); rate == 0 {
			return nil // it was told already that there was nothing right in the closed loops
		}
	}
	s, err := b.turn(ctx, c, r, round, rate)
	if ctx.Err() != nil {
		return ctx.Err()
	}
	eta := (time.Duration(left) * (b.plan.overhead + b.plan.warm + b.plan.window)).Round(time.Second)
	if err != nil {
		b.leaveOut("round %d, %s, %s: %v", round+1, c, r.name, err)
		return nil
	}
	b.samples = append(b.samples, s)
	say("round %d, %s, %-16s %8.0f/s, p50 %s, p99 %s, %s; load average %s, %v left", round+1, c, r.name+":", s.Throughput, micros(s.P50), micros(s.P99), faults(s), s.Load, eta)
	return nil
}

func faults(s sample) string {
	if len(s.Errors) == 0 {
		return "no errors"
	}
	var all []string
	for name, n := range s.Errors {
		all = append(all, fmt.Sprintf("%d x %s", n, name))
	}
	slices.Sort(all)
	return strings.Join(all, ", ")
}

// openRate is half of what the slowest proxy reached without transactions; the tagged calls have half of their own where
// that is less.
func (b *bench) openRate(c cell, name string) float64 {
	c.Open = false
	slowest := 0.0
	for _, r := range b.served[c.Protocol] {
		t := median(b.each(c, r.name, throughput))
		if r.name != direct && r.name != tagged && t > 0 && (slowest == 0 || t < slowest) {
			slowest = t
		}
	}
	if own := median(b.each(c, name, throughput)); slowest == 0 || name == tagged && own < slowest {
		slowest = own
	}
	return slowest / 2
}
