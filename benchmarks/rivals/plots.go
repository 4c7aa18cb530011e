package main

import (
	"bytes"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"txmesh/benchmarks/load"
	"txmesh/benchmarks/plot"
)

// plots draws throughput, processor time and latencies.
func (b *bench) plots() error {
	if err := os.MkdirAll(b.Plots, 0o755); err != nil {
		return err
	}
	closed, open := b.cells()
	for _, p := range []protocol{http1, grpc} {
		mine := func(c cell) bool { return c.Protocol != p }
		cells, opened := slices.DeleteFunc(slices.Clone(closed), mine), slices.DeleteFunc(slices.Clone(open), mine)
		slug := map[protocol]string{http1: "http1", grpc: "grpc"}[p]
		how := fmt.Sprintf("Closed loop; medians of %d rounds, lines from least to most. Each group has a scale of its own.", b.Rounds)
		if err := b.bars("throughput-"+slug, string(p)+": calls a second", "More is better. "+how, cells, throughput, true); err != nil {
			return err
		}
		if err := b.bars("cpu-"+slug, string(p)+": microseconds of the proxy's processor time for each call", "Less is better. "+how, cells, cpu, false); err != nil {
			return err
		}
		for _, c := range append(cells, opened...) {
			if c.Body != 1<<10 || c.Conns != 32 {
				continue
			}
			if err := b.curves(slug, c); err != nil {
				return err
			}
		}
	}
	return nil
}

// series keeps the colour of a proxy in all plots.
func (b *bench) series(name string) plot.Series {
	names := []string{direct, minimal, nginx, haproxy, envoy, untagged, tagged}
	return plot.Series{Name: name, Color: slices.Index(names, name)}
}

func (b *bench) bars(file, title, subtitle string, cells []cell, of func(sample) float64, withDirect bool) error {
	var groups []plot.Group
	for _, c := range cells {
		g := plot.Group{Name: fmt.Sprintf("%d KiB, %d connections", c.Body>>10, c.Conns)}
		if c.Conns == 1 {
			g.Name = strings.TrimSuffix(g.Name, "s")
		}
		for _, r := range b.present {
			vs := b.each(c, r.name, of)
			if len(vs) > 0 && (withDirect || r.name != direct) {
				g.Bars = append(g.Bars, plot.Bar{Series: b.series(r.name), Value: median(vs), Least: slices.Min(vs), Most: slices.Max(vs)})
			}
		}
		groups = append(groups, g)
	}
	var w bytes.Buffer
	if err := plot.Bars(&w, title, subtitle, groups); err != nil {
		return err
	}
	return os.WriteFile(filepath.Join(b.Plots, file+".svg"), w.Bytes(), 0o644)
}

// curves has the latencies of all rounds of each proxy together.
func (b *bench) curves(slug string, c cell) error {
	var curves []plot.Curve
	subtitle, file := "Each connection calls as fast as it is answered: compare the shapes, not the heights, because the faster carry more.", "latency-closed-"+slug
	for _, r := range b.present {
		all := load.NewHistogram()
		for _, s := range b.of(c, r.name) {
			all.Merge(s.latency)
		}
		if all.Count() == 0 {
			continue
		}
		l := plot.Curve{Series: b.series(r.name)}
		for _, p := range all.Curve() {
			l.Points = append(l.Points, plot.Point(p))
		}
		curves = append(curves, l)
	}
	if c.Open {
		subtitle, file = fmt.Sprintf("Open loop, %.0f calls a second (tagged: %.0f), measured from the moment at which each call was due.", b.openRate(c, untagged), b.openRate(c, tagged)), "latency-open-"+slug
	}
	var w bytes.Buffer
	title := fmt.Sprintf("%s: latency, %d KiB, %d connections", c.Protocol, c.Body>>10, c.Conns)
	if err := plot.Curves(&w, title, subtitle, curves); err != nil {
		return err
	}
	return os.WriteFile(filepath.Join(b.Plots, file+".svg"), w.Bytes(), 0o644)
}
