// Command txmesh is the tool of people: it checks, explains and tests policies, and shows the product at work. It
// carries no traffic; that is txmesh-sidecar. Each command is made by a function of its own in a file of its own;
// start at newRootCommand.
package main

import (
	"errors"
	"fmt"
	"io"
	"os"

	"github.com/spf13/cobra"
)

// errReported ends a command whose findings have already been printed.
var errReported = errors.New("reported")

func main() {
	os.Exit(run(os.Args[1:], os.Stdout, os.Stderr))
}

func run(args []string, out, errs io.Writer) int {
	root := newRootCommand()
	root.SetArgs(args)
	root.SetOut(out)
	root.SetErr(errs)
	err := root.Execute()
	if err == nil {
		return 0
	}
	if errors.Is(err, errStays) {
		return 2
	}
	if !errors.Is(err, errReported) {
		fmt.Fprintf(errs, "txmesh: %v\n", err)
	}
	return 1
}

func newRootCommand() *cobra.Command {
	root := &cobra.Command{
		Use:           "txmesh",
		Short:         "Transactions over unmodified services",
		SilenceUsage:  true,
		SilenceErrors: true,
	}
	root.AddCommand(newDemoCommand(), newMigrateCommand(), newPolicyCommand(), newTxCommand())
	return root
}
