package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strings"
	"time"
)

// programs is what the demonstration starts.
type programs struct {
	bank    string // directory of examples/bank
	goBank  string // its Go program
	sidecar string
	python  string // empty: not found
	node    string // empty: not found
}

// module is the name of ours in go.mod.
const module = "txmesh"

// findPrograms finds the source tree and the interpreters, and builds what is not given.
func findPrograms(ctx context.Context, s *screen, o demoOptions, dir string) (programs, error) {
	source, err := findSource(ctx, o.source)
	if err != nil {
		return programs{}, err
	}
	p := programs{bank: filepath.Join(source, "examples", "bank")}
	p.python, p.node = lookPath("python3"), lookPath("node")
	var build []string
	find := func(name, pkg string) string {
		if path, err := filepath.Abs(filepath.Join(o.bin, name+exe())); err == nil && o.bin != "" && isFile(path) {
			return path
		}
		build = append(build, pkg)
		return filepath.Join(dir, "bin", name+exe())
	}
	p.sidecar = find("txmesh-sidecar", "./cmd/txmesh-sidecar")
	p.goBank = find("bank", "./examples/bank")
	if len(build) == 0 {
		return p, nil
	}
	return p, goBuild(ctx, s, source, filepath.Join(dir, "bin"), build)
}

// findSource returns the root of the source tree.
func findSource(ctx context.Context, named string) (string, error) {
	const remedy = "run it in the source tree of txmesh, or name that with --source DIR"
	root := named
	if root == "" {
		out, err := exec.CommandContext(ctx, "go", "env", "GOMOD").Output()
		if err != nil {
			return "", fmt.Errorf("ask go for the source tree: %w; install Go, and %s", err, remedy)
		}
		root = filepath.Dir(strings.TrimSpace(string(out)))
	}
	root, err := filepath.Abs(root)
	if err != nil {
		return "", fmt.Errorf("source tree %q: %w", named, err)
	}
	mod, err := os.ReadFile(filepath.Join(root, "go.mod"))
	first, _, _ := strings.Cut(string(mod), "\n")
	switch {
	case err != nil && !errors.Is(err, os.ErrNotExist):
		return "", fmt.Errorf("read the source tree: %w; %s", err, remedy)
	case err != nil || strings.TrimSpace(first) != "module "+module:
		return "", fmt.Errorf("%s is not the source tree of txmesh; %s", root, remedy)
	}
	return root, nil
}

func goBuild(ctx context.Context, s *screen, source, into string, packages []string) error {
	began := time.Now()
	s.say("  building %s; the first time this takes a minute", strings.Join(packages, " and "))
	if err := os.MkdirAll(into, 0o700); err != nil {
		return fmt.Errorf("build: %w", err)
	}
	c := exec.CommandContext(ctx, "go", append([]string{"build", "-trimpath", "-o", into + string(filepath.Separator)}, packages...)...)
	c.Dir = source
	if out, err := c.CombinedOutput(); err != nil {
		if ctx.Err() != nil {
			return ctx.Err()
		}
		return fmt.Errorf("go build %s: %w\n%s\ncorrect that, or check that modules can be downloaded with `go mod download`",
			strings.Join(packages, " "), err, strings.TrimSpace(string(out)))
	}
	s.say("  built in %s", took(time.Since(began)))
	return nil
}

func lookPath(name string) string {
	path, err := exec.LookPath(name)
	if err != nil {
		return ""
	}
	return path
}

func isFile(path string) bool {
	info, err := os.Stat(path)
	return err == nil && info.Mode().IsRegular()
}

func exe() string {
	if runtime.GOOS == "windows" {
		return ".exe"
	}
	return ""
}
