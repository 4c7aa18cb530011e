package main

import (
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"net/url"
	"os"
	"slices"
	"time"

	"github.com/spf13/cobra"

	"txmesh/cmd/txmesh/takeover"
)

// errStays ends a migration that could not take every unfinished transaction. The findings have been printed.
var errStays = errors.New("transactions stay where they are")

// migrateFlags are those of `migrate dtm`.
type migrateFlags struct {
	from, to, tokenFile string
	since               time.Duration
	apply               bool
	journal             string
	sourceStopped       bool
	clientsStopped      bool
}

func newMigrateCommand() *cobra.Command {
	c := &cobra.Command{Use: "migrate", Short: "Take transactions of another system over"}
	c.AddCommand(newMigrateDTMCommand())
	return c
}

func newMigrateDTMCommand() *cobra.Command {
	var f migrateFlags
	c := &cobra.Command{
		Use:   "dtm --from SOURCE",
		Short: "Take the transactions of a server of DTM over; without --apply, only say what would be done",
		Long: `dtm reads the unfinished transactions of a server of DTM, and the finished ones of --since, from the server itself
(http://dtm:36789) or, better, from its tables once it is stopped (mysql://user@host:3306/dtm; the password may be in
MYSQL_PWD). Without --apply nothing is changed anywhere. With it, each transaction is written into --journal, stopped at
a running server, and goes on at the sidecar, whose door for clients of DTM must be open: what is done is not done again.
After a crash or an error, run the same command again: it goes on from the journal. docs/guide/migrate-dtm.md has the
steps, and the way back.

Exit status: 0 if every unfinished transaction goes, or has gone; 2 if some stay, which are printed with the reason; 1 if
it could not be carried out, for example because a server did not answer.`,
		Example: `  txmesh migrate dtm --from http://dtm:36789
  txmesh migrate dtm --from 'mysql://root@db:3306/dtm?loc=Asia/Shanghai' --source-stopped --apply`,
		Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error { return f.run(cmd) },
	}
	c.Flags().StringVar(&f.from, "from", "", "the server of DTM, http://host:port, or its tables, mysql://user@host:port/database?loc=ZONE&tls=true; required")
	c.Flags().StringVar(&f.to, "to", cmp.Or(os.Getenv("TXMESH_API"), "127.0.0.1:15820"), "address of the sidecar's API [TXMESH_API]")
	c.Flags().StringVar(&f.tokenFile, "token-file", os.Getenv("TXMESH_TOKEN_FILE"), "file with the API's token [TXMESH_TOKEN_FILE]")
	c.Flags().DurationVar(&f.since, "since", 24*time.Hour, "keep finished transactions that began within this time, so that a repeated submit finds them; 0: none")
	c.Flags().BoolVar(&f.apply, "apply", false, "do it; without this flag nothing is changed")
	c.Flags().StringVar(&f.journal, "journal", "txmesh-migrate.jsonl", "file that says how far the takeover has come; keep it until all has ended")
	c.Flags().BoolVar(&f.sourceStopped, "source-stopped", false, "your word that no server of DTM works on the tables; required with mysql and --apply")
	c.Flags().BoolVar(&f.clientsStopped, "clients-stopped", false, "your word that no client submits or aborts at the running server any more: open tcc and xa transactions go too")
	return c
}

// source is a takeover.Source with what the command needs besides.
type source struct {
	takeover.Source
	shown string
	mark  func(ctx context.Context) (map[string]string, error) // of tables
	close func() error
}

func (f *migrateFlags) open() (*source, error) {
	u, err := url.Parse(f.from)
	if err != nil || u.Host == "" {
		return nil, fmt.Errorf("--from %q: write http://host:port of the server, or mysql://user@host:port/database of its tables", f.from)
	}
	switch u.Scheme {
	case "http", "https":
		if f.sourceStopped {
			return nil, errors.New("--source-stopped is for tables: a server that answers is not stopped")
		}
		base := u.Scheme + "://" + u.Host
		return &source{&takeover.Server{Base: base, Client: &http.Client{Timeout: apiTimeout}}, base, nil, func() error { return nil }}, nil
	case "mysql":
		if f.apply && !f.sourceStopped {
			return nil, errors.New("--source-stopped is missing: stop every server of DTM that works on these tables, then say so with it")
		}
		tables, err := takeover.OpenTables(u, os.Getenv("MYSQL_PWD"))
		if err != nil {
			return nil, fmt.Errorf("--from %s: %w", u.Redacted(), err)
		}
		return &source{tables, "mysql://" + u.Host + u.Path, tables.Mark, tables.Close}, nil
	}
	return nil, fmt.Errorf("--from %s: scheme %q is neither http nor mysql", u.Redacted(), u.Scheme)
}

