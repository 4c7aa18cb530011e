//go:build linux && neverset

// Package txlog is held to its arrows behind build tags too.
package txlog

import (
	_ "github.com/dgraph-io/badger/v4"

	_ "txmesh/policies" // want `package txlog may not import policies`
	_ "txmesh/txn"
)
