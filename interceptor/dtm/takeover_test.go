package dtm

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"iter"
	"log/slog"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"txmesh/interceptor"
	"txmesh/sidecar/engine"
	"txmesh/txlog/memory"
	"txmesh/txn"
)

// service takes every call and notes it: done calls succeed at once.
type service struct {
	mu    sync.Mutex // guards calls
	calls []string
}

func (s *service) Call(_ context.Context, c txn.Call) (txn.Outcome, []byte, string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	word := wordOf(typeOf(c.Mode), c.Op)
	if c.Branch == "" {
		word = "ask"
	}
	s.calls = append(s.calls, strings.TrimSpace(word+" "+c.Branch))
	if string(c.Target) == "http://b/hangs" {
		return txn.Pending, nil, ""
	}
	return txn.OK, nil, ""
}

// nothing is an empty table, and a chronicle without stories.
type nothing struct{ rows map[string][]byte }

func (n nothing) Get(_ context.Context, key string) ([]byte, bool, error) {
	v, ok := n.rows[key]
	return v, ok, nil
}

func (n nothing) Put(_ context.Context, key string, value []byte) error {
	n.rows[key] = value
	return nil
}

func (nothing) Scan(context.Context, string) iter.Seq2[Row, error] {
	return func(func(Row, error) bool) {}
}

func newDoor(t *testing.T) (*Service, *service) {
	t.Helper()
	calls := &service{}
	e, err := engine.New(engine.Config{Store: memory.New(memory.Options{}), Caller: calls})
	if err == nil {
		err = e.Start(t.Context())
	}
	if err != nil {
		t.Fatal(err)
	}
	door := New(Options{Engine: e, Rows: nothing{map[string][]byte{}}, Now: time.Now, Log: slog.New(slog.DiscardHandler), BodyMax: 1 << 20,
		Defaults: Defaults{TimeoutToFail: 35 * time.Second, RetryInterval: time.Second, RetryMax: time.Minute,
			RequestTimeout: 3 * time.Second, ResumeAfter: 10 * time.Second}})
	t.Cleanup(func() {
		door.Close()
		if err := e.Close(); err != nil {
			t.Error(err)
		}
	})
	return door, calls
}

// query writes what a server answers to query: rows are "branch op status", options as a server with tables keeps them.
func query(transType, status string, age time.Duration, more string, rows ...string) []byte {
	var bs []map[string]string
	for _, r := range rows {
		f := strings.Fields(r)
		url := "http://b/" + f[1]
		if len(f) > 3 {
			url = f[3]
		}
		bs = append(bs, map[string]string{"gid": "g", "branch_id": f[0], "op": f[1], "status": f[2], "url": url, "bin_data": "eyJ4IjoxfQ=="})
	}
	text, err := json.Marshal(bs)
	if err != nil {
		panic(err)
	}
	if bs == nil {
		text = []byte("[]")
	}
	return fmt.Appendf(nil, `{"transaction":{"id":7,"gid":"g","trans_type":%q,"status":%q,"create_time":%q,"protocol":"http"%s},"branches":%s}`,
		transType, status, time.Now().Add(-age).Format(time.RFC3339Nano), more, text)
}

