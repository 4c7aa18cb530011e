package takeover

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
)

func shot(transType, status string, rows ...string) Snapshot {
	s := Snapshot{Transaction: json.RawMessage(`{"gid":"g","trans_type":"` + transType + `","status":"` + status + `"}`)}
	var text []string
	for _, r := range rows {
		f := strings.Fields(r)
		text = append(text, fmt.Sprintf(`{"op":%q,"status":%q}`, f[0], f[1]))
	}
	s.Branches = json.RawMessage("[" + strings.Join(text, ",") + "]")
	return s
}

// Between the last look and the stop, a transaction may have gone on: what its rows say then counts.
func TestRowsAfterTheStopCount(t *testing.T) {
	for _, tt := range []struct {
		name          string
		before, after Snapshot
		serves        bool
		want          string // status, or error
	}{
		{"nothing happened", shot("saga", "submitted"), shot("saga", "failed", "action prepared"), true, "submitted"},
		{"one more action", shot("saga", "submitted"), shot("saga", "failed", "action succeed"), true, "submitted"},
		{"a saga turned round", shot("saga", "submitted"), shot("saga", "failed", "compensate succeed", "action succeed"), true, "aborting"},
		{"a tcc was submitted", shot("tcc", "prepared"), shot("tcc", "failed", "cancel prepared", "confirm succeed"), true, "submitted"},
		{"a tcc was aborted", shot("tcc", "prepared"), shot("tcc", "failed", "cancel succeed", "confirm prepared"), true, "aborting"},
		{"an xa was rolled back", shot("xa", "prepared"), shot("xa", "failed", "rollback succeed"), true, "aborting"},
		{"a message was submitted", shot("msg", "prepared"), shot("msg", "failed", "action succeed"), true, "submitted"},
		{"a workflow records its roll-back", shot("workflow", "prepared"), shot("workflow", "failed", "rollback succeed"), true, "prepared"},
		{"it ended well", shot("msg", "submitted"), shot("msg", "succeed", "action succeed"), true, "succeed"},
		{"tables, nothing happened", shot("tcc", "aborting"), shot("tcc", "aborting"), false, "aborting"},
		{"tables that change", shot("tcc", "prepared"), shot("tcc", "submitted"), false, "it was stopped and is still submitted"},
		{"the stop did not hold", shot("tcc", "prepared"), shot("tcc", "prepared"), true, "it was stopped and is still prepared"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			s, err := joined(tt.before, tt.after, tt.serves)
			got := ""
			if err != nil {
				got = err.Error()
			} else if title, err := s.title(); err != nil || string(s.Branches) != string(tt.after.Branches) {
				t.Errorf("branches = %s, %v", s.Branches, err)
			} else {
				got = title.Status
			}
			if got != tt.want {
				t.Errorf("status = %s, want %s", got, tt.want)
			}
		})
	}
}

func TestHiddenBranchesAreSuspected(t *testing.T) {
	for gid, want := range map[string]string{"order-1": "order-10", "order-10": "order-1", "order-2": "", "order-1x": "", "": ""} {
		if got := shadow(gid, []Title{{GID: "order-1"}, {GID: "order-10"}, {GID: "order-2"}, {GID: "order-1x"}}); got != want {
			t.Errorf("shadow(%q) = %q, want %q", gid, got, want)
		}
	}
}

// A crash may cut the last line. Its step has not been taken, and the next one is whole again.
func TestJournalGoesOnAfterACutLine(t *testing.T) {
	path := filepath.Join(t.TempDir(), "j")
	open := func() *Journal {
		t.Helper()
		j, err := OpenJournal(path, "a", "b")
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { _ = j.Close() })
		return j
	}
	j := open()
	for _, e := range []Entry{{Step: StepRead, GID: "x", Snapshot: shot("tcc", "aborting")}, {Step: StepRead, GID: "y", Snapshot: shot("msg", "submitted")},
		{Step: StepStopped, GID: "x", Snapshot: shot("tcc", "aborting", "cancel succeed")}} {
		if err := j.Append(e); err != nil {
			t.Fatal(err)
		}
	}
	text, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	for cut := range len(text) {
		if err := os.WriteFile(path, text[:len(text)-cut], 0o600); err != nil {
			t.Fatal(err)
		}
		j := open()
		whole := strings.Count(string(text[:len(text)-cut]), "\n") - 1
		want := []string{"x read", "x read y read", "x stopped y read"}[max(whole-1, 0):]
		if whole <= 0 {
			want = []string{""}
		}
		var got []string
		for _, gid := range j.order {
			got = append(got, gid+" "+string(j.Last(gid).Step))
		}
		if strings.Join(got, " ") != want[0] {
			t.Errorf("cut by %d: %v, want %s", cut, got, want[0])
		}
		if err := j.Append(Entry{Step: StepTaken, GID: "z"}); err != nil {
			t.Fatal(err)
		}
		if got := open().Last("z").Step; got != StepTaken {
			t.Errorf("cut by %d, then z: %q", cut, got)
		}
	}
	if _, err := OpenJournal(path, "a", "c"); err == nil || !strings.Contains(err.Error(), "from a to b") {
		t.Errorf("journal of another takeover: %v", err)
	}
}

