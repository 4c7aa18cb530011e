package policies

import (
	"bytes"
	"compress/gzip"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"txmesh/txn"
)

// compiled is the set of the calls given as YAML list items, in namespace bank.
func compiled(t testing.TB, calls string) *Set {
	t.Helper()
	s, err := Compile(Source{Name: "p.yaml", Data: []byte(policyOf(calls))})
	if err != nil {
		t.Fatal(err)
	}
	return s
}

func policyOf(calls string) string {
	return "apiVersion: txmesh.io/v1beta1\nkind: TransactionPolicy\nmetadata: {name: p, namespace: bank}\nspec:\n  calls:\n" + calls
}

func header(pairs ...string) func(string) string {
	return func(name string) string {
		for i := 0; i < len(pairs); i += 2 {
			if strings.EqualFold(pairs[i], name) {
				return pairs[i+1]
			}
		}
		return ""
	}
}

const undoCall = `  - name: a
    match: {service: accounts, method: POST, path: "/a/{id}"}
    undo: {method: DELETE, path: "/a/{path.id}/{response.body.id}", outcome: [{when: response.code == 404, is: OK}]}
    query: {path: "/a/{path.id}"}
  - name: h
    match: {service: mail}
    hold: {}
  - name: r
    match: {service: stock}
    reserve: {confirm: {path: /c}, cancel: {path: /x}}
`

func TestIdempotencyKeysOfApplications(t *testing.T) {
	c := compiled(t, undoCall).Calls()[0]
	for _, tt := range []struct {
		name string
		head func(string) string
		want string
	}{
		{"bare", header("Idempotency-Key", "k-1"), "k-1"},
		{"quoted", header("Idempotency-Key", `"k-1"`), "k-1"},
		{"quoted with escapes", header("Idempotency-Key", `"k\"\\1"`), `k"\1`},
		{"quoted with parameters", header("Idempotency-Key", `"k-1";a=1`), "k-1"},
		{"never closed", header("Idempotency-Key", `"k-1`), `"k-1`},
		{"the x- form", header("X-Idempotency-Key", "k-2"), "k-2"},
		{"both", header("X-Idempotency-Key", "k-2", "Idempotency-Key", "k-1"), "k-1"},
		{"blank", header("Idempotency-Key", "  "), ""},
		{"none", header(), ""},
		{"no headers at all", nil, ""},
	} {
		t.Run(tt.name, func(t *testing.T) {
			got, err := c.Key(&Message{Header: tt.head})
			if err != nil || got != tt.want {
				t.Errorf("Key = %q, %v, want %q", got, err, tt.want)
			}
		})
	}
}

func TestNumbersComeOutAsTheyWentIn(t *testing.T) {
	calls := `  - name: n
    match: {service: accounts, path: "/n"}
    undo: {path: "/n/{response.body.n}", params: {q: "{request.body.n}"}, body: {n: "{response.body.n}", text: "n={request.body.n}"}}
`
	c := compiled(t, calls).Calls()[0]
	for _, n := range []string{
		"42", "0", "-7", "9007199254740993", "9223372036854775807", "18446744073709551615", "123456789012345678901234567890",
		"10.10", "1.0", "0.1", "1e3", "1E+400", "-0", "3.14159265358979323846264338327950288",
	} {
		body := []byte(`{"n":` + n + `}`)
		record, err := c.Record(&Message{Path: "/n", Body: body})
		if err != nil {
			t.Fatal(err)
		}
		answer, err := c.RecordAnswer(&Message{Status: 201, Body: body})
		if err != nil {
			t.Fatal(err)
		}
		got, err := c.Render(txn.Undo, record, answer)
		if err != nil {
			t.Fatalf("%s: %v", n, err)
		}
		want := &Request{
			Service: "bank/accounts", Method: "POST", Path: "/n/" + escapeSegment(n), Query: "q=" + escapeSegment(n),
			Header: [][2]string{{"content-type", "application/json"}}, Body: []byte(`{"n":` + n + `,"text":"n=` + n + `"}`),
		}
		if d := cmp.Diff(want, got); d != "" {
			t.Errorf("undo with %s (-want +got):\n%s", n, d)
		}
	}
}

