// Package main is the data plane: one process beside one application. It reads the configuration, runs a sidecar
// and tells on standard output where it listens. Everything else is in package sidecar.
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
	"txmesh/cmd/internal/processors"
	"txmesh/cmd/internal/signals"
	"txmesh/sidecar"
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
		fmt.Fprintln(stdout, "txmesh-sidecar", version)
		return nil
	}
	if len(args) > 0 && args[0] == redirectCommand {
		return writeRules(args[1:], stdout)
	}
	cfg, err := sidecar.Load(args, environ, func(text string) { fmt.Fprint(stdout, text) })
	if errors.Is(err, sidecar.ErrHelp) {
		return nil
	}
	if err != nil {
		return err
	}
	memory.Limit(cfg.MemoryLimit, gcPercent(cfg))
	s, err := sidecar.New(cfg, version, logger(cfg, stderr))
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, s.Close()) }()
	running, end := context.WithCancel(ctx)
	var loops sync.WaitGroup
	defer loops.Wait()
	defer end()
	loops.Go(func() { memory.GiveBack(running) })
	loops.Go(func() { processors.Spare(running) })
	return s.Run(ctx, func(a sidecar.Addresses) {
		// Whoever started this process and does not read its output has chosen fixed ports.
		_ = json.NewEncoder(stdout).Encode(a)
	})
}

// How much garbage may gather beside what lives, in percent. Beside an application a small heap is worth some work of
// the collector; a server of its own may use its memory-limit.
const (
	gcPercentBeside = 50
	gcPercentAlone  = 400
)

func gcPercent(cfg sidecar.Config) int {
	if cfg.Alone() {
		return gcPercentAlone
	}
	return gcPercentBeside
}

func logger(cfg sidecar.Config, w io.Writer) *slog.Logger {
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
