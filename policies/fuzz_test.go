package policies

import (
	"errors"
	"net/http"
	"net/url"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"unicode/utf8"

	"github.com/google/go-cmp/cmp"

	"txmesh/txn"
)

// seedDocuments are the inputs of the golden files.
func seedDocuments(f *testing.F) {
	files, err := filepath.Glob("testdata/golden/*")
	if err != nil || len(files) == 0 {
		f.Fatal("no golden files", err)
	}
	for _, file := range files {
		data, err := os.ReadFile(file)
		if err != nil {
			f.Fatal(err)
		}
		for _, part := range strings.Split("\n"+string(data), "\ncompile")[1:] {
			_, text, _ := strings.Cut(part, "\n")
			text, _, _ = strings.Cut(text, "\n----\n")
			f.Add([]byte(text))
		}
	}
}

// FuzzCompile holds that every text gives either findings with places, or rules that compile again from their
// canonical source and mean the same.
func FuzzCompile(f *testing.F) {
	seedDocuments(f)
	f.Fuzz(func(t *testing.T, data []byte) {
		s, err := Compile(Source{Name: "f", Data: data})
		if err != nil {
			fs, ok := errors.AsType[Findings](err)
			if !ok || len(fs) == 0 {
				t.Fatalf("error is not findings: %v", err)
			}
			for _, x := range fs {
				if x.Line < 1 || x.Column < 1 || x.Code == "" || x.Remedy() == "" || strings.Contains(x.Text, "\n") {
					t.Fatalf("finding without place, code or remedy: %#v", x)
				}
			}
			return
		}
		for _, c := range s.Calls() {
			again, err := Recompile(c.Source(), c.Name)
			if err != nil {
				t.Fatalf("recompile: %v\n%s", err, c.Source().Data)
			}
			if d := cmp.Diff(c.Plan(), again.Plan()); d != "" {
				t.Fatalf("recompiled (-want +got):\n%s", d)
			}
		}
	})
}

// FuzzRender holds that whatever a service answers, the undo goes to the place that the policy names: the same
// segments, the same parameter, the same header, or an error.
func FuzzRender(f *testing.F) {
	calls := `  - name: n
    match: {service: accounts, path: "/n/{id}/x"}
    undo: {path: "/n/{path.id}/{response.body.n}", params: {q: "{response.body.n}"}, headers: {x-n: "{response.body.n}"}, body: {n: "{response.body.n}"}}
  - name: location
    match: {service: orders}
    undo: {path: "{+response.headers.location}"}
`
	s := compiled(f, calls)
	n, location := s.Calls()[0], s.Calls()[1]
	for _, v := range []string{"a", "../x", "..", "%2e%2e", "a/b", "a?b#c", "a b", "ü", "\x00", "//h/x", "http://h/x", "/a/%2e%2e/b", "/a?b=c", `\..\`, "%", "\r\nx: y"} {
		f.Add(v, "/n/"+url.PathEscape(v)+"/x")
	}
	f.Fuzz(func(t *testing.T, value, path string) {
		if !utf8.ValidString(value) {
			t.Skip("JSON has no such string")
		}
		body, err := encodeJSON(map[string]any{"n": value})
		if err != nil {
			t.Fatal(err)
		}
		answer, err := n.RecordAnswer(&Message{Status: 200, Body: body})
		if err != nil {
			t.Fatalf("record answer %q: %v", value, err)
		}
		record, err := n.Record(&Message{Path: path})
		if err != nil {
			return
		}
		r, err := n.Render(txn.Undo, record, answer)
		if err == nil {
			checkRendered(t, r, value)
		}
		answer, err = location.RecordAnswer(&Message{Status: 200, Header: header("location", value)})
		if err != nil {
			return
		}
		if r, err = location.Render(txn.Undo, nil, answer); err == nil {
			checkTarget(t, r)
		}
	})
}

func checkRendered(t *testing.T, r *Request, value string) {
	u := checkTarget(t, r)
	parts := strings.Split(u.EscapedPath(), "/")
	if len(parts) != 4 || parts[1] != "n" {
		t.Fatalf("path %q has other segments than the template", r.Path)
	}
	if got, err := url.PathUnescape(parts[3]); err != nil || got != value {
		t.Fatalf("segment %q decodes to %q, want %q", parts[3], got, value)
	}
	if got := u.Query(); len(got) != 1 || len(got["q"]) != 1 || got.Get("q") != value {
		t.Fatalf("query %q decodes to %v, want q=%q", r.Query, got, value)
	}
	v, err := decodeJSON(r.Body)
	if err != nil || cmp.Diff(v, any(map[string]any{"n": value})) != "" {
		t.Fatalf("body %s, %v, want n=%q", r.Body, err, value)
	}
}

// checkTarget sends the request through the standard library's parser, as another program would read it.
func checkTarget(t *testing.T, r *Request) *url.URL {
	target := r.Path
	if r.Query != "" {
		target += "?" + r.Query
	}
	u, err := url.ParseRequestURI(target)
	if err != nil {
		t.Fatalf("target %q: %v", target, err)
	}
	if u.Host != "" || u.Scheme != "" || strings.HasPrefix(r.Path, "//") || strings.ContainsAny(target, " \r\n#") {
		t.Fatalf("target %q leads elsewhere", target)
	}
	for part := range strings.SplitSeq(u.Path, "/") {
		if part == "." || part == ".." {
			t.Fatalf("target %q has a dot segment", target)
		}
	}
	for _, h := range r.Header {
		if strings.ContainsAny(h[1], "\r\n\x00") || http.CanonicalHeaderKey(h[0]) == "" {
			t.Fatalf("header %q is not one line", h)
		}
	}
	return u
}

// FuzzDecodesTo holds that matching an encoded segment agrees with the standard library.
func FuzzDecodesTo(f *testing.F) {
	f.Add("a%20b", "a b")
	f.Add("%", "%")
	f.Add("%4", "4")
	f.Add("%41", "B")
	f.Add("%41b", "A")
	f.Add("%41", "Ab")
	f.Fuzz(func(t *testing.T, encoded, plain string) {
		want, err := url.PathUnescape(encoded)
		if got := decodesTo(encoded, plain); got != (err == nil && want == plain) {
			t.Errorf("decodesTo(%q, %q) = %v; decoded %q, %v", encoded, plain, got, want, err)
		}
		if err == nil && !decodesTo(encoded, want) {
			t.Errorf("decodesTo(%q, %q) = false", encoded, want)
		}
	})
}
