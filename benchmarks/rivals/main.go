// Command rivals compares what a call costs on its way through txmesh and through other proxies: each in a process of its
// own, in turns, on one machine, with the driver of benchmarks/load before them and one echoing server behind. It writes
// tables, plots and the raw samples, and reports; it asserts nothing. config has the configuration of each proxy, rival.go
// how it is started, measure.go one turn, plan.go how long that may take. Start at run.
package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"os"
	"os/exec"
	"os/signal"
	"path/filepath"
	"runtime"
	"strings"
	"syscall"
	"time"
)

// options are the flags.
type options struct {
	Budget   time.Duration
	Rounds   int
	Quick    bool
	Branches int
	Envoy    string
	Out      string // directory of the raw samples, and where journals are: the disk to measure
	Results  string
	Plots    string
	Only     string
	Cells    string
	Profile  string
}

func main() {
	// Children end with the thread that started them.
	runtime.LockOSThread()
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	context.AfterFunc(ctx, stop) // the second signal ends the process at once
	if err := run(ctx); err != nil {
		fmt.Fprintln(os.Stderr, "rivals:", err)
		os.Exit(1)
	}
}

func run(ctx context.Context) (err error) {
	var o options
	flag.DurationVar(&o.Budget, "budget", 24*time.Minute, "how long all may take, the build excluded")
	flag.IntVar(&o.Rounds, "rounds", 3, "rounds over all cells; the tables have medians")
	flag.BoolVar(&o.Quick, "quick", false, "bodies of 1 KiB and 32 connections alone")
	flag.IntVar(&o.Branches, "branches", 10, "tagged calls that share a transaction")
	flag.StringVar(&o.Envoy, "envoy", "benchmarks/out/envoy/envoy/_bin/envoy", "Envoy's program")
	flag.StringVar(&o.Out, "out", "benchmarks/out", "directory of the raw samples and, while it runs, of the journals: the disk to measure")
	flag.StringVar(&o.Results, "results", "benchmarks/RESULTS.md", "the tables")
	flag.StringVar(&o.Plots, "plots", "docs/benchmarks", "directory of the plots")
	flag.StringVar(&o.Only, "only", "", "measure only the proxies whose names have one of these in them, separated by commas")
	flag.StringVar(&o.Cells, "cells", "", "measure only the conditions that have one of these in their names, such as 'HTTP/1.1, 1 KiB, 256', separated by semicolons")
	flag.StringVar(&o.Profile, "profile", "", "directory of profiles of txmesh, of its processor time and of what it allocated, for each turn; empty: none")
	flag.Parse()
	if flag.NArg() > 0 || o.Rounds < 1 || o.Branches < 1 {
		return fmt.Errorf("want flags only, and -rounds and -branches of 1 or more; see -help")
	}
	b, err := newBench(ctx, o)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, os.RemoveAll(b.dir)) }()
	if err := b.find(ctx); err != nil {
		return err
	}
	if err := b.measureAll(ctx); err != nil {
		return err
	}
	return b.report(ctx)
}

// bench is one run.
type bench struct {
	options
	dir     string // for the time of the run
	begun   time.Time
	workers int
	load    string // load average at the start
	present []rival
	served  map[protocol][]rival
	missing []string          // what is left out, and why
	known   map[string]string // versions
	samples []sample
	plan    plan
}

// newBench builds our own programs.
func newBench(ctx context.Context, o options) (*bench, error) {
	if err := os.MkdirAll(o.Out, 0o755); err != nil {
		return nil, err
	}
	dir, err := os.MkdirTemp(o.Out, "run-")
	if err == nil {
		dir, err = filepath.Abs(dir)
	}
	if err != nil {
		return nil, err
	}
	b := &bench{options: o, dir: dir, workers: runtime.NumCPU(), load: loadAverage(), served: map[protocol][]rival{}, known: map[string]string{}}
	say("building")
	for _, p := range []string{"./benchmarks/rivals/origin", "./benchmarks/rivals/minimal", "./cmd/txmesh-sidecar"} {
		c := exec.CommandContext(ctx, "go", "build", "-trimpath", "-tags", "grpcnotrace", "-ldflags", "-X main.version="+revision(ctx), "-o", b.program(filepath.Base(p)), p)
		c.Env = append(os.Environ(), "CGO_ENABLED=0") // as make build does
		if out, err := c.CombinedOutput(); err != nil {
			return nil, errors.Join(fmt.Errorf("build %s, from the root of the repository: %w\n%s", p, err, out), os.RemoveAll(dir))
		}
	}
	b.begun = time.Now()
	return b, nil
}

// wanted says whether -only allows a name.
func (o options) wanted(name string) bool { return contains(name, o.Only, ",") }

// measured says whether -cells allows a cell.
func (o options) measured(c cell) bool { return contains(c.String(), o.Cells, ";") }

func contains(name, parts, separator string) bool {
	for part := range strings.SplitSeq(parts, separator) {
		if strings.Contains(name, strings.TrimSpace(part)) {
			return true
		}
	}
	return false
}

func say(format string, args ...any) { fmt.Fprintf(os.Stderr, format+"\n", args...) }
