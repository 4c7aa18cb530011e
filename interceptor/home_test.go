package interceptor

import (
	"context"
	"errors"
	"net/http"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"txmesh/txn"
)

const branchName = string(someID) + "-1"

// forward is the forward call of a branch as it reaches its home.
func (w *world) forward(path string, header ...string) *request {
	c := Context{ID: someID, Parent: "1", Expires: time.Unix(1_700_000_030, 0)}
	header = append([]string{HeaderContext, w.gate.Keys.Sign(c), HeaderBranch, branchName, HeaderOp, OpForward,
		HeaderHome, w.gate.Home, HeaderIdempotency, `"k"`}, header...)
	return newRequest("POST", "http://accounts"+path, header...)
}

func (w *world) settleOp(op txn.Op, known txn.Outcome) HomeReply {
	c := HomeCall{Home: w.gate.Home, Branch: branchName, Op: op, Known: known, Attempt: 1, Deadline: w.now.Add(time.Minute)}
	if op != txn.Ask {
		c.Request = &Outgoing{Method: "DELETE", Path: "/undo"}
	}
	return w.gate.Settle(context.Background(), c)
}

// put brings the home into one state.
func (w *world) put(state string) {
	w.t.Helper()
	switch state {
	case "nothing":
	case "running":
		w.in(w.forward("/accounts/a/withdrawals"))
	case "crashed":
		w.after(w.in(w.forward("/accounts/a/withdrawals")), nil, errors.New("reset"))
	case "crashed, keyed":
		w.after(w.in(w.forward("/keyed")), nil, errors.New("reset"))
	case "done":
		w.after(w.in(w.forward("/accounts/a/withdrawals")), newResponse(201, `{"id":"w-1"}`), nil)
	case "refused":
		w.after(w.in(w.forward("/accounts/a/withdrawals")), newResponse(409, `no`), nil)
	case "undone":
		w.settleOp(txn.Undo, txn.None)
	default:
		w.t.Fatalf("state %s", state)
	}
	w.sent, w.saves = nil, nil
}

func TestHomeAnswersEveryCell(t *testing.T) {
	for _, tt := range []struct {
		state string
		op    txn.Op
		known txn.Outcome
		want  string // outcome of Settle, or code of the answer to a forward
		sent  []string
		saves []string
	}{
		{"nothing", txn.Forward, 0, "runs", nil, []string{"sync=true"}},
		{"running", txn.Forward, 0, "TXM0112", nil, nil},
		{"crashed", txn.Forward, 0, "TXM0113", nil, nil},
		{"crashed, keyed", txn.Forward, 0, "200", []string{`POST /keyed forward "k"`}, []string{"sync=true"}},
		{"done", txn.Forward, 0, "201", nil, nil},
		{"refused", txn.Forward, 0, "409", nil, nil},
		{"undone", txn.Forward, 0, "TXM0111", nil, nil},

		{"nothing", txn.Undo, 0, "ok", nil, []string{"sync=true"}},
		{"running", txn.Undo, 0, "pending", nil, nil},
		{"crashed", txn.Undo, 0, "refused", nil, nil},
		{"crashed", txn.Undo, txn.OK, "ok", []string{`DELETE /undo undo "` + branchName + `-undo"`}, []string{"sync=false"}},
		{"crashed, keyed", txn.Undo, 0, "ok", []string{`POST /keyed forward "k"`, `DELETE /undo undo "` + branchName + `-undo"`}, []string{"sync=true", "sync=false"}},
		{"done", txn.Undo, txn.OK, "ok", []string{`DELETE /undo undo "` + branchName + `-undo"`}, []string{"sync=false"}},
		{"refused", txn.Undo, 0, "ok", nil, []string{"sync=true"}},
		{"undone", txn.Undo, 0, "ok", nil, nil},

		{"nothing", txn.Commit, 0, "refused", nil, nil},
		{"running", txn.Commit, 0, "pending", nil, nil},
		{"crashed", txn.Commit, txn.OK, "ok", []string{`DELETE /undo confirm "` + branchName + `-confirm"`}, nil},
		{"done", txn.Commit, txn.OK, "ok", []string{`DELETE /undo confirm "` + branchName + `-confirm"`}, nil},
		{"refused", txn.Commit, 0, "refused", nil, nil},
		{"undone", txn.Commit, 0, "refused", nil, nil},

		{"nothing", txn.Ask, 0, "refused", nil, []string{"sync=true"}},
		{"running", txn.Ask, 0, "pending", nil, nil},
		{"crashed", txn.Ask, 0, "none", nil, nil},
		{"crashed, keyed", txn.Ask, 0, "ok", []string{`POST /keyed forward "k"`}, []string{"sync=true"}},
		{"done", txn.Ask, 0, "ok", nil, nil},
		{"refused", txn.Ask, 0, "refused", nil, nil},
		{"undone", txn.Ask, 0, "refused", nil, nil},
	} {
		t.Run(tt.state+" and "+tt.op.String()+" known "+tt.known.String(), func(t *testing.T) {
			w := newWorld(t, "bank/accounts")
			w.put(tt.state)
			got := "runs"
			if tt.op != txn.Forward {
				got = w.settleOp(tt.op, tt.known).Outcome.String()
			} else if v := w.in(w.forward("/accounts/a/withdrawals")); v.Ticket == nil {
				got = code(v.Answer)
			}
			if got != tt.want {
				t.Errorf("got %s, want %s", got, tt.want)
			}
			if diff := cmp.Diff(w.sent, tt.sent); diff != "" {
				t.Errorf("sent to the application (got, want):\n%s", diff)
			}
			if diff := cmp.Diff(w.saves, tt.saves); diff != "" {
				t.Errorf("rows saved (got, want):\n%s", diff)
			}
		})
	}
}

