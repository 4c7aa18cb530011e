// Package main shows what a sidecar holds in memory: idle, after 10,000 connections, beside 1,000 idle WebSockets, while
// 100 MB stream either way, and with -soak over minutes of constant load. It starts the sidecar as a process of its own, as
// `make build` builds it, and measures from outside. Start at main; README.md has the figures.
package main
