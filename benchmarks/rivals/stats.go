package main

import (
	"fmt"
	"slices"
)

// each returns a figure of all rounds of a proxy in a cell, by round.
func (b *bench) each(c cell, name string, of func(sample) float64) []float64 {
	var vs []float64
	for _, s := range b.of(c, name) {
		vs = append(vs, of(s))
	}
	return vs
}

func (b *bench) of(c cell, name string) []sample {
	var all []sample
	for _, s := range b.samples {
		if s.cell == c && s.Rival == name {
			all = append(all, s)
		}
	}
	return all
}

// ratios returns x's figure over y's, for each round that has both.
func (b *bench) ratios(c cell, x, y string, of func(sample) float64) []float64 {
	return b.ratiosAcross(c, x, c, y, of)
}

// ratiosAcross is ratios where the two stand in different cells.
func (b *bench) ratiosAcross(cx cell, x string, cy cell, y string, of func(sample) float64) []float64 {
	var vs []float64
	for _, sx := range b.of(cx, x) {
		for _, sy := range b.of(cy, y) {
			if sx.Round == sy.Round && of(sy) > 0 {
				vs = append(vs, of(sx)/of(sy))
			}
		}
	}
	return vs
}

func throughput(s sample) float64 { return s.Throughput }
func p50(s sample) float64        { return s.P50 }
func p90(s sample) float64        { return s.P90 }
func p99(s sample) float64        { return s.P99 }
func p999(s sample) float64       { return s.P999 }
func cpu(s sample) float64        { return s.CPU }

// median is 0 of nothing, and the mean of the two in the middle of an even number.
func median(vs []float64) float64 {
	if len(vs) == 0 {
		return 0
	}
	s := slices.Sorted(slices.Values(vs))
	return (s[len(s)/2] + s[(len(s)-1)/2]) / 2
}

// micros writes microseconds as people read them.
func micros(us float64) string {
	switch {
	case us < 1000:
		return fmt.Sprintf("%.0f us", us)
	case us < 10_000:
		return fmt.Sprintf("%.2f ms", us/1000)
	}
	return fmt.Sprintf("%.1f ms", us/1000)
}
