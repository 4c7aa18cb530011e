package dtm

import (
	"context"
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"net/http/httptest"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
)

// memory is a door that remembers one workflow, behind a recorder.
type memory struct {
	*recorder
	status, result, reason string
	rows                   []Row
	down                   string // a verb that is answered with an error
}

func newMemory(t *testing.T) *memory {
	m := &memory{recorder: newRecorder(t), status: StatusPrepared}
	m.answer = func(line string) (int, string) {
		verb, text, _ := strings.Cut(strings.TrimPrefix(line, "POST /api/dtmsvr/"), " ")
		if verb == m.down {
			return 500, `{"message":"FAILURE of a disk"}`
		}
		var b struct {
			BranchID string `json:"branch_id"`
			Op       string
			Status   string
			Data     string
			ReqExtra map[string]string `json:"req_extra"`
		}
		if err := json.Unmarshal([]byte(text), &b); err != nil {
			t.Errorf("%s: %v", line, err)
		}
		switch verb {
		case "prepareWorkflow":
			answer, err := json.Marshal(map[string]any{"progresses": m.rows,
				"transaction": map[string]string{"status": m.status, "result": m.result, "rollback_reason": m.reason}})
			if err != nil {
				t.Error(err)
			}
			return 200, string(answer)
		case "registerBranch":
			m.rows = append(m.rows, Row{BranchID: b.BranchID, Op: b.Op, Status: b.Status, Data: []byte(b.Data)})
		case "submit":
			m.status, m.result, m.reason = b.ReqExtra["status"], b.ReqExtra["result"], b.ReqExtra["rollback_reason"]
		default:
			t.Errorf("unexpected %s", line)
		}
		return 200, success
	}
	return m
}

// trip is a workflow of two branches that writes down what really runs.
type trip struct {
	ran       []string
	fail      map[string]error // by what would run
	errBranch bool
}

func (tr *trip) do(what string) error {
	tr.ran = append(tr.ran, what)
	return tr.fail[what]
}

func (tr *trip) run(ctx context.Context, wf *Workflow, data []byte) ([]byte, error) {
	wf.CompensateErrorBranch = tr.errBranch
	for _, name := range []string{"hotel", "flight"} {
		_, err := wf.NewBranch().
			OnCommit(func(context.Context, Branch) error { return tr.do(name + " commit") }).
			OnRollback(func(context.Context, Branch) error { return tr.do(name + " rollback") }).
			Do(ctx, func(_ context.Context, b Branch) ([]byte, error) { return []byte(name), tr.do(name) })
		if err != nil {
			return nil, err
		}
	}
	return append([]byte("went to "), data...), nil
}

func runner(t *testing.T, m *memory, f WorkflowFunc) *Workflows {
	w := NewWorkflows(m.door(), "http://app/resume")
	if err := w.Register("trip", f); err != nil {
		t.Fatal(err)
	}
	return w
}

func TestWorkflowOnTheWire(t *testing.T) {
	m := newMemory(t)
	tr := &trip{}
	got, err := runner(t, m, tr.run).Execute(t.Context(), "trip", "g1", []byte("Rome"))
	if err != nil || string(got) != "went to Rome" {
		t.Fatalf("result = %s, %v", got, err)
	}
	record := func(id, op, data string) string {
		return fmt.Sprintf(`POST /api/dtmsvr/registerBranch {"gid":"g1","trans_type":"workflow","branch_id":%q,"op":%q,"status":"succeed","data":%q}`, id, op, data)
	}
	m.wants(t,
		`POST /api/dtmsvr/prepareWorkflow {"gid":"g1","trans_type":"workflow","protocol":"http","concurrent":false,"query_prepared":"http://app/resume",
			"custom_data":"{\"name\":\"trip\",\"data\":\"Um9tZQ==\"}"}`,
		record("01", "action", "hotel"), record("02", "action", "flight"), record("02", "commit", ""), record("01", "commit", ""),
		`POST /api/dtmsvr/submit {"gid":"g1","trans_type":"workflow","protocol":"","concurrent":false,"req_extra":{"status":"succeed","result":"`+
			base64.StdEncoding.EncodeToString([]byte("went to Rome"))+`"}}`)
	if diff := cmp.Diff([]string{"hotel", "flight", "flight commit", "hotel commit"}, tr.ran); diff != "" {
		t.Errorf("ran (-want +got):\n%s", diff)
	}
}

