// Package takeover kills sidecars that share a store, and sees that others go on: how long it takes, and that no undo is
// answered as having nothing to undo while the call that it is for has taken effect. Sidecars are processes, the store is
// a real one, the services are in the test, and what they did is judged by their own books. Start at world_test.go.
package takeover
