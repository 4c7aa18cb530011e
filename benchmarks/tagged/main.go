// Command tagged measures on this machine what a call costs that belongs to a transaction, over the same path
// untagged: latencies added, syncs counted from the sidecars' own metrics and from their system calls, beside the time
// of one fsync on the same disk; and the memory of a sidecar, idle and under load. It starts real sidecars and serves
// the services itself. It decides nothing. Start at main; the figures are in README.md.
package main

import (
	"flag"
	"fmt"
	"os"
	"runtime"
	"slices"
	"strings"
	"time"
)

func main() {
	var o options
	flag.StringVar(&o.dir, "dir", ".", "where the journals lie: the disk to measure")
	flag.StringVar(&o.sidecar, "sidecar", "bin/txmesh-sidecar", "the program to measure")
	flag.IntVar(&o.rounds, "rounds", 8, "turns of each side")
	flag.IntVar(&o.calls, "calls", 150, "calls of a turn")
	flag.StringVar(&o.only, "only", "", "measure only the paths whose name has this in it")
	flag.StringVar(&o.traced, "trace", "", "keep strace's output of the last path in this file")
	flag.IntVar(&o.rate, "rate", 1000, "two-branch transactions a second, for the memory; 0: leave that out")
	flag.DurationVar(&o.load, "for", 20*time.Second, "length of that load")
	flag.Parse()
	if err := run(o); err != nil {
		fmt.Fprintln(os.Stderr, "tagged:", err)
		os.Exit(1)
	}
}

type options struct {
	dir, sidecar  string
	only, traced  string
	rounds, calls int
	rate          int
	load          time.Duration
}

func run(o options) (err error) {
	if o.dir, err = os.MkdirTemp(o.dir, "tagged-"); err != nil {
		return err
	}
	defer func() { _ = os.RemoveAll(o.dir) }() // left behind at worst
	b, err := newBench(o)
	if err != nil {
		return err
	}
	defer b.close()
	fmt.Printf("%s, %d cores, %d turns of %d calls, one at a time\n\n", runtime.Version(), runtime.NumCPU(), o.rounds, o.calls)
	for _, s := range []*sidecar{b.a, b.b} {
		idle, err := s.rssAnon()
		if err != nil {
			return err
		}
		s.idle = idle
	}
	if err := b.latencies(); err != nil {
		return err
	}
	if o.rate == 0 {
		return nil
	}
	return b.memory()
}

// latencies prints the table of what is added.
func (b *bench) latencies() error {
	fmt.Println("| what | untagged p50 | p99 | tagged p50 | p99 | added p50 | p99 | one fsync p50 | p99 | synced appends, metric | sync calls, counted | bound of the added p50 | |")
	fmt.Println("|---|---|---|---|---|---|---|---|---|---|---|---|---|")
	for _, p := range b.paths() {
		if !strings.Contains(p.name, b.only) {
			continue
		}
		r, err := b.measure(p)
		if err != nil {
			return fmt.Errorf("%s: %w", p.name, err)
		}
		fast, slow, one := percentile(r.untagged, 50), percentile(r.tagged, 50), percentile(r.fsyncs, 50)
		bound, verdict := "none", ""
		if p.syncsMax > 0 {
			limit := time.Duration(p.syncsMax)*one + p.extra
			bound = fmt.Sprintf("%d fsync + %s = %s", p.syncsMax, ms(p.extra), ms(limit))
			verdict = map[bool]string{true: "kept", false: "MISSED"}[slow-fast <= limit]
		}
		fmt.Printf("| %s | %s | %s | %s | %s | %s | %s | %s | %s | %.2f | %s | %s | %s |\n", p.name, ms(fast), ms(percentile(r.untagged, 99)),
			ms(slow), ms(percentile(r.tagged, 99)), ms(slow-fast), ms(percentile(r.tagged, 99)-percentile(r.untagged, 99)),
			ms(one), ms(percentile(r.fsyncs, 99)), r.appends, r.calls, bound, verdict)
	}
	return nil
}

func ms(d time.Duration) string { return fmt.Sprintf("%.2f ms", float64(d)/1e6) }

func percentile(all []time.Duration, p int) time.Duration {
	sorted := slices.Sorted(slices.Values(all))
	return sorted[min(len(sorted)*p/100, len(sorted)-1)]
}