func TestEqualMessagesRecordEqualBytes(t *testing.T) {
	calls := `  - name: n
    match: {service: accounts, path: "/n"}
    undo: {path: /n, body: {a: "{request.body}", h: "{request.headers.x}", q: "{request.query.a}"}}
`
	c := compiled(t, calls).Calls()[0]
	one, err := c.Record(&Message{Path: "/n", Query: "b=1&a=<2>", Header: header("X", "v"), Body: []byte(`{"b": 1, "a": {"d":2,"c":"<&>"}}`)})
	if err != nil {
		t.Fatal(err)
	}
	two, err := c.Record(&Message{Path: "/n", Query: "a=<2>", Header: header("x", "v", "y", "w"), Body: []byte("{\"a\":{\"c\":\"\\u003c&>\",\"d\":2},\n\"b\":1}")})
	if err != nil {
		t.Fatal(err)
	}
	want := `{"request":{"body":{"a":{"c":"<&>","d":2},"b":1},"headers":{"x":"v"},"query":{"a":"<2>"}}}`
	if string(one) != want || string(two) != want {
		t.Errorf("records:\n%s\n%s\nwant\n%s", one, two, want)
	}
}

func TestCompressedBodiesAreRead(t *testing.T) {
	c := compiled(t, undoCall).Calls()[0]
	var b bytes.Buffer
	z := gzip.NewWriter(&b)
	if _, err := z.Write([]byte(`{"id":7}`)); err != nil {
		t.Fatal(err)
	}
	if err := z.Close(); err != nil {
		t.Fatal(err)
	}
	got, err := c.RecordAnswer(&Message{Status: 200, Header: header("content-encoding", "gzip"), Body: b.Bytes()})
	if want := `{"response":{"body":{"id":7}}}`; err != nil || string(got) != want {
		t.Errorf("record = %s, %v, want %s", got, err, want)
	}
	_, err = c.RecordAnswer(&Message{Status: 200, Header: header("content-encoding", "br"), Body: b.Bytes()})
	if want := `record the answer of a: read response.body: content-encoding "br" cannot be read; only gzip can`; err == nil || err.Error() != want {
		t.Errorf("error = %v, want %s", err, want)
	}
	_, err = c.RecordAnswer(&Message{Status: 200, Header: header("content-encoding", "gzip"), Body: b.Bytes()[:8]})
	if err == nil || !strings.Contains(err.Error(), "gunzip") {
		t.Errorf("error of a torn body = %v", err)
	}
}

func TestReadsNamesTheBodiesToBuffer(t *testing.T) {
	for _, tt := range []struct {
		name, call string
		want       Reads
	}{
		{"headers only", `undo: {path: "{+response.headers.location}"}`, Reads{}},
		{"path variables", `undo: {path: "/a/{path.id}"}`, Reads{}},
		{"response", `undo: {path: "/a/{response.body.id}"}`, Reads{ResponseBody: true}},
		{"request", `undo: {path: "/a/{request.body.id}"}`, Reads{RequestBody: true}},
		{"condition", `undo: {path: /a, when: response.body.ok}`, Reads{ResponseBody: true}},
		{"condition over both", `undo: {path: /a, when: response.body.ok || request.body.ok}`, Reads{RequestBody: true, ResponseBody: true}},
		{"outcome rule", `undo: {path: /a}, outcome: [{when: response.body.ok, is: OK}]`, Reads{ResponseBody: true}},
		{"outcome rule over the code", `undo: {path: /a}, outcome: [{when: response.code == 200, is: OK}]`, Reads{}},
		{"key", `undo: {path: /a}, key: request.body.id`, Reads{RequestBody: true}},
		{"hold", `hold: {}`, Reads{RequestBody: true}},
		{"irreversible", `irreversible: {reason: x}`, Reads{}},
	} {
		t.Run(tt.name, func(t *testing.T) {
			c := compiled(t, `  - {name: c, match: {service: s, path: "/a/{id}"}, `+tt.call+"}\n").Calls()[0]
			if got := c.Reads(); got != tt.want {
				t.Errorf("Reads = %+v, want %+v", got, tt.want)
			}
		})
	}
}

