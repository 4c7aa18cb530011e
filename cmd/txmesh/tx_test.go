package main

import (
	"context"
	"fmt"
	"log/slog"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/rogpeppe/go-internal/testscript"

	"txmesh/interceptor"
	"txmesh/sidecar/admin"
	"txmesh/sidecar/engine"
	"txmesh/txlog/memory"
	"txmesh/txn"
)

// TestTxCommands runs the scripts of testdata/tx against the API of a sidecar with these transactions:
// done is committed, stuck has one undo that was refused, twice has two, open waits for an answer.
func TestTxCommands(t *testing.T) {
	testscript.Run(t, testscript.Params{Dir: "testdata/tx", UpdateScripts: os.Getenv("UPDATE_SCRIPTS") != "",
		Setup: func(env *testscript.Env) error {
			token := filepath.Join(env.WorkDir, "token")
			if err := os.WriteFile(token, []byte("the token of this test\n"), 0o600); err != nil {
				return err
			}
			api, err := newTestAPI(env)
			env.Setenv("API", api)
			env.Setenv("TOKEN", token)
			return err
		}})
}

// TestDemoCommand runs the scripts of testdata/demo: what the demonstration says when it cannot run. That it runs is
// the business of tests/e2e.
func TestDemoCommand(t *testing.T) {
	testscript.Run(t, testscript.Params{Dir: "testdata/demo", Setup: func(env *testscript.Env) error {
		ours, _, _ := strings.Cut(env.Getenv("PATH"), string(filepath.ListSeparator)) // where txmesh is, and nothing else
		env.Setenv("OURS", ours)
		env.Setenv("GOCACHE", filepath.Join(env.WorkDir, "cache"))
		return nil
	}})
}

// refuser answers every undo as a service does that cannot.
type refuser struct{}

func (refuser) Call(_ context.Context, c txn.Call) (txn.Outcome, []byte, string) {
	if c.Op == txn.Undo {
		return txn.Refused, nil, "answered 404"
	}
	return txn.OK, nil, ""
}

func newTestAPI(env *testscript.Env) (string, error) {
	store := memory.New(memory.Options{Owner: "TESTOWNER0000"})
	e, err := engine.New(engine.Config{Store: store, Owner: store.Owner(), Caller: refuser{}})
	if err == nil {
		err = e.Start(context.Background())
	}
	if err != nil {
		return "", err
	}
	env.Defer(func() { _ = e.Close() }) // the test is over
	keys, err := interceptor.NewKeys([]byte("a secret of this test"))
	if err != nil {
		return "", err
	}
	server := httptest.NewServer(admin.New(admin.Options{Service: "bank/transfers", Engine: e, Journal: store, Keys: keys,
		Token: "the token of this test", Ready: func() []string { return nil }, Metrics: http.NotFoundHandler(),
		CommitWait: time.Millisecond, TimeoutDefault: time.Minute, Log: slog.New(slog.DiscardHandler)}))
	env.Defer(server.Close)
	for _, t := range []struct {
		id       txn.ID
		branches int
		outcome  txn.Outcome
		decide   *txn.Decide
		end      txn.Phase
	}{
		{"TESTOWNER0000.done", 2, txn.OK, &txn.Decide{Commit: true}, txn.Committed},
		{"TESTOWNER0000.stuck", 1, txn.OK, &txn.Decide{Reason: "aborted over the API"}, txn.Stuck},
		{"TESTOWNER0000.twice", 2, txn.OK, &txn.Decide{Reason: "aborted over the API"}, txn.Stuck},
		{"TESTOWNER0000.open", 1, txn.None, nil, txn.Open},
	} {
		if err := begin(e, t.id, t.branches, t.outcome, t.decide, t.end); err != nil {
			return "", fmt.Errorf("%s: %w", t.id, err)
		}
	}
	return strings.TrimPrefix(server.URL, "http://"), nil
}

// begin drives one transaction to where a script finds it.
func begin(e *engine.Engine, id txn.ID, branches int, answer txn.Outcome, decide *txn.Decide, end txn.Phase) error {
	ctx, cancel := context.WithTimeout(context.Background(), 10*time.Second)
	defer cancel()
	events := []txn.Event{txn.Begin{Spec: txn.Spec{ID: id, Mode: txn.Explicit, Plan: txn.Explicit.Plan(),
		Name: "checkout", Timeout: time.Hour}}}
	for i := range branches {
		note := interceptor.BranchNote{Rule: "withdraw", Service: "bank/accounts"}
		b := txn.Branch{Name: "withdraw", Key: fmt.Sprint(i), Note: note.Encode()}
		b.Ops[txn.Undo] = []byte{'+'}
		events = append(events, txn.Enlist{Branch: b, Calling: true})
	}
	if answer != txn.None {
		for i := range branches {
			events = append(events, txn.Returned{Branch: fmt.Sprint(i), Op: txn.Forward, Outcome: answer})
		}
	}
	if decide != nil {
		events = append(events, *decide)
	}
	for _, ev := range events {
		if _, err := e.Do(ctx, id, ev); err != nil {
			return err
		}
	}
	_, err := e.Wait(ctx, id, func(st txn.State) bool {
		halted := 0
		for _, b := range st.Branches {
			if b.Known[txn.Undo].Halted {
				halted++
			}
		}
		return st.Phase == end && (end != txn.Stuck || halted == branches)
	})
	return err
}

func TestAgeIsShort(t *testing.T) {
	for _, tt := range []struct {
		in   time.Duration
		want string
	}{
		{-time.Second, "0s"},
		{1234 * time.Millisecond, "1.2s"},
		{61 * time.Second, "1m01s"},
		{90 * time.Minute, "1h30m"},
		{72 * time.Hour, "3d"},
	} {
		if got := age(tt.in); got != tt.want {
			t.Errorf("age(%v) = %q, want %q", tt.in, got, tt.want)
		}
	}
}

func TestScreenFollowsTheEnvironment(t *testing.T) {
	for _, tt := range []struct {
		name string
		env  map[string]string
		want bool
	}{
		{"nothing said", nil, false},
		{"the letters of old", map[string]string{"LANG": "C"}, true},
		{"unicode", map[string]string{"LANG": "de_DE.UTF-8"}, false},
		{"the stronger variable", map[string]string{"LC_ALL": "POSIX", "LANG": "de_DE.UTF-8"}, true},
	} {
		t.Run(tt.name, func(t *testing.T) {
			if got := newScreen(&strings.Builder{}, func(k string) string { return tt.env[k] }); got.ascii != tt.want || got.colour {
				t.Errorf("newScreen(%v) = %+v, want ascii %v and no colour", tt.env, got, tt.want)
			}
		})
	}
}