func TestRepeatGetsTheRecordedAnswer(t *testing.T) {
	w := newWorld(t, "bank/accounts")
	v := w.in(w.forward("/accounts/a/withdrawals"))
	w.after(v, newResponse(201, `{"id":"w-1"}`, "content-type", "application/json", "set-cookie", "s=1"), nil)
	a := w.in(w.forward("/accounts/a/withdrawals")).Answer
	want := "201\ncontent-type: application/json\ncontent-length: 12\ntx-replayed: true\n\n" + `{"id":"w-1"}`
	if diff := cmp.Diff(show(a), want); diff != "" {
		t.Errorf("answer (got, want):\n%s", diff)
	}
}

func TestOnlyTheHomeAnswers(t *testing.T) {
	w := newWorld(t, "bank/accounts")
	r := w.forward("/accounts/a/withdrawals")
	r.SetHeader(HeaderHome, "SOMEONEELSE00")
	if a := w.in(r).Answer; a == nil || code(a) != string(CodeNotHome) {
		t.Errorf("a forward for another home: %s", show(a))
	}
	reply := w.gate.Settle(context.Background(), HomeCall{Home: "SOMEONEELSE00", Branch: branchName, Op: txn.Undo})
	if reply.Outcome != txn.Unknown || len(w.rows) != 0 {
		t.Errorf("an undo for another home: %+v, rows %d; want unknown and no row", reply, len(w.rows))
	}
}

func TestLateForwardIsRefused(t *testing.T) {
	w := newWorld(t, "bank/accounts")
	r := w.forward("/accounts/a/withdrawals")
	w.now = w.now.Add(31 * time.Second)
	if a := w.in(r).Answer; a == nil || code(a) != string(CodeLate) || len(w.rows) != 0 {
		t.Errorf("a forward past the deadline: %s", show(a))
	}
}

func TestAnswerIsDurableBeforeTheCallerSeesIt(t *testing.T) {
	w := newWorld(t, "bank/accounts")
	v := w.in(w.forward("/accounts/a/withdrawals"))
	w.fail = errors.New("disk gone")
	if a := w.after(v, newResponse(201, `{"id":"w-1"}`), nil); a == nil || code(a) != string(CodeJournal) {
		t.Errorf("the caller sees %s, want %s", show(a), CodeJournal)
	}
}

func TestCallsMadeWhileUndoingAreNoBranches(t *testing.T) {
	w := newWorld(t, "bank/accounts")
	w.put("done")
	var nested *request
	w.app = func(o *Outgoing) (*Reply, error) {
		nested = newRequest("POST", "http://accounts/always", "traceparent", o.Header.Get("traceparent"))
		if v := w.out("bank/accounts", nested); v != (Verdict{}) {
			t.Errorf("a call made while undoing: %+v %s", v.Ticket, show(v.Answer))
		}
		return &Reply{Status: 200, Header: http.Header{}}, nil
	}
	if r := w.settleOp(txn.Undo, txn.OK); r.Outcome != txn.OK {
		t.Fatalf("undo: %+v", r)
	}
	want := [][2]string{{HeaderIdempotency, `"` + branchName + `-undo-1"`}}
	if diff := cmp.Diff(nested.header[1:], want); diff != "" {
		t.Errorf("headers of the nested call (got, want):\n%s", diff)
	}
}

func TestNestedBranchKnowsItsParent(t *testing.T) {
	w := newWorld(t, "bank/accounts")
	v := w.in(w.forward("/accounts/a/withdrawals"))
	if v.Ticket == nil {
		t.Fatal(show(v.Answer))
	}
	j, ok, _ := w.gate.joins.find(w.now, []string{"trace:" + "30313233343536373839616263646566"})
	if !ok || cmp.Diff(j.parents, []string{"1"}) != "" || j.context.ID != someID {
		t.Errorf("a call made while serving branch 1 joins %+v, found %v", j, ok)
	}
}