func TestDocumentsCompileAgainFromTheirHash(t *testing.T) {
	data, err := os.ReadFile("testdata/golden/meaning")
	if err != nil {
		t.Fatal(err)
	}
	_, text, _ := strings.Cut(string(data), "compile quiet\n")
	text, _, _ = strings.Cut(text, "\n----\n")
	s, err := Compile(Source{Name: "p.yaml", Data: []byte(text)})
	if err != nil {
		t.Fatal(err)
	}
	commented, err := Compile(Source{Name: "q.yaml", Data: []byte("# a comment\n" + text)})
	if err != nil {
		t.Fatal(err)
	}
	rules := s.Calls()
	rules = append(rules, s.Starts()[0].Own)
	for _, c := range rules {
		d, ok := s.Document(c.Document)
		if !ok {
			t.Fatalf("document %s of %s is not there", c.Document, c.Name)
		}
		again, err := Recompile(d, c.Name)
		if err != nil {
			t.Fatal(err)
		}
		if diff := cmp.Diff(c.Plan(), again.Plan()); diff != "" {
			t.Errorf("%s recompiled (-want +got):\n%s", c.Name, diff)
		}
		if _, ok := commented.Document(c.Document); !ok {
			t.Errorf("a comment changed the hash %s", c.Document)
		}
	}
	if _, err := Recompile(rules[0].Source(), "nobody"); err == nil || !strings.Contains(err.Error(), `no rule "nobody"`) {
		t.Errorf("error for an unknown rule = %v", err)
	}
}

