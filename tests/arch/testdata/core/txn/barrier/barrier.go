// Package barrier belongs to the core.
package barrier

import "os" // want `the core may not import os`

// Rows is a map seen from another package.
func Rows() map[string]int { return map[string]int{os.Args[0]: 1} }
