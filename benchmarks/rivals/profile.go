package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"os"
	"path/filepath"
	"strings"
)

// profiled returns what starts a CPU profile of the proxy, as long as the counted time, and what waits for it, takes one
// of what was allocated since the start of the proxy, and writes both. Other proxies than txmesh, and a run without -profile, have none.
func (b *bench) profiled(ctx context.Context, c cell, p *running, round int) (start func(), wait func() error) {
	if b.Profile == "" || p.api == "" {
		return func() {}, func() error { return nil }
	}
	name := strings.NewReplacer(" ", "-", ",", "", "/", "").Replace(fmt.Sprintf("%s, %s, %d.", p.rival.name, c, round+1))
	take := func(what, query string) error {
		return b.takeProfile(ctx, "http://"+p.api+"/debug/pprof/"+what+query, filepath.Join(b.Profile, name+what))
	}
	done := make(chan error, 1)
	start = func() {
		go func() { done <- take("profile", fmt.Sprintf("?seconds=%d", max(int(b.plan.window.Seconds()), 1))) }()
	}
	return start, func() error { return errors.Join(<-done, take("allocs", "")) }
}

func (b *bench) takeProfile(ctx context.Context, url, file string) error {
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, url, nil)
	if err != nil {
		return err
	}
	req.Header.Set("Authorization", "Bearer "+secret)
	res, err := http.DefaultClient.Do(req)
	if err != nil {
		return err
	}
	data, err := io.ReadAll(res.Body)
	if err = errors.Join(err, res.Body.Close()); err != nil {
		return err
	}
	if res.StatusCode != http.StatusOK {
		return fmt.Errorf("profile: status %d: %s", res.StatusCode, data)
	}
	if err := os.MkdirAll(b.Profile, 0o755); err != nil {
		return err
	}
	return os.WriteFile(file, data, 0o600)
}
