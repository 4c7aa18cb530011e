// Package main is the first quick start of DTM, at a sidecar instead of a DTM server: a bank in memory, and a saga that
// moves 30 from user 1 to user 2, once with success and once refused by TransIn. It prints each call and the balances,
// and ends with 0 only if all are right. It needs Go and nothing else. Start at quickstart.run.
package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"io"
	"os"
	"os/signal"
	"slices"
	"strings"
	"syscall"
	"time"

	"txmesh/sdk/dtm"
)

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGTERM, syscall.SIGINT)
	err := run(ctx, os.Args[1:], os.Stdout)
	stop()
	if errors.Is(err, flag.ErrHelp) {
		return
	}
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
}

func run(ctx context.Context, args []string, out io.Writer) (err error) {
	flags := flag.NewFlagSet("dtm-quickstart", flag.ContinueOnError)
	server := flags.String("server", "", "base URL of a running door, such as http://localhost:36789/api/dtmsvr; empty: build a sidecar and start it")
	listen := flags.String("listen", "127.0.0.1:8082", "where the bank listens, if that is free")
	if err := flags.Parse(args); err != nil {
		return err
	}
	if *server == "" {
		s, err := startSidecar(ctx)
		if err != nil {
			return err
		}
		defer func() { err = errors.Join(err, s.stop()) }()
		*server = "http://" + s.address + "/api/dtmsvr"
	}
	b := newBank()
	url, closeBank, err := b.serve(*listen)
	if err != nil {
		return err
	}
	defer closeBank()
	q := quickstart{door: dtm.Client{Server: *server}, bank: b, url: url, out: out}
	return q.run(ctx)
}

// quickstart is one run against one door.
type quickstart struct {
	door dtm.Client
	bank *bank
	url  string // of the bank's handlers
	out  io.Writer
}

// expected is how a saga must end.
type expected struct {
	status   string
	calls    []string
	balances string
}

func (q quickstart) run(ctx context.Context) error {
	fmt.Fprintf(q.out, "door %s, bank %s\nbefore: %s\n", q.door.Server, q.url, q.bank.balances())
	fmt.Fprintln(q.out, "\nTransIn succeeds")
	err := q.transfer(ctx, expected{dtm.StatusSucceed, []string{"TransOut", "TransIn"}, "user 1 has 70, user 2 has 130"})
	if err != nil {
		return err
	}
	fmt.Fprintln(q.out, "\nTransIn answers FAILURE")
	q.bank.refuse()
	return q.transfer(ctx, expected{dtm.StatusFailed, []string{"TransOut", "TransIn", "TransInCompensate", "TransOutCompensate"},
		"user 1 has 70, user 2 has 130"})
}

// transfer is the saga of the first quick start.
func (q quickstart) transfer(ctx context.Context, want expected) error {
	const endMax = 30 * time.Second
	ctx, stop := context.WithTimeout(ctx, endMax)
	defer stop()
	gid, err := q.door.NewGID(ctx)
	if err != nil {
		return err
	}
	saga := dtm.NewSaga(q.door.Server, gid).
		Add(q.url+"/TransOut", q.url+"/TransOutCompensate", map[string]int{"amount": 30}).
		Add(q.url+"/TransIn", q.url+"/TransInCompensate", map[string]int{"amount": 30})
	saga.WaitResult = true
	if err := saga.Submit(ctx); err != nil && !errors.Is(err, dtm.ErrFailure) {
		return err
	}
	status, err := q.end(ctx, gid)
	if err != nil {
		return err
	}
	calls, balances := q.bank.flush(), q.bank.balances()
	for _, c := range calls {
		fmt.Fprintln(q.out, "  "+c)
	}
	fmt.Fprintf(q.out, "saga %s: %s\nafter: %s\n", gid, status, balances)
	if status != want.status || balances != want.balances || !slices.Equal(names(calls), want.calls) {
		return fmt.Errorf("saga %s: it is %s, %s after %v; it should be %s, %s after %v", gid, status, balances, names(calls),
			want.status, want.balances, want.calls)
	}
	return nil
}

// names are the handlers that were called, without what they did.
func names(calls []string) []string {
	var all []string
	for _, c := range calls {
		name, _, _ := strings.Cut(c, ":")
		all = append(all, name)
	}
	return all
}

// end waits for the end of a saga: that Submit has returned does not say that it has one.
func (q quickstart) end(ctx context.Context, gid string) (string, error) {
	const pause = 20 * time.Millisecond
	for {
		t, err := q.door.Query(ctx, gid)
		if err != nil || t.Final() {
			return t.Status, err
		}
		select {
		case <-ctx.Done():
			return "", fmt.Errorf("saga %s is %s and does not end: %w", gid, t.Status, ctx.Err())
		case <-time.After(pause):
		}
	}
}
