// Command stores measures durable transactions a second on each kind of store, by number of sidecars: two-branch sagas over
// the API, from a fixed number of clients, with what one of them costs in processor time and bytes. Stores, sidecars,
// clients and the participant share this machine. It decides nothing and keeps nothing. README.md has the figures. Start
// at main.
package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"time"
)

type options struct {
	stores   []string
	sidecars []int
	clients  int
	seconds  float64
	rounds   int
	flags    []string
}

func main() {
	var o options
	stores := flag.String("stores", "badger,etcd,etcd3,postgres", "which stores: badger, etcd (one member), etcd3 (three), postgres")
	sidecars := flag.String("sidecars", "1,4,16", "numbers of sidecars")
	more := flag.String("sidecar-flags", "", "more flags of the sidecars, separated by blanks")
	flag.IntVar(&o.clients, "clients", 64, "clients, each in a closed loop, spread over the sidecars")
	flag.Float64Var(&o.seconds, "seconds", 4, "how long each cell is measured; a quarter of it before warms up")
	flag.IntVar(&o.rounds, "rounds", 3, "rounds over all cells; the table has medians")
	flag.Parse()
	o.stores, o.flags = strings.Split(*stores, ","), strings.Fields(*more)
	for _, n := range strings.Split(*sidecars, ",") {
		v, err := strconv.Atoi(n)
		if err != nil || v < 1 {
			fatal(fmt.Errorf("-sidecars %q: want numbers separated by commas", *sidecars))
		}
		o.sidecars = append(o.sidecars, v)
	}
	if o.clients < slices.Max(o.sidecars) {
		fatal(fmt.Errorf("-clients %d: want at least one for each of %d sidecars", o.clients, slices.Max(o.sidecars)))
	}
	if err := run(o); err != nil {
		fatal(err)
	}
}

func fatal(err error) {
	fmt.Fprintln(os.Stderr, "benchmarks/stores:", err)
	os.Exit(1)
}

func run(o options) (err error) {
	dir, err := os.MkdirTemp("", "txmesh-stores-")
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, os.RemoveAll(dir)) }()
	binary := filepath.Join(dir, "txmesh-sidecar")
	if out, err := exec.CommandContext(context.Background(), "go", "build", "-o", binary, "txmesh/cmd/txmesh-sidecar").CombinedOutput(); err != nil {
		return fmt.Errorf("build the sidecar: %w\n%s", err, out)
	}
	service, err := serve()
	if err != nil {
		return err
	}
	b := &bench{options: o, dir: dir, binary: binary, service: service, results: map[cell][]result{}}
	for round := range o.rounds {
		for _, kind := range o.stores {
			if err := b.round(round, kind); err != nil {
				return fmt.Errorf("round %d, %s: %w", round, kind, err)
			}
		}
	}
	return b.print()
}

// cell is a row of the table.
type cell struct {
	store    string
	sidecars int
}

// bench is a run over all cells.
type bench struct {
	options
	dir, binary string
	service     string // host:port of the participant
	results     map[cell][]result
	versions    []string
}

// round measures the cells of one store, which it starts anew.
func (b *bench) round(round int, kind string) error {
	h := &host{}
	defer h.close()
	s, err := start(h, kind)
	if err != nil {
		return err
	}
	if round == 0 {
		b.versions = append(b.versions, s.version)
	}
	for _, n := range b.sidecars {
		place := fmt.Sprintf("r%dn%d", round, n)
		r, err := b.measure(s, place, n)
		if err != nil {
			return fmt.Errorf("%d sidecars: %w", n, err)
		}
		b.results[cell{kind, n}] = append(b.results[cell{kind, n}], r)
		fmt.Fprintf(os.Stderr, "round %d, %s, %d sidecars, load average %.1f: %.0f/s, p50 %v\n", round+1, kind, n, r.load, r.rate(), r.at(0.5).Round(time.Microsecond))
	}
	return nil
}

func (b *bench) print() error {
	host, err := machine()
	if err != nil {
		return err
	}
	fmt.Printf("%s; %s; %d clients, %g s, medians of %d rounds\n\n", host, strings.Join(b.versions, ", "), b.clients, b.seconds, b.rounds)
	fmt.Println("| store | sidecars | transactions/s | of rounds | p50 | p99 | CPU of sidecars, each | CPU of the store, each | written, each | store's own count, each | load average |")
	fmt.Println("|---|---|---|---|---|---|---|---|---|---|---|")
	for _, kind := range b.stores {
		for _, n := range b.sidecars {
			row(kind, n, b.results[cell{kind, n}])
		}
	}
	return nil
}

func row(kind string, n int, rs []result) {
	median := func(f func(r result) float64) float64 {
		var vs []float64
		for _, r := range rs {
			vs = append(vs, f(r))
		}
		slices.Sort(vs)
		return vs[len(vs)/2]
	}
	rate := func(r result) float64 { return r.rate() }
	least := slices.MinFunc(rs, func(x, y result) int { return int(x.rate() - y.rate()) })
	most := slices.MaxFunc(rs, func(x, y result) int { return int(x.rate() - y.rate()) })
	each := func(f func(c cost) float64) float64 {
		return median(func(r result) float64 { return f(r.cost) / float64(len(r.times)) })
	}
	count := fmt.Sprintf("%.2f %s", each(func(c cost) float64 { return float64(c.count) }), rs[0].unit)
	if rs[0].unit == "" {
		count = "none"
	}
	fmt.Printf("| %s | %d | %.0f | %.0f to %.0f | %.1f ms | %.1f ms | %.0f µs | %.0f µs | %.1f KiB | %s | %.1f |\n", kind, n, median(rate), least.rate(), most.rate(),
		1000*median(func(r result) float64 { return r.at(0.5).Seconds() }), 1000*median(func(r result) float64 { return r.at(0.99).Seconds() }),
		each(func(c cost) float64 { return c.sidecars.Seconds() * 1e6 }), each(func(c cost) float64 { return c.store.Seconds() * 1e6 }),
		each(func(c cost) float64 { return float64(c.written) / 1024 }), count, median(func(r result) float64 { return r.load }))
}
