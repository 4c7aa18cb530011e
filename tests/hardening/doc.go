// Package hardening attacks a real sidecar with raw bytes: requests that two readers could take for different ones, peers
// that are slow on purpose, floods. What passes is counted at servers of other makers behind it. It never looks inside
// the sidecar; its limits are set by their keys and its refusals read from its metrics. Start at world_test.go.
package hardening
