// Package main may import all of it.
package main

import (
	_ "github.com/spf13/cobra"

	_ "txmesh/sidecar"
)

func main() {}
