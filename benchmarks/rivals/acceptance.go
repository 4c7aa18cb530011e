package main

import (
	"fmt"
	"slices"
)

// acceptance is what the project promised of its data plane, with what was reached. It judges nothing else.
func (b *bench) acceptance() []string {
	h := cell{Protocol: http1, Body: 1 << 10, Conns: 32}
	g, opened, many := h, h, h
	g.Protocol, opened.Open, many.Conns = grpc, true, 256
	lines := []string{
		least("untagged HTTP/1.1, 1 KiB, 32 connections: calls/s >= 1.5 x Envoy", 1.5, b.ratios(h, untagged, envoy, throughput)),
		least("untagged HTTP/1.1, 1 KiB, 32 connections: calls/s >= 1.0 x nginx", 1, b.ratios(h, untagged, nginx, throughput)),
		least("untagged HTTP/1.1, 1 KiB, 32 connections: calls/s >= 0.9 x minimal fasthttp proxy", 0.9, b.ratios(h, untagged, minimal, throughput)),
		most("untagged HTTP/1.1, 1 KiB, 32 connections: p99 <= 1.2 x nginx, closed loop", 1.2, b.ratios(h, untagged, nginx, p99)),
		most("untagged HTTP/1.1, 1 KiB, 32 connections: p99 <= 1.2 x nginx, open loop", 1.2, b.ratios(opened, untagged, nginx, p99)),
		least("untagged gRPC unary, 1 KiB, 32 connections: calls/s >= 1.0 x Envoy", 1, b.ratios(g, untagged, envoy, throughput)),
	}
	if b.Quick {
		return append(lines, "tagged HTTP/1.1, 1 KiB, 256 connections: calls/s >= 0.4 x untagged: not measured by bench-quick; "+
			spread(b.ratios(h, tagged, untagged, throughput))+" at 32 connections")
	}
	return append(lines, least("tagged HTTP/1.1, 1 KiB, 256 connections: calls/s >= 0.4 x untagged", 0.4, b.ratios(many, tagged, untagged, throughput)),
		fmt.Sprintf("tagged HTTP/1.1, 1 KiB, 256 connections: CPU of the sidecar for each call: %.1f us (untagged %.1f us)",
			median(b.each(many, tagged, cpu)), median(b.each(many, untagged, cpu))))
}

func least(what string, bound float64, got []float64) string {
	return verdict(what, got, median(got) >= bound)
}

func most(what string, bound float64, got []float64) string {
	return verdict(what, got, median(got) <= bound)
}

func verdict(what string, got []float64, kept bool) string {
	switch {
	case len(got) == 0:
		return what + ": not measured: no"
	case kept:
		return what + ": got " + spread(got) + ": yes"
	}
	return what + ": got " + spread(got) + ": no"
}

// spread writes the median of ratios, with the least and the most.
func spread(got []float64) string {
	if len(got) == 0 {
		return "nothing"
	}
	return fmt.Sprintf("%.2f (%.2f to %.2f)", median(got), slices.Min(got), slices.Max(got))
}
