// Package main is an example, and examples know nothing of us.
package main

import (
	_ "txmesh/txn" // want `package examples/shop may not import txn`
)

func main() {}