// Each type in each status goes on where it was: what is done is not called again, what is not is called, in DTM's order.
func TestEachTypeInEachStatusGoesOn(t *testing.T) {
	ask := `,"query_prepared":"http://b/ask"`
	for _, tt := range []struct {
		name   string
		body   []byte
		done   int
		left   int
		calls  string // until it ends, or waits
		status string // then
	}{
		{"saga submitted, nothing done", query("saga", "submitted", 0, "", "01 compensate prepared", "01 action prepared", "02 compensate prepared", "02 action prepared"),
			0, 2, "action 01, action 02", "succeed"},
		{"saga submitted, the first done", query("saga", "submitted", 0, "", "01 compensate prepared", "01 action succeed", "02 compensate prepared", "02 action prepared"),
			1, 1, "action 02", "succeed"},
		{"saga submitted, refused just now", query("saga", "submitted", 0, "", "01 compensate prepared", "01 action succeed", "02 compensate prepared", "02 action failed", "03 compensate prepared", "03 action prepared"),
			0, 2, "compensate 02, compensate 01", "failed"},
		{"saga submitted, its time over", query("saga", "submitted", time.Minute, `,"options":"{\"timeout_to_fail\":30}"`, "01 compensate prepared", "01 action succeed", "02 compensate prepared", "02 action prepared", "03 compensate prepared", "03 action prepared"),
			0, 2, "compensate 02, compensate 01", "failed"},
		{"saga aborting", query("saga", "aborting", 0, `,"rollback_reason":"no money"`, "01 compensate prepared", "01 action succeed", "02 compensate succeed", "02 action failed", "03 compensate prepared", "03 action prepared"),
			1, 1, "compensate 01", "failed"},
		{"saga aborting, a graph", query("saga", "aborting", 0, `,"custom_data":"{\"concurrent\":true,\"orders\":{\"2\":[0,1]}}"`, "01 compensate prepared", "01 action succeed", "02 compensate succeed", "02 action failed", "03 compensate prepared", "03 action prepared"),
			1, 1, "compensate 01", "failed"},
		{"saga succeed", query("saga", "succeed", 0, "", "01 compensate prepared", "01 action succeed"), 1, 0, "", "succeed"},
		{"saga failed", query("saga", "failed", 0, "", "01 compensate succeed", "01 action succeed", "02 compensate succeed", "02 action failed"), 2, 0, "", "failed"},
		{"tcc prepared", query("tcc", "prepared", 0, "", "01 cancel prepared", "01 confirm prepared"), 0, 1, "", "prepared"},
		{"tcc prepared, its time over", query("tcc", "prepared", time.Minute, "", "01 cancel prepared", "01 confirm prepared", "02 cancel prepared", "02 confirm prepared"),
			0, 2, "cancel 02, cancel 01", "failed"},
		{"tcc submitted", query("tcc", "submitted", time.Minute, "", "01 cancel prepared", "01 confirm prepared", "02 cancel prepared", "02 confirm succeed", "0101 cancel prepared", "0101 confirm succeed"),
			2, 1, "confirm 01", "succeed"},
		{"tcc aborting", query("tcc", "aborting", 0, "", "01 cancel prepared", "01 confirm prepared", "02 cancel succeed", "02 confirm prepared"), 1, 1, "cancel 01", "failed"},
		{"tcc succeed", query("tcc", "succeed", 0, "", "01 cancel prepared", "01 confirm succeed"), 1, 0, "", "succeed"},
		{"tcc failed", query("tcc", "failed", 0, "", "01 cancel succeed", "01 confirm prepared"), 1, 0, "", "failed"},
		{"xa prepared", query("xa", "prepared", 0, "", "01 rollback prepared", "01 commit prepared"), 0, 1, "", "prepared"},
		{"xa submitted", query("xa", "submitted", 0, "", "01 rollback prepared", "01 commit succeed", "02 rollback prepared", "02 commit prepared"), 1, 1, "commit 02", "succeed"},
		{"xa aborting", query("xa", "aborting", 0, "", "01 rollback succeed", "01 commit prepared", "02 rollback prepared", "02 commit prepared"), 1, 1, "rollback 02", "failed"},
		{"xa succeed", query("xa", "succeed", 0, "", "01 rollback prepared", "01 commit succeed"), 1, 0, "", "succeed"},
		{"xa failed", query("xa", "failed", 0, "", "01 rollback succeed", "01 commit prepared"), 1, 0, "", "failed"},
		{"msg prepared", query("msg", "prepared", 0, ask, "01 action prepared"), 0, 1, "", "prepared"},
		{"msg prepared, its time over", query("msg", "prepared", time.Minute, ask, "01 action prepared"), 0, 1, "ask, action 01", "succeed"},
		{"msg submitted", query("msg", "submitted", 0, "", "01 action succeed", "02-01 action succeed", "02-02 action prepared"), 2, 1, "action 02-02", "succeed"},
		{"msg submitted, its delay over", query("msg", "submitted", time.Minute, `,"custom_data":"{\"delay\":10}"`, "01 action prepared"), 0, 1, "action 01", "succeed"},
		{"msg submitted, delayed", query("msg", "submitted", time.Minute, `,"custom_data":"{\"delay\":120}"`, "01 action prepared"), 0, 1, "", "submitted"},
		{"msg succeed", query("msg", "succeed", time.Minute, `,"custom_data":"{\"delay\":120}"`, "01 action succeed"), 1, 0, "", "succeed"},
		{"msg failed", query("msg", "failed", 0, ask, "01 action prepared"), 1, 0, "", "failed"},
		{"workflow prepared", query("workflow", "prepared", time.Hour, ask, "01 action succeed", "02 action failed"), 2, 0, "", "prepared"},
		{"workflow succeed", query("workflow", "succeed", 0, ask+`,"result":"eA=="`, "01 action succeed"), 1, 0, "", "succeed"},
		{"workflow failed", query("workflow", "failed", 0, ask+`,"rollback_reason":"r"`, "01 action failed"), 1, 0, "", "failed"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			door, calls := newDoor(t)
			would, err := door.TakeOver(t.Context(), tt.body, true)
			if err != nil {
				t.Fatal(err)
			}
			if st, err := door.known(t.Context(), "g"); st != nil || err != nil {
				t.Fatalf("a dry run began %+v, %v", st, err)
			}
			taken, err := door.TakeOver(t.Context(), tt.body, false)
			if err != nil {
				t.Fatal(err)
			}
			got := []any{would.Outcome, taken.Outcome, taken.Done, taken.Left, would.Next == taken.Next}
			if diff := cmp.Diff([]any{"would", "taken", tt.done, tt.left, true}, got); diff != "" {
				t.Errorf("takeover differs (-want +got):\n%s", diff)
			}
			settle(t, door, tt.status)
			if got := calls.text(); got != tt.calls {
				t.Errorf("calls = %q, want %q", got, tt.calls)
			}
			again, err := door.TakeOver(t.Context(), tt.body, false)
			if err != nil || again.Outcome != "known" || calls.text() != tt.calls {
				t.Errorf("a repeat = %+v, %v, calls %q", again, err, calls.text())
			}
		})
	}
}

