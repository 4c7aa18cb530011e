//go:build linux && websocket

package websocket

import (
	"bytes"
	"maps"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"txmesh/tests/transparent"
)

// TestSuitesPass runs each suite directly and through the sidecar: the same tests must run, and none may fail that does
// not fail directly.
func TestSuitesPass(t *testing.T) {
	for _, library := range []string{"github.com/gorilla/websocket", "github.com/coder/websocket"} {
		t.Run(filepath.Base(filepath.Dir(library)), func(t *testing.T) {
			suite := filepath.Join(t.TempDir(), "suite")
			compile := exec.Command("go", "test", "-c", "-o", suite, library)
			compile.Dir = "libraries"
			if out, err := compile.CombinedOutput(); err != nil {
				t.Fatalf("compile: %v\n%s", err, out)
			}
			dir := t.TempDir()
			direct, text := results(t, suite, dir, (*exec.Cmd).Run)
			if len(direct) == 0 {
				t.Fatalf("no test ran directly:\n%s", text)
			}
			w := transparent.Start(t, transparent.Options{Config: []string{"--detect", "all"}})
			through, text := results(t, suite, dir, w.Run)
			if got, want := slices.Sorted(maps.Keys(through)), slices.Sorted(maps.Keys(direct)); !slices.Equal(got, want) {
				t.Errorf("%d tests ran through the sidecar, %d directly\n%s", len(got), len(want), text)
			}
			for name, result := range through {
				if result != direct[name] {
					t.Errorf("%s: %s, directly %s\n%s", name, result, direct[name], text)
				}
			}
			const http = `txmesh_redirected_total{direction="outbound",way="http"}`
			if w.Await(http, 1); t.Failed() {
				return
			}
			t.Logf("%d tests, %v connections with HTTP", len(through), w.Metric(http))
		})
	}
}

// results runs a suite and returns what each of its tests came to.
func results(t *testing.T, suite, dir string, run func(*exec.Cmd) error) (map[string]string, string) {
	t.Helper()
	var out bytes.Buffer
	cmd := exec.CommandContext(t.Context(), suite, "-test.v", "-test.timeout=3m")
	cmd.Dir, cmd.Stdout, cmd.Stderr, cmd.Env = dir, &out, &out, os.Environ()
	if err := run(cmd); err != nil {
		t.Logf("the suite says %v", err)
	}
	all := map[string]string{}
	for line := range strings.Lines(out.String()) {
		result, name, ok := strings.Cut(strings.TrimSpace(line), ": ")
		if _, is := strings.CutPrefix(result, "--- "); ok && is {
			name, _, _ = strings.Cut(name, " ")
			all[name] = result
		}
	}
	return all, out.String()
}
