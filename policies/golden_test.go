package policies

import (
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"slices"
	"strconv"
	"strings"
	"testing"

	"github.com/cockroachdb/datadriven"

	"txmesh/txn"
)

// TestGolden runs the histories of testdata: documents in, findings or compiled rules out; then exchanges against
// the last document that compiled. Run with -rewrite after a wanted change and read the diff.
//
//	compile                                the document; prints findings, or each rule as policy explain --json
//	exchange service=.. host=.. method=..  request and response as a case of a PolicyTest; prints what the rules make of it
//	find service=.. host=.. method=.. path=.. grpc
//	may service=.. act=.. caller=.. method=.. path=..
//	inline service=..                      headers, one a line
func TestGolden(t *testing.T) {
	datadriven.Walk(t, "testdata/golden", func(t *testing.T, path string) {
		var set *Set
		datadriven.RunTest(t, path, func(t *testing.T, d *datadriven.TestData) string {
			switch d.Cmd {
			case "compile":
				return compileGolden(t, &set, d)
			case "exchange":
				return exchangeGolden(t, set, d)
			case "find":
				if set == nil {
					t.Fatalf("%s: no document compiled before", d.Pos)
				}
				return findGolden(set, d)
			case "may":
				return mayGolden(t, set, d)
			case "inline":
				return inlineGolden(d)
			}
			t.Fatalf("%s: unknown directive %q", d.Pos, d.Cmd)
			return ""
		})
	})
}

func argOr(d *datadriven.TestData, key, def string) string {
	for _, a := range d.CmdArgs {
		if a.Key == key && len(a.Vals) > 0 {
			return strings.Join(a.Vals, ",")
		}
	}
	return def
}

func compileGolden(t *testing.T, set **Set, d *datadriven.TestData) string {
	s, err := Compile(Source{Name: "p.yaml", Data: []byte(d.Input)}, descriptorSet(t))
	if fs, ok := errors.AsType[Findings](err); ok {
		if d.HasArg("quiet") {
			t.Fatalf("%s: %v", d.Pos, err)
		}
		return fs.Error() + "\n"
	}
	if err != nil {
		t.Fatalf("%s: not findings: %v", d.Pos, err)
	}
	*set = s
	var b strings.Builder
	for _, w := range s.Warnings() {
		fmt.Fprintf(&b, "warning: %s\n", w)
	}
	if d.HasArg("quiet") {
		return b.String() + fmt.Sprintf("%d start, %d calls\n", len(s.Starts()), len(s.Calls()))
	}
	if n := s.AccessRules(); n > 0 {
		fmt.Fprintf(&b, "%d access rules\n", n)
	}
	for _, r := range s.Starts() {
		b.WriteString(dump(r.Plan()))
	}
	for _, r := range s.Calls() {
		b.WriteString(dump(r.Plan()))
	}
	return b.String()
}

// descriptorSet is made of ledger.proto by protoc --include_imports --descriptor_set_out=ledger.binpb ledger.proto.
func descriptorSet(t *testing.T) Source {
	t.Helper()
	data, err := os.ReadFile("../tests/ledger/ledger.binpb")
	if err != nil {
		t.Fatal(err)
	}
	return Source{Name: "ledger.binpb", Data: data}
}

// dump leaves the document's hash out: every edit of a golden input would change it.
func dump(plan any) string {
	data, err := json.Marshal(plan)
	if err != nil {
		return err.Error()
	}
	v, err := decodeJSON(data)
	if err != nil {
		return err.Error()
	}
	m := v.(map[string]any)
	delete(m, "document")
	if own, ok := m["own"].(map[string]any); ok {
		delete(own, "document")
	}
	return indented(m) + "\n"
}

func exchangeGolden(t *testing.T, set *Set, d *datadriven.TestData) string {
	if set == nil {
		t.Fatalf("%s: no document compiled before", d.Pos)
	}
	text := "apiVersion: txmesh.io/v1beta1\nkind: PolicyTest\ncases:\n- name: exchange\n  expect: {}\n"
	for line := range strings.Lines(d.Input) {
		text += "  " + line
	}
	samples, err := Samples(Source{Name: "exchange", Data: []byte(text)})
	if err != nil {
		return err.Error() + "\n"
	}
	got := samples[0].observe(set)
	for k, v := range got {
		if v == nil {
			delete(got, k)
		}
	}
	causes(samples[0], set, got)
	sameLater(t, samples[0], set)
	return indented(got) + "\n"
}

// sameLater holds that an answer means the same when it is found later, with the record alone.
func sameLater(t *testing.T, s Sample, set *Set) {
	c := set.Call(s.target)
	if c == nil || s.response == nil {
		return
	}
	record, err := c.Record(&s.request)
	if err != nil {
		return
	}
	now, because := c.Outcome(txn.Forward, &s.request, s.response)
	later, cause := c.RecordedOutcome(record, s.response)
	if later != now || cause != because {
		t.Errorf("%s: outcome now %v (%s), later %v (%s)", c.Name, now, because, later, cause)
	}
}

// causes adds what is said to people.
func causes(s Sample, set *Set, got map[string]any) {
	c := set.Call(s.target)
	if c == nil || s.response == nil {
		return
	}
	if _, cause := c.Outcome(txn.Forward, &s.request, s.response); cause != "" {
		got["cause"] = cause
	}
	if s.queried == nil {
		return
	}
	record, err := c.Record(&s.request)
	if err != nil {
		return
	}
	if _, _, cause, _ := c.Query(record, s.queried); cause != "" {
		got["query cause"] = cause
	}
}

func findGolden(set *Set, d *datadriven.TestData) string {
	t := Target{Service: argOr(d, "service", ""), Host: argOr(d, "host", ""), Method: argOr(d, "method", "POST"), Path: argOr(d, "path", "/"), GRPC: d.HasArg("grpc")}
	out := "no call"
	if c := set.Call(t); c != nil {
		out = "call " + c.Policy + "/" + c.Name
	}
	if r := set.Start(t); r != nil {
		out += ", start " + r.Policy + "/" + r.Name
	}
	return out + ", named " + strconv.FormatBool(set.Names(t.Service, t.Host)) + "\n"
}

func mayGolden(t *testing.T, set *Set, d *datadriven.TestData) string {
	if set == nil {
		t.Fatalf("%s: no document compiled before", d.Pos)
	}
	act := slices.Index(actWords(), argOr(d, "act", "join"))
	if act < 0 {
		t.Fatalf("%s: no such act", d.Pos)
	}
	target := Target{Method: argOr(d, "method", "POST"), Path: argOr(d, "path", "/")}
	a := set.Access(argOr(d, "service", "bank/accounts"))
	if a == nil {
		return "governed by no policy\n"
	}
	return strconv.FormatBool(a.Allows(Act(act), argOr(d, "caller", ""), target)) + "\n"
}

func inlineGolden(d *datadriven.TestData) string {
	headers := map[string]string{}
	for line := range strings.Lines(d.Input) {
		name, value, _ := strings.Cut(strings.TrimSpace(line), ":")
		headers[name] = strings.TrimSpace(value)
	}
	c, err := Inline(argOr(d, "service", "bank/accounts"), func(name string) string { return headers[name] })
	switch {
	case err != nil:
		return "error: " + err.Error() + "\n"
	case c == nil:
		return "none\n"
	}
	again, err := Recompile(c.Source(), c.Name)
	if err != nil {
		return "recompile: " + err.Error() + "\n"
	}
	if dump(again.Plan()) != dump(c.Plan()) || again.Document != c.Document {
		return "recompiled differently: " + dump(again.Plan())
	}
	return dump(c.Plan())
}
