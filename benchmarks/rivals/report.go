package main

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
	"time"
)

// host is the machine and how busy it was.
type host struct {
	CPU      string            `json:"cpu"`
	Cores    int               `json:"cores"`
	Kernel   string            `json:"kernel"`
	Disk     string            `json:"disk"`
	Go       string            `json:"go"`
	LoadAt   [2]string         `json:"load_average"` // at the start and at the end
	Versions map[string]string `json:"versions"`
	Revision string            `json:"revision"`
	When     time.Time         `json:"when"`
}

func (b *bench) host(ctx context.Context) host {
	h := host{CPU: "unknown", Cores: runtime.NumCPU(), Kernel: "unknown", Disk: journalDisk(b.dir), Go: runtime.Version(),
		LoadAt: [2]string{b.load, loadAverage()}, Versions: b.known, Revision: revision(ctx), When: b.begun.UTC().Truncate(time.Minute)}
	if text, err := os.ReadFile("/proc/cpuinfo"); err == nil {
		for line := range strings.Lines(string(text)) {
			if name, value, ok := strings.Cut(line, ":"); ok && strings.TrimSpace(name) == "model name" {
				h.CPU = strings.TrimSpace(value)
				break
			}
		}
	}
	if out, err := exec.CommandContext(ctx, "uname", "-sr").Output(); err == nil {
		h.Kernel = strings.TrimSpace(string(out))
	}
	return h
}

// report writes tables, plots and samples, and prints what the acceptance asks for.
func (b *bench) report(ctx context.Context) error {
	h := b.host(ctx)
	raw, err := json.MarshalIndent(struct {
		Host    host     `json:"host"`
		Missing []string `json:"missing"`
		Samples []sample `json:"samples"`
	}{h, b.missing, b.samples}, "", " ")
	if err != nil {
		return err
	}
	samples := filepath.Join(b.Out, "rivals-"+b.begun.UTC().Format("20060102-150405")+".json")
	lines := b.acceptance()
	err = errors.Join(os.WriteFile(samples, raw, 0o644), os.WriteFile(b.Results, b.page(h, lines), 0o644), b.plots())
	if err != nil {
		return err
	}
	say("%s, %s and %s are written, after %v", b.Results, b.Plots, samples, time.Since(b.begun).Round(time.Second))
	for _, l := range lines {
		fmt.Println(l)
	}
	return nil
}

// page is RESULTS.md.
func (b *bench) page(h host, acceptance []string) []byte {
	var w bytes.Buffer
	p := func(format string, args ...any) { fmt.Fprintf(&w, format+"\n", args...) }
	command := "make bench"
	if b.Quick {
		command = "make bench-quick"
	}
	p("# Results\n\nWritten by `%s`; how it measures, what the columns mean and to whom it is unfair is in\n[docs/benchmarks.md](../docs/benchmarks.md).\n", command)
	if load := number(h.LoadAt[0]); load > float64(h.Cores)/2 {
		p("**The machine was busy with other things when this began (load average %s on %d cores): not to be quoted.**\n", h.LoadAt[0], h.Cores)
	}
	p("- %s UTC, revision %s; %d rounds; a turn is %v to warm up and %v counted", h.When.Format("2 January 2006, 15:04"), h.Revision, b.Rounds, b.plan.warm.Round(time.Millisecond), b.plan.window.Round(time.Millisecond))
	p("- %s, %d cores; %s; journals on %s; load average %s at the start, %s at the end", h.CPU, h.Cores, h.Kernel, h.Disk, h.LoadAt[0], h.LoadAt[1])
	p("- %s; %s", h.Go, b.versions())
	p("- configurations: [rivals/config](rivals/config), flags of the programs in [rival.go](rivals/rival.go) and [sidecar.go](rivals/sidecar.go)")
	p("- %d tagged calls share a transaction; its begin and its commit are part of the throughput, not of the latencies", b.Branches)
	for _, m := range b.missing {
		p("- **left out**: %s", strings.ReplaceAll(m, "\n", " "))
	}
	p("\n## Acceptance\n\n```")
	for _, l := range acceptance {
		p("%s", l)
	}
	p("```")
	closed, open := b.cells()
	for _, proto := range []protocol{http1, grpc} {
		p("\n## %s, closed loop", proto)
		for _, c := range closed {
			if c.Protocol == proto {
				b.table(&w, c)
			}
		}
		p("\n## %s, open loop", proto)
		for _, c := range open {
			if c.Protocol == proto {
				b.table(&w, c)
			}
		}
	}
	b.ceiling(&w)
	return w.Bytes()
}

