// Package fidelity compares what passes through the proxy with what passes without it: the same raw bytes are
// sent over a direct connection and through interceptor/proxy, and both ends compare every byte. It holds tests
// only. Start at testdata/README.md, which explains the shapes.
package fidelity
