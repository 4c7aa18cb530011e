package state

import _ "embed"

// page is filled by the compiler.
//
//go:embed page.txt
var page string