func (f *migrateFlags) run(cmd *cobra.Command) (err error) {
	if f.since < 0 {
		return fmt.Errorf("--since %v is negative; write for example 24h", f.since)
	}
	from, err := f.open()
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, from.close()) }()
	api, err := newAPIClient(f.to, f.tokenFile)
	if err != nil {
		return err
	}
	m := &takeover.Migration{Source: from, Target: apiTarget{api}, Since: time.Now().Add(-f.since), ClientsStopped: f.clientsStopped}
	s := newScreen(cmd.OutOrStdout(), os.Getenv)
	s.say("from  %s", from.shown)
	s.say("to    %s\n", api.base)
	if !f.apply {
		items, err := m.Plan(cmd.Context())
		if err != nil {
			return err
		}
		printPlan(s, items)
		return stays(items)
	}
	return f.take(cmd.Context(), m, from, api.base, s)
}

// take applies the migration.
func (f *migrateFlags) take(ctx context.Context, m *takeover.Migration, from *source, to string, s *screen) (err error) {
	var before map[string]string
	if from.mark != nil {
		if before, err = quiet(ctx, from, s); err != nil {
			return err
		}
	}
	j, err := takeover.OpenJournal(f.journal, from.shown, to)
	if err != nil {
		return fmt.Errorf("--journal: %w", err)
	}
	defer func() { err = errors.Join(err, j.Close()) }()
	var items []takeover.Item
	err = m.Apply(ctx, j, func(i takeover.Item) { items = append(items, i) })
	printTaken(s, items, f.journal, f.to)
	if err != nil {
		return fmt.Errorf("%w; nothing is lost: remove the cause and run the same command again", err)
	}
	if from.mark != nil {
		after, err := from.mark(ctx)
		if err != nil {
			return err
		}
		if gid := differs(before, after); gid != "" {
			return fmt.Errorf("the tables have changed meanwhile, at transaction %s: a server of DTM works on them; stop it now, for it may call what the sidecar calls too", gid)
		}
	}
	return stays(items)
}

// quietFor is longer than a server of DTM waits before it looks for work.
const quietFor = 4 * time.Second

// quiet watches the tables for a while: whoever works on them has not been stopped.
func quiet(ctx context.Context, from *source, s *screen) (map[string]string, error) {
	before, err := from.mark(ctx)
	if err != nil {
		return nil, err
	}
	s.say("watching the tables for %v: is the server really stopped?\n", quietFor)
	select {
	case <-ctx.Done():
		return nil, ctx.Err()
	case <-time.After(quietFor):
	}
	after, err := from.mark(ctx)
	if err != nil {
		return nil, err
	}
	if gid := differs(before, after); gid != "" {
		return nil, fmt.Errorf("the tables change, at transaction %s: a server of DTM works on them; stop it first, nothing was taken over", gid)
	}
	return after, nil
}

// differs returns a key whose values differ.
func differs(a, b map[string]string) string {
	for _, m := range []map[string]string{a, b} {
		for gid := range m {
			x, inA := a[gid]
			y, inB := b[gid]
			if x != y || inA != inB {
				return gid
			}
		}
	}
	return ""
}

// stays reports whether an unfinished transaction does not go. Finished ones that stay are only missed as history.
func stays(items []takeover.Item) error {
	if slices.ContainsFunc(items, func(i takeover.Item) bool { return i.Why != "" && !i.Finished() }) {
		return errStays
	}
	return nil
}

// apiTarget is the sidecar.
type apiTarget struct{ api *apiClient }

// codeForeign is the code of what cannot be taken over.
const codeForeign = "TXM0317"

// TakeOver implements takeover.Target.
func (t apiTarget) TakeOver(ctx context.Context, s takeover.Snapshot, dryRun bool) (takeover.Verdict, error) {
	text, err := t.api.call(ctx, http.MethodPost, fmt.Sprintf("/v1/takeovers/dtm?dry-run=%t", dryRun), s)
	if refused, ok := errors.AsType[*apiError](err); ok && refused.Code == codeForeign {
		return takeover.Verdict{}, fmt.Errorf("%w: %s", takeover.ErrRefused, refused.Detail)
	}
	if err != nil {
		return takeover.Verdict{}, err
	}
	var v takeover.Verdict
	if err := json.Unmarshal(text, &v); err != nil {
		return v, fmt.Errorf("read the answer of the API: %w", err)
	}
	return v, nil
}
