package compat

import (
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
)

// client is one language's client of DTM with the programs that use it.
type client struct {
	name    string
	service []string // command of the branches
	driver  []string // command that begins a transaction; the scenario comes behind
	dir     string
	cannot  map[string]string // scenarios that are beyond the client, and why
}

const (
	noConcurrency = "reads attributes of Saga that nothing sets"
	barrierOfTCC  = "its barrier knows cancel before try, not compensate before action"
	noNesting     = "has no way to make a Tcc from the request of a try"
	noMsg         = "has no messages"
)

// clients are those that the registries have.
func clients(t *testing.T) []client {
	env, err := filepath.Abs(".env")
	if err != nil {
		t.Fatal(err)
	}
	python := filepath.Join(env, "python", "bin", "python")
	classes := compileJava(t, env)
	return []client{
		{name: "python", dir: "python", service: []string{python, "service.py"}, driver: []string{python, "driver.py"},
			cannot: map[string]string{"saga concurrent": noConcurrency, "saga ordered": noConcurrency}},
		{name: "java", dir: "java", service: []string{"java", "-cp", classes, "Service"}, driver: []string{"java", "-cp", classes, "Driver"},
			cannot: map[string]string{
				"saga null compensation, late action": barrierOfTCC,
				"tcc nested":                          noNesting,
				"tcc nested rollback":                 noNesting,
				"msg":                                 noMsg,
				"msg without prepare":                 noMsg,
				"msg refused":                         noMsg,
				"msg client dies after its commit":    noMsg,
				"msg client dies before its commit":   noMsg,
			}},
	}
}

// compileJava returns the class path of the Java programs.
func compileJava(t *testing.T, env string) string {
	t.Helper()
	classes, jars := t.TempDir(), filepath.Join(env, "java", "*")
	sources, err := filepath.Glob("java/src/*.java")
	if err != nil {
		t.Fatal(err)
	}
	if out, err := exec.Command("javac", append([]string{"-cp", jars, "-d", classes}, sources...)...).CombinedOutput(); err != nil {
		t.Fatalf("compile the Java programs: %v\n%s", err, out)
	}
	return classes + ":" + jars
}

// fixture is one client's service beside the rest of the world.
type fixture struct {
	client
	door    sidecar
	db      *database
	address string // of the service
}

func (c client) start(t *testing.T, door sidecar, db *database) fixture {
	f := fixture{client: c, door: door, db: db}
	var ready struct{ Address string }
	serve(t, c.name+" service", f.command(c.service, nil), &ready)
	f.address = ready.Address
	return f
}

func (f fixture) command(argv, env []string) *exec.Cmd {
	cmd := exec.Command(argv[0], argv[1:]...)
	cmd.Dir = f.dir
	cmd.Env = append(os.Environ(), "DTM_URL="+f.door.url(), "BANK_DB_USER="+f.db.user, fmt.Sprint("BANK_DB_PORT=", f.db.port))
	cmd.Env = append(cmd.Env, env...)
	return cmd
}

// begun is what the driver said.
type begun struct {
	gid    string
	error  string // what the client told its user; empty if all was well
	killed bool   // the program did not come to its end
}

// begin runs the driver to its end.
func (f fixture) begin(t *testing.T, program, service string, from, to, amount int64) begun {
	t.Helper()
	cmd := f.command(append(f.driver[:len(f.driver):len(f.driver)], program), []string{"SERVICE_URL=" + service,
		fmt.Sprint("FROM=", from), fmt.Sprint("TO=", to), fmt.Sprint("AMOUNT=", amount)})
	var log strings.Builder
	cmd.Stderr = &log
	out, err := cmd.Output()
	t.Cleanup(func() {
		if t.Failed() {
			t.Logf("--- %s driver\n%s%s", f.name, out, log.String())
		}
	})
	b := begun{killed: err != nil}
	for line := range strings.Lines(string(out)) {
		key, value, _ := strings.Cut(strings.TrimSpace(line), ": ")
		switch key {
		case "gid":
			b.gid = value
		case "error":
			b.error = value
		}
	}
	if b.gid == "" {
		t.Fatalf("the driver names no gid: %v", err)
	}
	return b
}