func TestLoadReadsDirectoriesAndReportsEveryFile(t *testing.T) {
	dir := t.TempDir()
	write := func(name, text string) string {
		p := filepath.Join(dir, name)
		if err := os.WriteFile(p, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
		return p
	}
	a := write("a.yaml", policyOf(undoCall))
	write("b.txt", "nonsense: [")
	write(".c.yaml", "nonsense: [")
	s, err := Load(dir)
	if err != nil || len(s.Calls()) != 3 {
		t.Fatalf("Load = %v, %v", s, err)
	}
	b := write("b.yml", "kind: X\n")
	c := write("c.yaml", "a: [")
	_, err = Load(dir, filepath.Join(dir, "none.yaml"))
	want := fmt.Sprintf("%s:1:1: TXM0001: read %s: no such file or directory", filepath.Join(dir, "none.yaml"), filepath.Join(dir, "none.yaml"))
	if err == nil || err.Error() != want {
		t.Errorf("error = %v, want %s", err, want)
	}
	_, err = Load(a, b, c)
	want = b + `:1:1: TXM0004: document has no apiVersion` + "\n" + b + `:1:7: TXM0010: kind is "X"; allowed: TransactionPolicy, TransactionGrant, AccessPolicy, TrafficPolicy, PolicyTest` + "\n" +
		c + `:1:4: TXM0002: sequence end token ']' not found`
	if err == nil || err.Error() != want {
		t.Errorf("error:\n%v\nwant\n%s", err, want)
	}
}

func TestRulesServeManyGoroutines(t *testing.T) {
	data, err := os.ReadFile("testdata/golden/meaning")
	if err != nil {
		t.Fatal(err)
	}
	_, text, _ := strings.Cut(string(data), "compile quiet\n")
	text, _, _ = strings.Cut(text, "\n----\n")
	s, err := Compile(Source{Name: "p.yaml", Data: []byte(text)})
	if err != nil {
		t.Fatal(err)
	}
	var wg sync.WaitGroup
	for i := range 8 {
		wg.Go(func() {
			for n := range 50 {
				c := s.Call(Target{Service: "shop/stock", Method: "POST", Path: "/items/9"})
				body := fmt.Appendf(nil, `{"order":"o-%d","n":%d,"list":[]}`, i, n)
				req, res := &Message{Path: "/items/9", Body: body}, &Message{Status: 200, Body: []byte(`{"items":[{"id":1}]}`)}
				record, err := c.Record(req)
				if err != nil {
					t.Error(err)
				}
				answer, err := c.RecordAnswer(res)
				if err != nil {
					t.Error(err)
				}
				if out, cause := c.Outcome(txn.Forward, req, res); out != txn.OK {
					t.Error(out, cause)
				}
				got, err := c.Render(txn.Undo, record, answer)
				if err != nil {
					t.Error(err)
					return
				}
				if want := fmt.Sprintf(`"plus":%d`, n+1); !bytes.Contains(got.Body, []byte(want)) {
					t.Errorf("body %s has no %s", got.Body, want)
				}
			}
		})
	}
	wg.Wait()
}

func TestConditionWaitsForTheAnswerThatSomebodyKeeps(t *testing.T) {
	const call = `  - {name: c, match: {%s}, undo: {path: /u, when: response.body.status != "failed"}%s}` + "\n"
	for _, tt := range []struct {
		name, match, more, answer string
		want                      error
	}{
		{"a sidecar keeps it", "service: s", "", "", ErrNoAnswer},
		{"a sidecar keeps it, whatever onUnknown says", "service: s", ", onUnknown: Undo", "", ErrNoAnswer},
		{"a query finds it", "host: h", ", query: {path: /q}, onUnknown: Undo", "", ErrNoAnswer},
		{"nobody keeps it", "host: h", "", "", ErrNoAnswer},
		{"nobody keeps it, and the policy says undo", "host: h", ", onUnknown: Undo", "", nil},
		{"answered: failed", "service: s", "", `{"status":"failed"}`, ErrNothing},
		{"answered: done", "service: s", "", `{"status":"done"}`, nil},
		{"answered: nothing to judge by", "service: s", "", `{}`, nil},
	} {
		t.Run(tt.name, func(t *testing.T) {
			c := compiled(t, fmt.Sprintf(call, tt.match, tt.more)).Calls()[0]
			var answer []byte
			if tt.answer != "" {
				var err error
				if answer, err = c.RecordAnswer(&Message{Status: 200, Body: []byte(tt.answer)}); err != nil {
					t.Fatal(err)
				}
			}
			if _, err := c.Render(txn.Undo, nil, answer); !errors.Is(err, tt.want) {
				t.Errorf("Render with answer %s: %v, want %v", answer, err, tt.want)
			}
		})
	}
}

func TestFilesOfOtherSystemsAreRead(t *testing.T) {
	plain, err := Compile(Source{Name: "p.yaml", Data: []byte(policyOf(undoCall))})
	if err != nil {
		t.Fatal(err)
	}
	for name, text := range map[string]string{
		"carriage returns": strings.ReplaceAll(policyOf(undoCall), "\n", "\r\n"),
		"byte order mark":  "\ufeff" + policyOf(undoCall),
		"no last newline":  strings.TrimSuffix(policyOf(undoCall), "\n"),
		"document marks":   "%YAML 1.2\n---\n" + policyOf(undoCall) + "...\n",
		"JSON":             string(plain.Calls()[0].Source().Data),
	} {
		t.Run(name, func(t *testing.T) {
			s, err := Compile(Source{Name: "p.yaml", Data: []byte(text)})
			if err != nil {
				t.Fatal(err)
			}
			if got, want := s.Calls()[0].Document, plain.Calls()[0].Document; got != want {
				t.Errorf("hash = %s, want %s", got, want)
			}
		})
	}
}

func TestFaultInTextOverLinesIsPlacedAtItsStart(t *testing.T) {
	for name, text := range map[string]string{
		"folded":  "    key: >\n      request.body.a +\n      nobody\n",
		"plain":   "    key: request.body.a +\n      nobody\n",
		"quoted":  "    key: 'request.body.a +\n      nobody'\n",
		"literal": "    key: |\n      request.body.a +\n      nobody\n",
	} {
		t.Run(name, func(t *testing.T) {
			_, err := Compile(Source{Name: "p.yaml", Data: []byte(policyOf("  - name: a\n    match: {service: s}\n    undo: {path: /u}\n" + text))})
			if want := "p.yaml:9:10: TXM0016: call.key: undeclared reference to 'nobody'"; err == nil || err.Error() != want {
				t.Errorf("error = %v, want %s", err, want)
			}
		})
	}
}

// Order between transactions is refused; one that began before that was so must still end.
func TestOrderBetweenTransactionsIsRefused(t *testing.T) {
	const held = "  - {name: a, match: {service: a, path: \"/{box}\"}, hold: {%s}}\n"
	_, err := Compile(Source{Name: "p.yaml", Data: []byte(policyOf(fmt.Sprintf(held, "orderBy: path.box")))})
	want := "p.yaml:6:68: TXM0034: call.hold.orderBy is not supported yet: held calls are kept in order within a transaction alone; number the messages in their body, and let the receiver order them"
	if err == nil || err.Error() != want {
		t.Errorf("Compile = %v, want %s", err, want)
	}
	d := compiled(t, fmt.Sprintf(held, "")).Calls()[0].Source()
	d.Data = bytes.Replace(d.Data, []byte(`"hold":{}`), []byte(`"hold":{"orderBy":"path.box"}`), 1)
	if !bytes.Contains(d.Data, []byte("orderBy")) {
		t.Fatalf("no hold in %s", d.Data)
	}
	if _, err := Recompile(d, "a"); err != nil {
		t.Errorf("Recompile = %v, want nil", err)
	}
}

func TestDefaultsOfARule(t *testing.T) {
	s := compiled(t, `  - {name: service, match: {service: a}, undo: {path: /u}}
  - {name: host, match: {host: h}, undo: {path: /u}}
  - {name: key, match: {service: a, path: /k}, barrier: Key, undo: {path: /u}}
  - {name: queried, match: {host: h, path: /q}, undo: {path: /u}, query: {path: /q}}
`)
	type defaults struct {
		Barrier     Barrier
		OnUnknown   txn.Resolve
		Required    Required
		Ambiguous   Reaction
		Lost        Reaction
		Async       Async
		Timeout     time.Duration
		Retry       txn.Retry
		AbsentAfter time.Duration
	}
	retry := txn.Retry{Delay: 200 * time.Millisecond, DelayMax: 30 * time.Second, StuckAfter: time.Hour}
	want := []defaults{
		{Barrier: Proxy, OnUnknown: txn.ResolveAsk, Retry: retry},
		{Barrier: NoBarrier, OnUnknown: txn.ResolveStop, Retry: retry},
		{Barrier: Key, OnUnknown: txn.ResolveAsk, Retry: retry},
		{Barrier: NoBarrier, OnUnknown: txn.ResolveAsk, Retry: retry, AbsentAfter: time.Minute},
	}
	for i, c := range s.Calls() {
		got := defaults{c.Barrier, c.OnUnknown, c.Required, c.Ambiguous, c.Lost, c.Async, c.Timeout, c.Retry, c.AbsentAfter}
		if d := cmp.Diff(want[i], got); d != "" {
			t.Errorf("%s (-want +got):\n%s", c.Name, d)
		}
	}
}