func number(s string) (v float64) {
	_, _ = fmt.Sscan(s, &v) // 0 if it is unknown
	return v
}

func (b *bench) versions() string {
	var all []string
	for _, r := range b.present {
		if r.name != direct && r.name != tagged {
			all = append(all, r.name+" "+b.known[r.name])
		}
	}
	return strings.Join(all, ", ")
}

// table is one cell: a row for each proxy.
func (b *bench) table(w *bytes.Buffer, c cell) {
	fmt.Fprintf(w, "\n### %d KiB, %d connections\n\n", c.Body>>10, c.Conns)
	second, ratio := "calls/s (least to most)", "txmesh / this"
	if c.Open {
		second, ratio = "calls/s asked for", "answered"
	}
	fmt.Fprintf(w, "| | %s | %s | p50 | p90 | p99 (least to most) | p99.9 | CPU, each | resident | peak | anonymous | errors |\n|---|---|---|---|---|---|---|---|---|---|---|---|\n", second, ratio)
	for _, r := range b.present {
		all := b.of(c, r.name)
		if len(all) == 0 {
			fmt.Fprintf(w, "| %s | not served | | | | | | | | | | |\n", r.name)
			continue
		}
		rates := b.each(c, r.name, throughput)
		first, then := fmt.Sprintf("%.0f (%.0f to %.0f)", median(rates), slices.Min(rates), slices.Max(rates)), "-"
		if rs := b.ratios(c, untagged, r.name, throughput); len(rs) > 0 {
			then = fmt.Sprintf("%.2f (%.2f to %.2f)", median(rs), slices.Min(rs), slices.Max(rs))
		}
		if c.Open {
			first, then = fmt.Sprintf("%.0f", all[0].Rate), fmt.Sprintf("%.0f", median(rates))
		}
		tails := b.each(c, r.name, p99)
		fmt.Fprintf(w, "| %s | %s | %s | %s | %s | %s (%s to %s) | %s | %s | %s |\n", r.name, first, then, micros(median(b.each(c, r.name, p50))), micros(median(b.each(c, r.name, p90))),
			micros(median(tails)), micros(slices.Min(tails)), micros(slices.Max(tails)), micros(median(b.each(c, r.name, p999))), b.costs(c, r.name), errorsOf(all))
	}
}

// costs are the columns of processor time and memory.
func (b *bench) costs(c cell, name string) string {
	if name == direct {
		return "- | - | - | -"
	}
	mib := func(of func(memory) int64) string {
		return fmt.Sprintf("%.1f MiB", median(b.each(c, name, func(s sample) float64 { return float64(of(s.Memory)) }))/(1<<20))
	}
	return fmt.Sprintf("%.1f us | %s | %s | %s", median(b.each(c, name, cpu)), mib(func(m memory) int64 { return m.RSS }),
		mib(func(m memory) int64 { return m.Peak }), mib(func(m memory) int64 { return m.Anon }))
}

func errorsOf(all []sample) string {
	sum := map[string]int64{}
	for _, s := range all {
		for name, n := range s.Errors {
			sum[name] += n
		}
	}
	if len(sum) == 0 {
		return "0"
	}
	return faults(sample{Errors: sum})
}

// ceiling says what driver and server take themselves.
func (b *bench) ceiling(w *bytes.Buffer) {
	closed, _ := b.cells()
	fmt.Fprintf(w, "\n## The driver itself\n\nWithout a proxy, closed loop; medians. What driver and server take of the same cores is not there for the proxy.\n\n"+
		"| | calls/s | driver's CPU, each | server's CPU, each |\n|---|---|---|---|\n")
	for _, c := range closed {
		if rates := b.each(c, direct, throughput); len(rates) > 0 {
			fmt.Fprintf(w, "| %s, %d KiB, %d connections | %.0f | %.1f us | %.1f us |\n", c.Protocol, c.Body>>10, c.Conns, median(rates),
				median(b.each(c, direct, func(s sample) float64 { return s.DriverCPU })), median(b.each(c, direct, func(s sample) float64 { return s.OriginCPU })))
		}
	}
	late := []float64{0}
	for _, s := range b.samples {
		if s.Open {
			late = append(late, s.LateP99)
		}
	}
	fmt.Fprintf(w, "\nIn the open loops the driver started 99 %% of its calls at most %s late, in the worst turn.\n", micros(slices.Max(late)))
}
