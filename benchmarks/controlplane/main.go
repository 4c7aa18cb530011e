// Package main measures a control plane, in a process of its own, under a fleet of simulated sidecars in this one: how
// long a change of the policies takes until the last sidecar has acknowledged it, and how much memory the control plane
// holds. The sidecars speak the real protocol over mTLS and answer everything at once. Start at run.
package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"os"
	"os/signal"
	"path/filepath"
	"slices"
	"time"
)

type options struct {
	sidecars, services, policies, changes int
	binary, profile                       string
	idle                                  time.Duration
}

func main() {
	var o options
	flag.IntVar(&o.sidecars, "sidecars", 500, "simulated sidecars, each with a connection of its own")
	flag.IntVar(&o.services, "services", 40, "services that they are spread over")
	flag.IntVar(&o.policies, "policies", 40, "policy documents")
	flag.IntVar(&o.changes, "changes", 7, "changes of one document that are timed")
	flag.DurationVar(&o.idle, "idle", 10*time.Second, "pause before the memory is looked at once more, and whose processor time is told")
	flag.StringVar(&o.binary, "binary", "bin/txmesh-controlplane", "the control plane; make build makes it")
	flag.StringVar(&o.profile, "profile", "", "file for a profile of the control plane's heap when it has idled, .goroutine beside it, and .cpu of the pause; empty: none")
	flag.Parse()
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt)
	defer stop()
	if err := run(ctx, o); err != nil {
		fmt.Fprintln(os.Stderr, "benchmarks/controlplane:", err)
		os.Exit(1)
	}
}

// joinMax bounds how long a whole fleet may take to get its configuration.
const joinMax = time.Minute

func run(ctx context.Context, o options) (err error) {
	dir, err := os.MkdirTemp("", "txmesh-controlplane-*")
	if err != nil {
		return err
	}
	defer func() { _ = os.RemoveAll(dir) }() // left behind at worst
	p, err := startPlane(ctx, o, dir)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, p.end()) }()
	fmt.Printf("%d sidecars of %d services, %d policies\n", o.sidecars, o.services, o.policies)
	empty, err := p.memory()
	if err != nil {
		return err
	}

	began := time.Now()
	f, err := p.fleet(ctx, o)
	if err != nil {
		return err
	}
	defer f.close()
	if err := f.wait(ctx, joinMax, "the configuration", func(s *sidecar) bool { return s.policies >= o.policies && s.known() == o.sidecars }); err != nil {
		return err
	}
	fmt.Printf("all connected, with all policies and all peers, after %v\n", time.Since(began).Round(time.Millisecond))

	var took []time.Duration
	for n := range o.changes {
		d, err := p.change(ctx, f, n+1)
		if err != nil {
			return err
		}
		took = append(took, d)
	}
	slices.Sort(took)
	fmt.Printf("from the file to the last ACK: median %v, longest %v of %d changes (100 ms of it wait for the file to settle)\n",
		took[len(took)/2].Round(time.Millisecond), took[len(took)-1].Round(time.Millisecond), len(took))
	full, err := p.memory()
	if err != nil {
		return err
	}
	busy, err := p.idle(ctx, o.idle, o.profile)
	if err != nil {
		return err
	}
	fmt.Printf("processor of the control plane while nothing happens: %.1f %% of one, over %v\n", 100*busy.Seconds()/o.idle.Seconds(), o.idle)
	idle, err := p.memory()
	if err != nil {
		return err
	}
	if err := p.profile(ctx, o.profile); err != nil {
		return err
	}
	fmt.Printf("memory of the control plane: %s resident after the changes, %s after %v of idling, %s at its peak, %s before the first sidecar\n",
		full.now, idle.now, o.idle, full.peak, empty.now)
	return nil
}

// change rewrites one policy and waits until every sidecar has acknowledged it.
func (p *plane) change(ctx context.Context, f *fleet, version int) (time.Duration, error) {
	began := time.Now()
	if err := writePolicy(filepath.Join(p.dir, "policies"), 0, version); err != nil {
		return 0, err
	}
	mark := []byte(mark(version))
	err := f.wait(ctx, time.Minute, "a change", func(s *sidecar) bool { return slices.Equal(s.mark, mark) })
	return f.last().Sub(began), err
}
