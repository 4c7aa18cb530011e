package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"runtime"
	"runtime/debug"
	"strings"
	"time"
)

// lookPath also looks where Debian has what is for administrators.
func lookPath(name string) (string, error) {
	path, err := exec.LookPath(name)
	if err == nil || strings.Contains(name, "/") {
		return path, err
	}
	return exec.LookPath(filepath.Join("/usr/sbin", name))
}

// printed asks a program for its version.
func printed(name string, args ...string) func(context.Context) (string, error) {
	return func(ctx context.Context) (string, error) {
		path, err := lookPath(name)
		if err != nil {
			return "", fmt.Errorf("%w; benchmarks/rivals/install.sh installs it", err)
		}
		out, err := exec.CommandContext(ctx, path, args...).CombinedOutput()
		if err != nil {
			return "", fmt.Errorf("%s %s: %w: %s", name, strings.Join(args, " "), err, out)
		}
		line, _, _ := strings.Cut(strings.TrimSpace(string(out)), "\n")
		if v := regexp.MustCompile(`\d+\.\d+\.\d+[-+~\w.]*`).FindString(line); v != "" {
			return v, nil
		}
		return line[strings.LastIndexByte(line, ' ')+1:], nil
	}
}

func (b *bench) origin(context.Context) (string, error) { return runtime.Version(), nil }

func (b *bench) fasthttp(context.Context) (string, error) {
	info, ok := debug.ReadBuildInfo()
	if ok {
		for _, d := range info.Deps {
			if d.Path == "github.com/valyala/fasthttp" {
				return d.Version, nil
			}
		}
	}
	return "", errors.New("this program does not know its modules")
}

// find learns which proxies are here, and which serve what, by trying.
func (b *bench) find(ctx context.Context) error {
	for _, r := range b.rivals() {
		if !b.wanted(r.name) {
			continue
		}
		v, err := r.version(ctx)
		if err != nil {
			b.leaveOut("%s: %v", r.name, err)
			continue
		}
		b.known[r.name] = v
		b.present = append(b.present, r)
	}
	var took time.Duration
	var tried int
	for _, p := range []protocol{http1, grpc} {
		for _, r := range b.present {
			begun := time.Now()
			err := b.with(ctx, r, p, func(*running) error { return nil })
			if ctx.Err() != nil {
				return ctx.Err()
			}
			if err != nil {
				b.leaveOut("%s, %s: not served: %v", r.name, p, err)
				continue
			}
			took, tried = took+time.Since(begun), tried+1
			b.served[p] = append(b.served[p], r)
			say("%s, %s: served by %s", r.name, p, b.known[r.name])
		}
	}
	if tried == 0 {
		return errors.New("nothing can be measured: no way to the server is served")
	}
	b.plan = plan{overhead: took / time.Duration(tried)}
	return nil
}

func (b *bench) leaveOut(format string, args ...any) {
	line := fmt.Sprintf(format, args...)
	b.missing = append(b.missing, line)
	say("LEFT OUT: %s", line)
}

func revision(ctx context.Context) string {
	out, err := exec.CommandContext(ctx, "git", "describe", "--tags", "--always", "--dirty").Output()
	if err != nil {
		return "unknown"
	}
	return strings.TrimSpace(string(out))
}

func loadAverage() string {
	text, err := os.ReadFile("/proc/loadavg")
	if err != nil {
		return "unknown"
	}
	return strings.Fields(string(text))[0]
}
