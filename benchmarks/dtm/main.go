// Command dtm measures what clients of DTM get from the door: transactions a second and latencies, closed loop, with empty
// URLs and with real branch services, which this process serves; and what 10,000 transactions that hang cost new ones. It
// decides nothing and keeps nothing. README.md has the figures. Start at main.
package main

import (
	"cmp"
	"flag"
	"fmt"
	"os"
	"slices"
	"strconv"
	"strings"
	"time"
)

type options struct {
	sidecar string
	dir     string
	clients []int
	kinds   []string
	each    time.Duration
	turns   int
	hang    int
	profile string
	flags   []string
}

func main() {
	o := options{}
	clients := flag.String("clients", "1,20,200", "numbers of clients, each in a closed loop")
	kinds := flag.String("kinds", "saga,saga-empty,tcc,msg", "what to run: saga, saga-empty, tcc, tcc-empty, msg, msg-empty")
	more := flag.String("sidecar-flags", "", "more flags of the sidecar, separated by blanks")
	flag.StringVar(&o.sidecar, "sidecar", "bin/txmesh-sidecar", "the program")
	flag.StringVar(&o.dir, "dir", "", "where the journal lies; its disk is part of what is measured (required)")
	flag.DurationVar(&o.each, "each", 5*time.Second, "duration of one row of a turn")
	flag.IntVar(&o.turns, "turns", 3, "turns; rows are medians of them")
	flag.IntVar(&o.hang, "hang", 0, "measure instead what so many hanging transactions cost new ones")
	flag.StringVar(&o.profile, "profile", "", "write a CPU profile of the sidecar, taken in the last row, to this file")
	flag.Parse()
	for _, n := range strings.Split(*clients, ",") {
		v, err := strconv.Atoi(n)
		if err != nil || v < 1 {
			fatal(fmt.Errorf("-clients %q: want numbers separated by commas", *clients))
		}
		o.clients = append(o.clients, v)
	}
	o.kinds, o.flags = strings.Split(*kinds, ","), strings.Fields(*more)
	if o.dir == "" {
		fatal(fmt.Errorf("-dir is missing: name a directory on the disk to measure"))
	}
	if err := run(o); err != nil {
		fatal(err)
	}
}

func fatal(err error) {
	fmt.Fprintln(os.Stderr, "benchmarks/dtm:", err)
	os.Exit(1)
}

func run(o options) error {
	b, err := start(o)
	if err != nil {
		return err
	}
	defer b.stop()
	if o.hang > 0 {
		return b.hanging()
	}
	fmt.Println("| what | clients | transactions/s | of turns | p50 | p99 | p99.9 | errors | one fsync p50 | CPU of the sidecar, each |")
	fmt.Println("|---|---|---|---|---|---|---|---|---|---|")
	for _, kind := range o.kinds {
		for _, n := range o.clients {
			if err := b.row(kind, n); err != nil {
				return err
			}
		}
	}
	return nil
}

// row measures one line of the table, turn after turn, and prints the turn of the median rate.
func (b *bench) row(kind string, clients int) error {
	var all []result
	for range b.turns {
		r, err := b.load(kind, clients, b.each)
		if err != nil {
			return err
		}
		all = append(all, r)
	}
	slices.SortFunc(all, func(x, y result) int { return cmp.Compare(x.rate(), y.rate()) })
	m := all[len(all)/2]
	fmt.Printf("| %s | %d | %.0f | %.0f to %.0f | %v | %v | %v | %d | %v | %.0f µs |\n", kind, clients, m.rate(), all[0].rate(), all[len(all)-1].rate(),
		ms(m.at(0.5)), ms(m.at(0.99)), ms(m.at(0.999)), m.errors, ms(m.fsync), m.cpu.Seconds()*1e6/float64(max(len(m.times), 1)))
	return nil
}

func ms(d time.Duration) string { return fmt.Sprintf("%.2f ms", float64(d.Microseconds())/1000) }