func (s *service) text() string {
	s.mu.Lock()
	defer s.mu.Unlock()
	return strings.Join(s.calls, ", ")
}

// settle waits until the transaction stands there.
func settle(t *testing.T, door *Service, want string) {
	t.Helper()
	ctx, stop := context.WithTimeout(t.Context(), 10*time.Second)
	defer stop()
	st, err := door.Engine.State(ctx, "g")
	if err == nil && !st.Phase.Done() {
		st, err = door.Engine.Wait(ctx, "g", func(st txn.State) bool { return status(&st) == want })
	}
	if err != nil || status(&st) != want {
		t.Fatalf("status = %s, %v, want %s", status(&st), err, want)
	}
}

// A client goes on at the new place with what it would have sent to the old one.
func TestClientGoesOnWithWhatWasTakenOver(t *testing.T) {
	t.Parallel()
	take := func(t *testing.T, body []byte) (*Service, *service) {
		door, calls := newDoor(t)
		if _, err := door.TakeOver(t.Context(), body, false); err != nil {
			t.Fatal(err)
		}
		return door, calls
	}
	t.Run("a tcc registers one more branch and submits", func(t *testing.T) {
		t.Parallel()
		door, calls := take(t, query("tcc", "prepared", 0, "", "01 cancel prepared", "01 confirm prepared"))
		b := branchRequest{"gid": "g", "trans_type": "tcc", "branch_id": "01", "confirm": "http://b/confirm", "cancel": "http://b/cancel"}
		for _, id := range []string{"01", "02"} {
			b["branch_id"] = id
			if err := door.registerBranch(t.Context(), b, []byte(`{"x":1}`)); err != nil {
				t.Fatalf("register %s: %v", id, err)
			}
		}
		if err := door.submit(t.Context(), &transaction{GID: "g", Type: typeTCC}); err != nil {
			t.Fatal(err)
		}
		settle(t, door, "succeed")
		if got := calls.text(); got != "confirm 02, confirm 01" {
			t.Errorf("calls = %q", got)
		}
	})
	t.Run("a saga that was not acknowledged is submitted once more", func(t *testing.T) {
		t.Parallel()
		for _, status := range []string{"submitted", "succeed"} {
			row := map[string]string{"submitted": "prepared", "succeed": "succeed"}[status]
			door, _ := take(t, query("saga", status, time.Minute, `,"options":"{\"timeout_to_fail\":300,\"concurrent\":false}"`, "01 compensate prepared", "01 action "+row))
			again := &transaction{GID: "g", Type: typeSaga, Steps: []map[string]string{{"action": "http://b/action", "compensate": "http://b/compensate"}},
				Payloads: []string{`{"x":1}`}, options: options{TimeoutToFail: 300}}
			if err := door.submit(t.Context(), again); err != nil {
				t.Errorf("submit of one that was %s: %v", status, err)
			}
		}
	})
	t.Run("a workflow goes on from its records", func(t *testing.T) {
		t.Parallel()
		door, _ := take(t, query("workflow", "prepared", 0, `,"query_prepared":"http://b/ask"`, "01 action succeed"))
		r := branchRequest{"gid": "g", "trans_type": "workflow", "branch_id": "01", "op": "action", "status": "succeed"}
		if err := door.registerBranch(t.Context(), r, []byte(`{"x":1}`)); err != nil {
			t.Errorf("the record is not the same: %v", err)
		}
		end := &transaction{GID: "g", Type: typeWorkflow, ReqExtra: map[string]string{"status": "succeed"}}
		if err := door.submit(t.Context(), end); err != nil {
			t.Error(err)
		}
		settle(t, door, "succeed")
	})
}

