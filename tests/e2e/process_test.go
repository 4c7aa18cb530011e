package e2e

import (
	"fmt"
	"os"
	"os/exec"
	"sync"
	"testing"

	"txmesh/tests/databases"
)

// binaries are the programs under test.
type binaries struct{ dir string }

func (b binaries) sidecar() string     { return b.dir + "/txmesh-sidecar" }
func (b binaries) bank() string        { return b.dir + "/bank" }
func (b binaries) participant() string { return b.dir + "/participant" }

// build builds once for all tests of the run, or takes the sidecar of TXMESH_BIN.
var build = sync.OnceValues(func() (binaries, error) {
	dir := os.Getenv(binEnv)
	programs := []string{"build", "-o", dir, "txmesh/examples/bank", "txmesh/tests/e2e/participant"}
	if given := os.Getenv("TXMESH_BIN"); given == "" {
		programs = append(programs, "txmesh/cmd/txmesh-sidecar")
	} else if err := os.Symlink(given+"/txmesh-sidecar", binaries{dir}.sidecar()); err != nil {
		return binaries{}, err // built elsewhere, to measure coverage
	}
	if out, err := exec.Command("go", programs...).CombinedOutput(); err != nil {
		return binaries{}, fmt.Errorf("go %v: %w\n%s", programs, err, out)
	}
	return binaries{dir}, nil
})

// servers are the databases of the tests that need one.
var servers databases.Set

// binEnv names the directory of what is built.
const binEnv = "E2E_BIN"

func TestMain(m *testing.M) {
	dir, err := os.MkdirTemp("", "txmesh-e2e-")
	if err != nil {
		panic(err)
	}
	if err := os.Setenv(binEnv, dir); err != nil {
		panic(err)
	}
	code := m.Run()
	servers.Close()
	if err := os.RemoveAll(dir); err != nil {
		panic(err)
	}
	os.Exit(code)
}
