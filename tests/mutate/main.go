// Command mutate breaks the code in known ways and wants the tests to name the law that each break violates. A break
// is one small replacement in one file; the compiler sees it through an overlay, so nothing in the tree changes. It
// writes no test and judges nothing itself: the simulation does, for the driver's goroutines the engine's own tests, and
// for a door those of its wire. The list is in mutations.go; start at run.
package main

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"sync"
	"time"
)

func main() {
	fs := flag.NewFlagSet("mutate", flag.ContinueOnError)
	only := fs.String("run", "", "run the mutations whose name matches this expression")
	seeds := fs.Int("seeds", 12000, "worlds in which each mutation is looked for")
	if err := fs.Parse(os.Args[1:]); err != nil {
		os.Exit(2)
	}
	list, err := chosen(*only, fs.Args())
	if err != nil {
		fmt.Fprintln(os.Stderr, "mutate:", err)
		os.Exit(2)
	}
	survived, err := run(list, *seeds, os.Stdout)
	if err != nil {
		fmt.Fprintln(os.Stderr, "mutate:", err)
		os.Exit(2)
	}
	if survived > 0 {
		os.Exit(1)
	}
}

// chosen picks the mutations to run: all, the quick ones, or those that match.
func chosen(only string, args []string) ([]mutation, error) {
	match, err := regexp.Compile(only)
	if err != nil {
		return nil, fmt.Errorf("-run: %w", err)
	}
	quick := len(args) == 1 && args[0] == "quick"
	if len(args) > 0 && !quick {
		return nil, fmt.Errorf("argument %q: the one word that may follow the flags is quick", strings.Join(args, " "))
	}
	var list []mutation
	for _, m := range mutations() {
		if match.MatchString(m.name) && (!quick || m.quick) {
			list = append(list, m)
		}
	}
	if len(list) == 0 {
		return nil, fmt.Errorf("no mutation matches %q", only)
	}
	return list, nil
}

// verdict is what became of one mutation.
type verdict struct {
	caught bool
	text   string // the line that names the law, or what was seen instead
	took   time.Duration
}

// parallel is how many mutations are compiled and run at the same time: a small machine has no more.
const parallel = 2

// run judges all mutations and prints the table as it grows. It returns how many survived.
func run(list []mutation, seeds int, out io.Writer) (survived int, err error) {
	root, err := moduleRoot()
	if err != nil {
		return 0, err
	}
	dir, err := os.MkdirTemp("", "mutate")
	if err != nil {
		return 0, fmt.Errorf("make a directory for the overlays: %w", err)
	}
	defer func() { err = errors.Join(err, os.RemoveAll(dir)) }()
	for _, m := range list {
		if _, err := m.apply(root); err != nil {
			return 0, err
		}
	}
	work := make(chan int)
	var wg sync.WaitGroup
	var mu sync.Mutex // guards survived, failed and the output
	var failed error
	start := time.Now()
	for range parallel {
		wg.Go(func() {
			for i := range work {
				v, err := list[i].judge(root, filepath.Join(dir, fmt.Sprint(i)), seeds)
				mu.Lock()
				failed = errors.Join(failed, err)
				if !v.caught {
					survived++
				}
				report(out, list[i], v)
				mu.Unlock()
			}
		})
	}
	for i := range list {
		work <- i
	}
	close(work)
	wg.Wait()
	fmt.Fprintf(out, "%d mutations, %d caught, %d survived, %s\n", len(list), len(list)-survived, survived,
		time.Since(start).Round(time.Second))
	return survived, failed
}

func report(out io.Writer, m mutation, v verdict) {
	word := "caught"
	if !v.caught {
		word = "SURVIVED"
	}
	fmt.Fprintf(out, "%-8s  %-12s  %-46s  %4.1fs  %s\n", word, m.law, m.name, v.took.Seconds(), v.text)
}

func moduleRoot() (string, error) {
	out, err := exec.CommandContext(context.Background(), "go", "env", "GOMOD").Output()
	if err != nil {
		return "", fmt.Errorf("go env GOMOD: %w", err)
	}
	mod := strings.TrimSpace(string(out))
	if filepath.Base(mod) != "go.mod" {
		return "", errors.New("not inside the module: run it from the source tree")
	}
	return filepath.Dir(mod), nil
}

