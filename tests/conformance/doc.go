// Package conformance holds the data path to suites that others wrote: h2spec against a server with and without a sidecar,
// and the interoperability tests of gRPC through two of them. It has tests only; start at TestGRPCInterop.
package conformance
