package main

import (
	"os"
	"testing"

	"github.com/rogpeppe/go-internal/testscript"
)

// TestPolicyCommands runs the scripts of testdata/policy. UPDATE_SCRIPTS=1 rewrites what they expect.
func TestPolicyCommands(t *testing.T) {
	testscript.Run(t, testscript.Params{Dir: "testdata/policy", UpdateScripts: os.Getenv("UPDATE_SCRIPTS") != ""})
}
