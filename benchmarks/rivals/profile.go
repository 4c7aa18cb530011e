package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"

	"txmesh/benchmarks/profile"
)

// profiled returns what starts a CPU profile of the proxy, as long as the counted time, and what waits for it, takes one
// of what was allocated since the start of the proxy, and writes both. Other proxies than txmesh, and a run without -profile, have none.
func (b *bench) profiled(ctx context.Context, c cell, p *running, round int) (start func(), wait func() error) {
	if b.Profile == "" || p.api == "" {
		return func() {}, func() error { return nil }
	}
	name := strings.NewReplacer(" ", "-", ",", "", "/", "").Replace(fmt.Sprintf("%s, %s, %d.", p.rival.name, c, round+1))
	take := func(what, query string) error {
		return errors.Join(os.MkdirAll(b.Profile, 0o755), profile.Take(ctx, p.api, secret, what+query, filepath.Join(b.Profile, name+what)))
	}
	done := make(chan error, 1)
	start = func() {
		go func() { done <- take("profile", fmt.Sprintf("?seconds=%d", max(int(b.plan.window.Seconds()), 1))) }()
	}
	return start, func() error { return errors.Join(<-done, take("allocs", "")) }
}
