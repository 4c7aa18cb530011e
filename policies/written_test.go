package policies

import (
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
)

const grantText = "apiVersion: txmesh.io/v1beta1\nkind: TransactionGrant\nmetadata: {name: p, namespace: stock}\nspec: {to: [bank]}\n"

func TestDocumentsAreHandedOnAsTheyWereWritten(t *testing.T) {
	one := "# first\n" + policyOf(undoCall)
	two := strings.Replace(policyOf(undoCall), "name: p,", "name: q,", 1)
	test := "apiVersion: txmesh.io/v1beta1\nkind: PolicyTest\ncases: []\n"
	for name, file := range map[string]string{
		"marks between":   one + "---\n" + two + "---\n" + test + "---\n" + grantText,
		"marks around":    "---\n" + one + "...\n---\n" + two + "--- \n" + grantText + "---\n",
		"directive first": "%YAML 1.2\n---\n" + one + "---\n" + two + "---\n" + grantText,
		"byte order mark": "\ufeff" + one + "---\n" + two + "---\n" + test + "---\n" + grantText,
	} {
		t.Run(name, func(t *testing.T) {
			s, err := Compile(Source{Name: "p.yaml", Data: []byte(file)})
			if err != nil {
				t.Fatal(err)
			}
			want := []Document{
				{Kind: "TransactionPolicy", Namespace: "bank", Name: "p", Text: []byte(one)},
				{Kind: "TransactionPolicy", Namespace: "bank", Name: "q", Text: []byte(two)},
				{Kind: "TransactionGrant", Namespace: "stock", Name: "p", Text: []byte(grantText)},
			}
			if d := cmp.Diff(want, s.Documents()); d != "" {
				t.Errorf("Documents (-want +got):\n%s", d)
			}
		})
	}
}

func TestDocumentOnTheLineOfItsMark(t *testing.T) {
	json := `{"apiVersion":"txmesh.io/v1beta1","kind":"TransactionGrant","metadata":{"name":"a","namespace":"b"},"spec":{"to":["c"]}}`
	s, err := Compile(Source{Name: "p.yaml", Data: []byte(grantText + "--- " + json + "\n")})
	if err != nil {
		t.Fatal(err)
	}
	if got := string(s.Documents()[1].Text); got != "--- "+json+"\n" {
		t.Errorf("second document = %q", got)
	}
}

func TestWrittenDocumentsCompileToTheSameSet(t *testing.T) {
	files, err := filepath.Glob("../examples/*/*.yaml")
	if err != nil || len(files) == 0 {
		t.Fatalf("examples: %v, %v", files, err)
	}
	data, err := os.ReadFile("testdata/golden/meaning")
	if err != nil {
		t.Fatal(err)
	}
	_, text, _ := strings.Cut(string(data), "compile quiet\n")
	text, _, _ = strings.Cut(text, "\n----\n")
	sources := []Source{{Name: "meaning", Data: []byte(text)}}
	for _, f := range files {
		more, err := Read(f)
		if err != nil {
			t.Fatal(err)
		}
		sources = append(sources, more...)
	}
	for _, src := range sources {
		s, err := Compile(src)
		if err != nil {
			t.Fatal(err)
		}
		var again []Source
		for _, d := range s.Documents() {
			again = append(again, Source{Name: d.Namespace + "/" + d.Name, Data: d.Text})
		}
		got, err := Compile(again...)
		if err != nil {
			t.Fatalf("%s: %v", src.Name, err)
		}
		if d := cmp.Diff(hashes(s), hashes(got)); d != "" {
			t.Errorf("%s: hashes of the documents (-want +got):\n%s", src.Name, d)
		}
	}
}

func hashes(s *Set) map[string]bool {
	out := map[string]bool{}
	for h := range s.docs {
		out[h] = true
	}
	return out
}