func TestWorkflowCallsServicesAsItsBranch(t *testing.T) {
	m := newMemory(t)
	services := newRecorder(t)
	services.answer = func(string) (int, string) { return 200, `{"room":7}` }
	w := runner(t, m, func(ctx context.Context, wf *Workflow, _ []byte) ([]byte, error) {
		return wf.NewBranch().Do(ctx, func(ctx context.Context, b Branch) ([]byte, error) {
			return b.Post(ctx, services.URL+"/hotel", transfer())
		})
	})
	got, err := w.Execute(t.Context(), "trip", "g1", nil)
	if err != nil || string(got) != `{"room":7}` {
		t.Errorf("result = %s, %v", got, err)
	}
	services.wants(t, `POST /hotel?gid=g1&trans_type=workflow&branch_id=01&op=action {"amount":30}`)
}

func TestWorkflowRollsBack(t *testing.T) {
	for _, errBranch := range []bool{false, true} {
		t.Run(fmt.Sprint("with the failed branch: ", errBranch), func(t *testing.T) {
			m := newMemory(t)
			tr := &trip{errBranch: errBranch, fail: map[string]error{"flight": fmt.Errorf("full: %w", ErrFailure)}}
			w := runner(t, m, tr.run)
			_, err := w.Execute(t.Context(), "trip", "g1", nil)
			checkError(t, err, ErrFailure)
			want := []string{"hotel", "flight", "hotel rollback"}
			if errBranch {
				want = []string{"hotel", "flight", "flight rollback", "hotel rollback"}
			}
			if diff := cmp.Diff(want, tr.ran); diff != "" {
				t.Errorf("ran (-want +got):\n%s", diff)
			}
			if m.status != StatusFailed || m.reason != "full: FAILURE" {
				t.Errorf("the door has %s, %q", m.status, m.reason)
			}
			// Of what has ended, only the end is told again.
			_, again := w.Execute(t.Context(), "trip", "g1", nil)
			checkError(t, again, ErrFailure)
			if again.Error() != err.Error() || len(tr.ran) != len(want) {
				t.Errorf("again: %v, ran %v", again, tr.ran)
			}
		})
	}
}