// A server that filters nothing, shows items twice and cannot compare times is listed all the same.
func TestServersThatListBadly(t *testing.T) {
	at := func(d time.Duration) string { return time.Now().Add(-d).Format(time.RFC3339Nano) }
	srv := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		q := r.URL.Query()
		if q.Has("createTimeStart") {
			http.Error(w, `{"message":"a workflow has no time"}`, http.StatusInternalServerError)
			return
		}
		item := func(gid, status string, d time.Duration) string {
			return fmt.Sprintf(`{"gid":%q,"trans_type":"saga","status":%q,"create_time":%q}`, gid, status, at(d))
		}
		if q.Get("position") == "" {
			fmt.Fprintf(w, `{"transactions":[%s,%s],"next_position":"2"}`, item("a", "submitted", time.Hour), item("b", "succeed", time.Hour))
			return
		}
		fmt.Fprintf(w, `{"transactions":[%s,%s,{"gid":"d","status":"failed","create_time":null}],"next_position":""}`,
			item("a", "submitted", time.Hour), item("c", "succeed", 48*time.Hour))
	}))
	defer srv.Close()
	titles, err := (&Server{Base: srv.URL, Client: srv.Client()}).List(t.Context(), time.Now().Add(-24*time.Hour))
	var got []string
	for _, x := range titles {
		got = append(got, x.GID)
	}
	if diff := cmp.Diff([]string{"a", "b"}, got); diff != "" || err != nil {
		t.Errorf("list differs, %v (-want +got):\n%s", err, diff)
	}
}

// world is a source and a target that note what is done, and fail where they are told to.
type world struct {
	shots map[string]Snapshot
	log   []string
	fail  string // what fails, once
}

func (w *world) do(what string) error {
	w.log = append(w.log, what)
	if what == w.fail {
		w.fail = ""
		return errors.New("cut off")
	}
	return nil
}

func (w *world) List(context.Context, time.Time) ([]Title, error) {
	var titles []Title
	for _, s := range w.shots {
		t, err := s.title()
		if err != nil {
			return nil, err
		}
		titles = append(titles, t)
	}
	return titles, w.do("list")
}

func (w *world) Read(_ context.Context, gid string) (Snapshot, error) {
	return w.shots[gid], w.do("read")
}

func (w *world) Stop(_ context.Context, gid string) error {
	s := shot("saga", "failed")
	s.Branches = w.shots[gid].Branches
	w.shots[gid] = s
	return w.do("stop")
}

func (w *world) Serves() bool { return true }

func (w *world) TakeOver(_ context.Context, s Snapshot, dryRun bool) (Verdict, error) {
	t, err := s.title()
	if err != nil {
		return Verdict{}, err
	}
	if dryRun {
		return Verdict{}, w.do("try")
	}
	return Verdict{Outcome: "taken"}, w.do("take " + t.Status)
}

// Whatever fails, also after it took effect, the next run takes over the transaction as it stood before it was stopped.
func TestApplyGoesOnAfterEachFailure(t *testing.T) {
	for fail, want := range map[string]string{
		"":               "list read try stop read take submitted | list",
		"list":           "list | list read try stop read take submitted",
		"read":           "list read | list read try stop read take submitted",
		"try":            "list read try | list read try stop read take submitted",
		"stop":           "list read try stop | list read take submitted",
		"take submitted": "list read try stop read take submitted | take submitted list",
	} {
		w := &world{shots: map[string]Snapshot{"g": shot("saga", "submitted", "compensate prepared", "action succeed")}, fail: fail}
		m := &Migration{Source: w, Target: w}
		for run := range 2 {
			if run == 1 {
				w.log = append(w.log, "|")
			}
			j, err := OpenJournal(filepath.Join(t.TempDir(), "..", "j"+strings.ReplaceAll(fail, " ", "-")), "a", "b")
			if err != nil {
				t.Fatal(err)
			}
			err = m.Apply(t.Context(), j, func(Item) {})
			if failed := err != nil; failed != (run == 0 && fail != "") {
				t.Errorf("fail %q, run %d: %v", fail, run, err)
			}
			if err := j.Close(); err != nil {
				t.Fatal(err)
			}
		}
		if got := strings.Join(w.log, " "); got != want {
			t.Errorf("fail %q:\n got %s\nwant %s", fail, got, want)
		}
	}
}

func TestOldestUnfinishedGoFirst(t *testing.T) {
	now := time.Now()
	titles := []Title{{GID: "done", Status: succeed, Created: now.Add(-9 * time.Hour)}, {GID: "young", Status: prepared, Created: now}, {GID: "old", Status: aborting, Created: now.Add(-time.Hour)}}
	var got []string
	for _, x := range ordered(titles) {
		got = append(got, x.GID)
	}
	if want := []string{"old", "young", "done"}; !slices.Equal(got, want) {
		t.Errorf("order = %v, want %v", got, want)
	}
}
