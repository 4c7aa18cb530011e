package main

import (
	"os"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"txmesh/policies"
	"txmesh/txn"
)

// TestPolicyUndoesWhatTheServicesAnswer: the policy compiles without a finding, and from the answers that the
// services really give it makes the requests that they really take.
func TestPolicyUndoesWhatTheServicesAnswer(t *testing.T) {
	set, err := policies.Load("policy.yaml")
	if err != nil {
		t.Fatal(err)
	}
	if w := set.Warnings(); len(w) > 0 {
		t.Errorf("warnings: %v", w)
	}
	if set.Start(policies.Target{Service: "bank/transfers", Method: "POST", Path: "/transfers"}) == nil {
		t.Error("POST /transfers starts no transaction")
	}
	for _, i := range implementations() {
		t.Run(i.name, func(t *testing.T) {
			s := start(t, i, tempLedger(t), "--balances", openings)
			path, body := "/accounts/alice/"+i.kind()+"s", `{"amount":30,"transfer":"t-1"}`
			rule := set.Call(policies.Target{Service: "bank/" + i.service, Method: "POST", Path: path})
			if rule == nil || rule.Barrier != policies.Key || rule.OnUnknown != txn.ResolveAsk {
				t.Fatalf("POST %s is met by %+v, want a rule with barrier Key and onUnknown Query", path, rule)
			}
			forward := s.mustCall(t, "POST", path, "k1", body)
			undo := rendered(t, rule,
				&policies.Message{Method: "POST", Path: path, Body: []byte(body)},
				&policies.Message{Status: forward.status, Body: []byte(forward.body)})
			undone := s.mustCall(t, undo.Method, undo.Path, "k1-undo", string(undo.Body))
			if want := `{"id":"` + i.kind()[:1] + `-1","balance":100}`; undone.status != 200 || undone.body != want {
				t.Errorf("%s %s was answered %v, want 200 %s", undo.Method, undo.Path, undone, want)
			}
		})
	}
}

func rendered(t *testing.T, rule *policies.Call, req, res *policies.Message) *policies.Request {
	t.Helper()
	request, err := rule.Record(req)
	if err != nil {
		t.Fatal(err)
	}
	answer, err := rule.RecordAnswer(res)
	if err != nil {
		t.Fatal(err)
	}
	undo, err := rule.Render(txn.Undo, request, answer)
	if err != nil {
		t.Fatal(err)
	}
	return undo
}

// TestFirstPageShowsThisPolicy: the README quotes the policy, without its comments.
func TestFirstPageShowsThisPolicy(t *testing.T) {
	policy, err := os.ReadFile("policy.yaml")
	if err != nil {
		t.Fatal(err)
	}
	readme, err := os.ReadFile("../../README.md")
	if err != nil {
		t.Fatal(err)
	}
	var want strings.Builder
	for line := range strings.Lines(string(policy)) {
		if !strings.HasPrefix(strings.TrimSpace(line), "#") {
			want.WriteString(line)
		}
	}
	_, rest, _ := strings.Cut(string(readme), "```yaml\n")
	got, _, _ := strings.Cut(rest, "```")
	if diff := cmp.Diff(want.String(), got); diff != "" {
		t.Errorf("policy in README.md (-policy.yaml +README.md):\n%s", diff)
	}
}
