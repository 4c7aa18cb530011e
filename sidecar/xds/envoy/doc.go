// Package envoy holds the few messages of Envoy's xDS protocol that a sidecar reads and writes, with the fields that it
// uses and the numbers that Envoy gives them. It is generated from envoy.proto and does nothing by itself. Envoy's own
// packages for Go register some hundred messages more, which costs every sidecar 4.5 MB of memory. Start at envoy.proto;
// `make proto` generates the rest.
package envoy
