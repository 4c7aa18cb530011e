package main

import (
	"testing"

	"github.com/rogpeppe/go-internal/testscript"
)

// TestMigrateCommand runs the scripts of testdata/migrate: what cannot be begun. That it runs is the business of tests/e2e.
func TestMigrateCommand(t *testing.T) {
	testscript.Run(t, testscript.Params{Dir: "testdata/migrate"})
}