// A repeat never decides what goes on here: a server that was stopped shows it as failed.
func TestRepeatDecidesNothing(t *testing.T) {
	t.Parallel()
	door, _ := newDoor(t)
	for _, there := range []string{"prepared", "failed"} {
		if _, err := door.TakeOver(t.Context(), query("tcc", there, 0, ""), false); err != nil {
			t.Fatal(err)
		}
	}
	settle(t, door, "prepared")
}

// The time that a client had is not given twice.
func TestTakeoverKeepsTheRestOfTheTime(t *testing.T) {
	t.Parallel()
	door, _ := newDoor(t)
	body := query("tcc", "prepared", 20*time.Second, `,"options":"{\"timeout_to_fail\":60}"`, "01 cancel prepared", "01 confirm prepared")
	if _, err := door.TakeOver(t.Context(), body, false); err != nil {
		t.Fatal(err)
	}
	st, err := door.Engine.State(t.Context(), "g")
	if left := time.Until(st.Expires); err != nil || left < 30*time.Second || left > 40*time.Second {
		t.Errorf("%v left, %v, want 40s", left, err)
	}
}

// A saga that only was prepared waits here as well, and is compared.
func TestPreparedSagaIsTakenOver(t *testing.T) {
	t.Parallel()
	door, calls := newDoor(t)
	body := query("saga", "prepared", 0, "", "01 compensate prepared", "01 action prepared")
	for i, want := range []string{"would", "taken", "known"} {
		got, err := door.TakeOver(t.Context(), body, i == 0)
		if err != nil || got.Outcome != want {
			t.Fatalf("takeover %d = %+v, %v, want %s", i, got, err, want)
		}
	}
	if _, err := door.TakeOver(t.Context(), query("tcc", "prepared", 0, ""), true); !errors.Is(err, interceptor.ErrRefused) {
		t.Errorf("a tcc of the same gid: %v", err)
	}
	other := query("saga", "prepared", 0, "", "01 compensate prepared", "01 action prepared http://other")
	if _, err := door.TakeOver(t.Context(), other, false); !errors.Is(err, interceptor.ErrRefused) {
		t.Errorf("other content: %v", err)
	}
	submit := &transaction{GID: "g", Type: typeSaga}
	if err := door.submit(t.Context(), submit); err != nil {
		t.Fatal(err)
	}
	settle(t, door, "succeed")
	if got := calls.text(); got != "action 01" {
		t.Errorf("calls = %q", got)
	}
}