// Whatever breaks off, a resumed workflow runs nothing twice that was recorded, and comes to its end.
func TestWorkflowResumes(t *testing.T) {
	boom := errors.New("boom")
	refused := fmt.Errorf("full: %w", ErrFailure)
	for _, tt := range []struct {
		name  string
		fail  map[string]error // in the first run only
		down  string
		lasts map[string]error // in both
		want  string           // what runs, in order, with the second run after a bar
		end   string
	}{
		{"an action is unknown", map[string]error{"flight": boom}, "", nil, "hotel,flight|flight,flight commit,hotel commit", StatusSucceed},
		{"an action is ongoing", map[string]error{"flight": ErrOngoing}, "", nil, "hotel,flight|flight,flight commit,hotel commit", StatusSucceed},
		{"a commit is refused", map[string]error{"hotel commit": refused}, "", nil, "hotel,flight,flight commit,hotel commit|hotel commit", StatusSucceed},
		{"a rollback is unknown", map[string]error{"hotel rollback": boom}, "", map[string]error{"flight": refused}, "hotel,flight,hotel rollback|hotel rollback", StatusFailed},
		{"the door does not record", nil, "registerBranch", nil, "hotel|hotel,flight,flight commit,hotel commit", StatusSucceed},
		{"the door does not take the end", nil, "submit", nil, "hotel,flight,flight commit,hotel commit|", StatusSucceed},
	} {
		t.Run(tt.name, func(t *testing.T) {
			m := newMemory(t)
			tr := &trip{fail: map[string]error{}}
			for _, from := range []map[string]error{tt.lasts, tt.fail} {
				for what, err := range from {
					tr.fail[what] = err
				}
			}
			w := runner(t, m, tr.run)
			m.down = tt.down
			want := errUnknown
			if errors.Is(tt.fail["flight"], ErrOngoing) {
				want = ErrOngoing
			}
			_, err := w.Execute(t.Context(), "trip", "g1", []byte("Rome"))
			checkError(t, err, want)
			if m.status != StatusPrepared {
				t.Errorf("after the first run it is %s", m.status)
			}
			m.down, tr.fail = "", tt.lasts
			tr.ran = append(tr.ran, "|")
			// The door resumes it.
			r := httptest.NewRequest("POST", "/resume?gid=g1&trans_type=workflow&branch_id=00&op=trip", strings.NewReader("Rome"))
			answer := httptest.NewRecorder()
			w.ServeHTTP(answer, r)
			if wantCode := map[string]int{StatusSucceed: 200, StatusFailed: 409}[tt.end]; answer.Code != wantCode || m.status != tt.end {
				t.Errorf("resumed: %d, the door has %s; want %d, %s", answer.Code, m.status, wantCode, tt.end)
			}
			got := strings.ReplaceAll(strings.ReplaceAll(strings.Join(tr.ran, ","), ",|", "|"), "|,", "|")
			if got != tt.want {
				t.Errorf("ran %s, want %s", got, tt.want)
			}
		})
	}
}

// A function that ignores the error of a branch cannot end a workflow of which a part is unknown.
func TestWorkflowCannotIgnoreTheUnknown(t *testing.T) {
	m := newMemory(t)
	ran := 0
	w := runner(t, m, func(ctx context.Context, wf *Workflow, _ []byte) ([]byte, error) {
		for range 2 {
			_, _ = wf.NewBranch().Do(ctx, func(context.Context, Branch) ([]byte, error) { ran++; return nil, errors.New("boom") })
		}
		return nil, ErrFailure
	})
	_, err := w.Execute(t.Context(), "trip", "g1", nil)
	checkError(t, err, errUnknown)
	if ran != 1 || m.status != StatusPrepared {
		t.Errorf("%d actions ran, the door has %s", ran, m.status)
	}
}

func TestWorkflowRunsOnceAtATime(t *testing.T) {
	m := newMemory(t)
	var w *Workflows
	w = runner(t, m, func(ctx context.Context, _ *Workflow, _ []byte) ([]byte, error) {
		_, err := w.Execute(ctx, "trip", "g1", nil)
		checkError(t, err, ErrOngoing)
		return nil, nil
	})
	if _, err := w.Execute(t.Context(), "trip", "g1", nil); err != nil {
		t.Error(err)
	}
	if _, err := w.Execute(t.Context(), "journey", "g2", nil); err == nil {
		t.Error("a workflow runs that nobody has registered")
	}
	if w.Register("trip", nil) == nil {
		t.Error("a name has two workflows")
	}
}

func TestWorkflowBranchHasOneAction(t *testing.T) {
	m := newMemory(t)
	w := runner(t, m, func(ctx context.Context, wf *Workflow, _ []byte) ([]byte, error) {
		b := wf.NewBranch()
		nothing := func(context.Context, Branch) ([]byte, error) { return nil, nil }
		_, err := b.Do(ctx, nothing)
		if err != nil {
			t.Error(err)
		}
		return b.Do(ctx, nothing)
	})
	_, err := w.Execute(t.Context(), "trip", "g1", nil)
	checkError(t, err, errUnknown)
}
