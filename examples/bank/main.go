// Package main is the bank of the examples: a service that moves money between two others. It knows nothing of
// transactions: it calls one service, then the other, and when the second refuses it does not tell the first.
// Making that safe is the business of the sidecars beside it and of policy.yaml. The same program serves as
// accounts and as savings on machines without Python or Node; accounts.py and savings.mjs behave the same.
// It never retries, never undoes and never looks at a transaction header. Start at transfers.go for the root of
// the story, at ledger.go for what survives a crash.
package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"os/signal"
	"syscall"
	"time"
)

// drainMax bounds how long a stopping service waits for the requests that it still serves.
const drainMax = 10 * time.Second

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGTERM, syscall.SIGINT)
	defer stop()
	if err := run(ctx, os.Args[1:], os.Getenv, os.Stdout); err != nil {
		fmt.Fprintln(os.Stderr, "bank:", err)
		os.Exit(1)
	}
}

// run serves until ctx ends or the ledger fails. A ledger that cannot be written ends the process: whoever
// starts it again reads the file, and nobody gets an answer that is not on disk.
func run(ctx context.Context, args []string, env func(string) string, stdout io.Writer) error {
	c, err := parseConfig(args, env)
	if err != nil {
		return err
	}
	handler, broken, err := assemble(c)
	if err != nil {
		return err
	}
	l, err := net.Listen("tcp", c.listen)
	if err != nil {
		return fmt.Errorf("listen for %s: %w", c.as, err)
	}
	started := map[string]string{"service": c.as, "address": l.Addr().String()}
	if err := json.NewEncoder(stdout).Encode(started); err != nil {
		return fmt.Errorf("print the address: %w", err)
	}
	return serve(ctx, l, handler, broken)
}

// assemble builds the service that the configuration names. The channel gives the error that breaks its ledger.
func assemble(c config) (http.Handler, <-chan error, error) {
	if c.as == "transfers" {
		return newTransfers(c).handler(), nil, nil
	}
	b, err := openBook(c)
	if err != nil {
		return nil, nil, err
	}
	return newAccounts(c, b).handler(), b.file.broken, nil
}

func serve(ctx context.Context, l net.Listener, h http.Handler, broken <-chan error) error {
	srv := &http.Server{Handler: h, ReadHeaderTimeout: 10 * time.Second}
	served := make(chan error, 1)
	go func() { served <- srv.Serve(l) }()
	select {
	case err := <-served:
		return fmt.Errorf("serve: %w", err)
	case err := <-broken:
		return err
	case <-ctx.Done():
	}
	drain, cancel := context.WithTimeout(context.Background(), drainMax)
	defer cancel()
	if err := srv.Shutdown(drain); err != nil {
		return fmt.Errorf("stop with requests unanswered after %v: %w", drainMax, err)
	}
	if err := <-served; !errors.Is(err, http.ErrServerClosed) {
		return fmt.Errorf("serve: %w", err)
	}
	return nil
}
