package policies

import (
	"os"
	"slices"
	"strings"
	"testing"
)

func page(t *testing.T) string {
	t.Helper()
	data, err := os.ReadFile("../docs/reference/policy.md")
	if err != nil {
		t.Fatal(err)
	}
	return string(data)
}

// examples are the YAML blocks of the page; a list of rules is put into a policy.
func examples(t *testing.T) []Source {
	var out []Source
	for _, block := range strings.Split(page(t), "```yaml\n")[1:] {
		text, _, closed := strings.Cut(block, "```\n")
		if !closed {
			t.Fatal("a block of the page is not closed")
		}
		if strings.HasPrefix(text, "- name: ") {
			text = policyOf("  " + strings.ReplaceAll(strings.TrimSpace(text), "\n", "\n  ") + "\n")
		}
		out = append(out, Source{Name: "policy.md", Data: []byte(text)})
	}
	return out
}

func TestExamplesOfThePageCompileAndPass(t *testing.T) {
	sources := examples(t)
	set, err := Compile(sources...)
	if err != nil {
		t.Fatal(err)
	}
	if starts, calls := len(set.Starts()), len(set.Calls()); starts != 2 || calls != 13 {
		t.Errorf("the page has %d start and %d call rules, want 2 and 13", starts, calls)
	}
	samples, err := Samples(sources...)
	if err != nil {
		t.Fatal(err)
	}
	if len(samples) != 2 {
		t.Errorf("the page has %d cases, want 2", len(samples))
	}
	for _, s := range samples {
		for _, m := range s.Run(set) {
			t.Errorf("%s: %s = %s, want %s", s.Name, m.Key, m.Got, m.Want)
		}
	}
}

// TestThePageHasEveryKey asks the reader itself which keys it knows: an unknown key makes it list them.
func TestThePageHasEveryKey(t *testing.T) {
	text := `
apiVersion: txmesh.io/v1beta1
kind: TransactionPolicy
metadata: {name: x, ???????: 1}
???????: 1
spec:
  ???????: 1
  undoRetry: {???????: 1}
  start:
  - ???????: 1
    match: {???????: 1}
    reply: {???????: 1}
    undo: {???????: 1}
  calls:
  - ???????: 1
    outcome: [{???????: 1}]
    undo: {auth: {bearer: {secretRef: {???????: 1}}}}
  - reserve: {???????: 1, confirm: {???????: 1}, cancel: {}}
    query: {???????: 1}
  - hold: {???????: 1}
  - irreversible: {???????: 1}
---
apiVersion: txmesh.io/v1beta1
kind: TransactionGrant
metadata: {name: x}
spec: {???????: 1}
---
apiVersion: txmesh.io/v1beta1
kind: AccessPolicy
metadata: {name: x}
spec: {???????: 1, rules: [{???????: 1, may: [start], requests: [{???????: 1}]}]}
`
	_, err := Compile(Source{Name: "keys", Data: []byte(text)})
	_, inCases := Samples(Source{Name: "keys", Data: []byte("kind: PolicyTest\ncases: [{???????: 1, request: {???????: 1}, response: {???????: 1}, expect: {???????: 1}}]\n")})
	var keys []string
	for line := range strings.Lines(err.Error() + "\n" + inCases.Error() + "\n") {
		if _, known, ok := strings.Cut(strings.TrimSpace(line), "; known: "); ok {
			keys = append(keys, strings.Split(known, ", ")...)
		}
	}
	slices.Sort(keys)
	keys = slices.Compact(keys)
	if len(keys) < 60 {
		t.Fatalf("the reader listed only %d keys: %v", len(keys), keys)
	}
	// Kubernetes' own; the page names them as a group.
	foreign := []string{
		"resourceVersion", "generation", "managedFields", "ownerReferences", "finalizers", "selfLink", "generateName",
		"deletionTimestamp", "deletionGracePeriodSeconds",
	}
	body := page(t)
	for _, k := range keys {
		if slices.Contains(foreign, k) {
			continue
		}
		if !strings.Contains(body, "`"+k) && !strings.Contains(body, "."+k+"`") && !strings.Contains(body, "{"+k) && !strings.Contains(body, k+":") && !strings.Contains(body, ", "+k+"}") {
			t.Errorf("the page does not have the key %s", k)
		}
	}
}

func TestEveryCodeIsSeenOnce(t *testing.T) {
	var seen strings.Builder
	for _, name := range []string{"testdata/golden/errors", "testdata/golden/grpc", "testdata/golden/match", "testdata/golden/access", "policies_test.go"} {
		data, err := os.ReadFile(name)
		if err != nil {
			t.Fatal(err)
		}
		seen.Write(data)
	}
	last := ""
	for _, c := range Codes() {
		if c.Code <= last {
			t.Errorf("%s comes after %s", c.Code, last)
		}
		last = c.Code
		if c.Title == "" || c.Remedy == "" {
			t.Errorf("%s has no title or remedy", c.Code)
		}
		if !strings.Contains(seen.String(), c.Code) {
			t.Errorf("%s is shown by no test", c.Code)
		}
	}
}
