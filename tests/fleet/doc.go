// Package fleet is the proof that a mesh on a shared store loses nothing: two replicas each of three services with their
// sidecars, and the members of the store, every one on a host of its own, move money while the wire between them is cut,
// loses packets and is slow, while processes are stopped and killed, and while disks are full. What came of it is judged by
// the databases of the services and by the store's history. The package itself holds the account books of a service and
// draws which faults happen when; it knows nothing of transactions. Start at fleet_test.go for a run, at Draw for the
// faults, at check_test.go for what must hold; ledger is the service that keeps books.
package fleet