// apply returns the file with the replacement made. The text must be there exactly once.
func (m mutation) apply(root string) ([]byte, error) {
	src, err := os.ReadFile(filepath.Join(root, m.file))
	if err != nil {
		return nil, fmt.Errorf("mutation %q: %w", m.name, err)
	}
	if n := bytes.Count(src, []byte(m.old)); n != 1 {
		return nil, fmt.Errorf("mutation %q: its text is in %s %d times, not once; write it anew", m.name, m.file, n)
	}
	return bytes.Replace(src, []byte(m.old), []byte(m.now), 1), nil
}

// runMax bounds one mutation: a broken machine may go round in circles.
const runMax = 3 * time.Minute

// judge compiles the tests over one mutation and runs them.
func (m mutation) judge(root, dir string, seeds int) (verdict, error) {
	start := time.Now()
	src, err := m.apply(root)
	if err != nil {
		return verdict{}, err
	}
	if err := os.Mkdir(dir, 0o700); err != nil {
		return verdict{}, fmt.Errorf("mutation %q: %w", m.name, err)
	}
	changed, overlay, bin := filepath.Join(dir, "changed.go"), filepath.Join(dir, "overlay.json"), filepath.Join(dir, "tests")
	plan, err := json.Marshal(map[string]map[string]string{"Replace": {filepath.Join(root, m.file): changed}})
	if err != nil {
		return verdict{}, fmt.Errorf("mutation %q: %w", m.name, err)
	}
	if err := errors.Join(os.WriteFile(changed, src, 0o600), os.WriteFile(overlay, plan, 0o600)); err != nil {
		return verdict{}, fmt.Errorf("mutation %q: %w", m.name, err)
	}
	ctx, cancel := context.WithTimeout(context.Background(), runMax)
	defer cancel()
	build := exec.CommandContext(ctx, "go", "test", "-c", "-overlay", overlay, "-o", bin, m.judgedBy())
	build.Dir = root
	if text, err := build.CombinedOutput(); err != nil {
		return verdict{}, fmt.Errorf("mutation %q does not compile: %w\n%s", m.name, err, text)
	}
	test := exec.CommandContext(ctx, bin, m.args(seeds)...)
	test.Dir = filepath.Join(root, m.judgedBy())
	text, err := test.CombinedOutput()
	v := m.read(string(text), err != nil)
	v.took = time.Since(start)
	// The binary is large, and there are many.
	return v, os.RemoveAll(dir)
}

func (m mutation) judgedBy() string {
	switch {
	case m.tests == "":
		return "./tests/sim"
	case m.by == "":
		return "./sidecar/engine"
	}
	return m.by
}

func (m mutation) args(seeds int) []string {
	if m.tests != "" {
		return []string{"-test.run", m.tests, "-test.failfast", "-test.timeout", runMax.String()}
	}
	return []string{"-test.run", "^TestHunt$", "-test.v", "-want", m.law, "-seeds", fmt.Sprint(seeds), fmt.Sprintf("-fleets=%v", m.fleet),
		"-test.timeout", runMax.String()}
}

// read looks for the message of the law. A test that fails with another one has not seen what was broken.
func (m mutation) read(text string, failed bool) verdict {
	var first, seed string
	named := regexp.MustCompile(`_test\.go:\d+: (.*\b` + regexp.QuoteMeta(m.law) + `\b.*)`)
	if m.tests != "" {
		named = regexp.MustCompile(`(?:_test\.go:\d+: |--- FAIL: Test)(.*` + regexp.QuoteMeta(m.law) + `(?:\D.*|$))`)
	}
	for line := range strings.Lines(text) {
		line = strings.TrimSpace(line)
		if strings.HasPrefix(line, "seed ") {
			seed = line
		}
		if got := named.FindStringSubmatch(line); failed && first == "" && got != nil {
			first = got[1]
		}
	}
	if first != "" {
		return verdict{caught: true, text: strings.TrimPrefix(clip(seed+" | "+first, 150), " | ")}
	}
	return verdict{text: clip(strings.Join(strings.Fields(text), " "), 300)}
}

func clip(s string, most int) string {
	if len(s) > most {
		return s[:most] + "..."
	}
	return s
}
