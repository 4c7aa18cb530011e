package docs

import (
	"flag"
	"fmt"
	"os"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"txmesh/interceptor"
	"txmesh/interceptor/proxy"
	"txmesh/interceptor/raw"
	"txmesh/interceptor/redirect"
	"txmesh/policies"
	"txmesh/sidecar/admin"
)

var rewrite = flag.Bool("rewrite", false, "write docs/reference/codes.md anew")

const codesPage = "../../docs/reference/codes.md"

type code struct {
	code, title, remedy string
	status              int // 0: no answer to a request
}

type section struct {
	title, intro string
	codes        []code
}

func sections() []section {
	var policy, gate, forwarder, connections, api []code
	for _, c := range policies.Codes() {
		policy = append(policy, code{c.Code, c.Title, c.Remedy, 0})
	}
	for _, c := range interceptor.Codes() {
		gate = append(gate, code{string(c.Code), c.Title, c.Remedy, c.Status})
	}
	for _, c := range proxy.Codes() {
		forwarder = append(forwarder, code{c.Code, c.Title, c.Remedy, c.Status})
	}
	for _, c := range redirect.Codes() {
		connections = append(connections, code{c.Code, c.Title, c.Remedy, 0})
	}
	for _, c := range raw.Codes() {
		connections = append(connections, code{c.Code, c.Title, c.Remedy, 0})
	}
	slices.SortFunc(connections, func(a, b code) int { return strings.Compare(a.code, b.code) })
	for _, c := range admin.Codes() {
		api = append(api, code{c.Code, c.Title, c.Remedy, c.Status})
	}
	return []section{
		{"Policies", "Findings of `txmesh policy check`, of the start and of a reload.", policy},
		{"The transaction protocol", "Answers of the Gate to requests and calls.", gate},
		{"The proxy", "Answers of the forwarder, tagged or not.", forwarder},
		{"Connections", "In the log alone: a connection that passes as bytes has no answer that could tell them.", connections},
		{"The local API", "Answers of the API port.", api},
	}
}

func render() string {
	var b strings.Builder
	b.WriteString("# Codes\n\nEvery refusal of txmesh has a stable code: in `tx-error`, in the body (RFC 9457, " +
		"`application/problem+json`) and in findings.\nThis page is made from the tables in the code; " +
		"`go test ./tests/docs -rewrite` writes it.\n")
	for _, s := range sections() {
		fmt.Fprintf(&b, "\n## %s\n\n%s\n", s.title, s.intro)
		for _, c := range s.codes {
			fmt.Fprintf(&b, "\n### %s\n\n", c.code)
			if c.status != 0 {
				fmt.Fprintf(&b, "%d, %s.\n", c.status, c.title)
			} else {
				fmt.Fprintf(&b, "%s.\n", c.title)
			}
			fmt.Fprintf(&b, "What to do: %s.\n", c.remedy)
		}
	}
	return b.String()
}

func TestCodesPage(t *testing.T) {
	want := render()
	if *rewrite {
		if err := os.WriteFile(codesPage, []byte(want), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	got, err := os.ReadFile(codesPage)
	if err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff(string(got), want); diff != "" {
		t.Errorf("docs/reference/codes.md is not what the tables say; run `go test ./tests/docs -rewrite` (page, tables):\n%s", diff)
	}
}

func TestCodesAreGivenOnce(t *testing.T) {
	seen := map[string]string{}
	for _, s := range sections() {
		last := ""
		for _, c := range s.codes {
			if first, twice := seen[c.code]; twice {
				t.Errorf("%s stands in %q and in %q", c.code, first, s.title)
			}
			seen[c.code] = s.title
			if c.code <= last {
				t.Errorf("%s stands after %s", c.code, last)
			}
			last = c.code
			if c.title == "" || c.remedy == "" {
				t.Errorf("%s lacks a title or a remedy", c.code)
			}
		}
	}
}