func TestWhatCannotBeTakenOverStays(t *testing.T) {
	t.Parallel()
	for _, tt := range []struct {
		name string
		body []byte
		want string
	}{
		{"no JSON", []byte("{"), "body: unexpected end of JSON input; want what query answers"},
		{"unknown", []byte(`{"transaction":null,"branches":[]}`), "transaction is null: the server does not know it"},
		{"type", query("lra", "prepared", 0, ""), `trans_type "lra" is not known here`},
		{"status", query("msg", "aborting", 0, ""), `a msg is never "aborting"`},
		{"gid", []byte(`{"transaction":{"gid":"a;b","trans_type":"tcc","status":"prepared"},"branches":[]}`), `gid "a;b": clients could not name it over HTTP`},
		{"driver", query("tcc", "prepared", 0, "", "01 cancel prepared nacos://x/cancel", "01 confirm prepared"), "branch 01 is called at nacos://x/cancel, by a driver for nacos that is not here"},
		{"another's row", []byte(`{"transaction":{"gid":"g","trans_type":"tcc","status":"prepared"},"branches":[{"gid":"h","branch_id":"01","op":"confirm"}]}`), `branch 01 is of gid "h"`},
		{"half a branch", query("tcc", "submitted", 0, "", "01 cancel prepared"), "1 rows for 1 branches: want each of 2 once"},
		{"a row twice", query("tcc", "submitted", 0, "", "01 cancel prepared", "01 cancel prepared"), "2 rows for 1 branches: want each of 2 once"},
		{"an op of another type", query("tcc", "submitted", 0, "", "01 action prepared"), `branch "01" has a row "action", which a tcc has not`},
		{"numbers", query("saga", "submitted", 0, "", "02 compensate prepared", "02 action prepared"), "branch 02: want 01, for the branches of a saga are numbered"},
		{"steps without rows", query("saga", "submitted", 0, `,"steps":[{"action":"http://b"}],"payloads":[""]`), "0 branches for 1 steps: the server does not show them all"},
		{"options", query("tcc", "submitted", 0, `,"options":"{"`), `options "{": unexpected end of JSON input`},
		{"a record that is open", query("workflow", "prepared", 0, "", "01 action prepared"), `branch "01" records "action" as "prepared": want succeed or failed`},
		{"stopped by force", query("saga", "failed", 0, "", "01 compensate prepared", "01 action succeed"), "it is failed there, but not all that leads to it was done; it was stopped by force, or its rows are not all there"},
		{"succeeded without all", query("tcc", "succeed", 0, "", "01 cancel prepared", "01 confirm prepared"), "it is succeed there, but not all that leads to it was done; it was stopped by force, or its rows are not all there"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			door, _ := newDoor(t)
			_, err := door.TakeOver(t.Context(), tt.body, false)
			if !errors.Is(err, interceptor.ErrRefused) || err.Error() != interceptor.ErrRefused.Error()+": "+tt.want {
				t.Errorf("error = %v\nwant %s", err, tt.want)
			}
			if st, err := door.known(t.Context(), "g"); st != nil || err != nil {
				t.Errorf("it began %+v, %v", st, err)
			}
		})
	}
	t.Run("other content", func(t *testing.T) {
		door, _ := newDoor(t)
		if _, err := door.TakeOver(t.Context(), query("tcc", "prepared", 0, ""), false); err != nil {
			t.Fatal(err)
		}
		_, err := door.TakeOver(t.Context(), query("tcc", "prepared", 0, "", "01 cancel prepared", "01 confirm prepared"), true)
		if !errors.Is(err, interceptor.ErrRefused) {
			t.Errorf("error = %v", err)
		}
	})
}
