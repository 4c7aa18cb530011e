// Package main is the control plane: one process that hands out policies, peers and certificates to the sidecars of a
// mesh. It reads the configuration, runs a replica and tells on standard output where it listens. Everything else is in
// package controlplane.
package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"os"
	"slices"
	"sync"

	"txmesh/cmd/internal/memory"
	"txmesh/cmd/internal/signals"
	"txmesh/controlplane"
)

// version is set by the linker.
var version = "unknown"

func main() {
	if err := run(signals.Context(), os.Args[1:], os.Environ(), os.Stdout, os.Stderr); err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
}

func run(ctx context.Context, args, environ []string, stdout, stderr io.Writer) (err error) {
	if slices.Equal(args, []string{"--version"}) {
		fmt.Fprintln(stdout, "txmesh-controlplane", version)
		return nil
	}
	cfg, err := controlplane.Load(args, environ, func(text string) { fmt.Fprint(stdout, text) })
	if errors.Is(err, controlplane.ErrHelp) {
		return nil
	}
	if err != nil {
		return err
	}
	memory.Limit(cfg.MemoryLimit, gcPercent)
	c, err := controlplane.New(cfg, version, logger(cfg, stderr))
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, c.Close()) }()
	running, end := context.WithCancel(ctx)
	var loops sync.WaitGroup
	defer loops.Wait()
	defer end()
	loops.Go(func() { memory.GiveBack(running) })
	return c.Run(ctx, func(a controlplane.Addresses) {
		// Whoever started this process and does not read its output has chosen fixed ports.
		_ = json.NewEncoder(stdout).Encode(a)
	})
}

// gcPercent is how much garbage may gather beside what lives, in percent: what lives is mostly idle streams, and the
// garbage of a change for all of them is short-lived.
const gcPercent = 50

func logger(cfg controlplane.Config, w io.Writer) *slog.Logger {
	var level slog.Level
	if err := level.UnmarshalText([]byte(cfg.LogLevel)); err != nil {
		panic("log level that was checked: " + err.Error())
	}
	opt := &slog.HandlerOptions{Level: level}
	if cfg.LogFormat == "text" {
		return slog.New(slog.NewTextHandler(w, opt))
	}
	return slog.New(slog.NewJSONHandler(w, opt))
}
