package arch

import (
	"fmt"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
)

// rule is one thing that the tree keeps to. Each has a folder of its name in testdata that breaks it.
type rule struct {
	name  string
	check func(tree) ([]finding, error)
}

func rules() []rule {
	return []rule{
		{"imports", imports},
		{"core", core},
		{"docs", docs},
		{"size", size},
		{"state", state},
		{"todo", todo},
		{"paths", paths},
		{"records", records},
		{"links", links},
	}
}

// finding is one line that breaks a rule.
type finding struct {
	path string // relative to the tree
	line int
	text string
}

func (f finding) String() string { return fmt.Sprintf("%s:%d: %s", f.path, f.line, f.text) }

func TestTreeKeepsItsRules(t *testing.T) {
	root, err := load("../..")
	if err != nil {
		t.Fatal(err)
	}
	for _, r := range rules() {
		t.Run(r.name, func(t *testing.T) {
			found, err := r.check(root)
			if err != nil {
				t.Fatal(err)
			}
			for _, f := range found {
				t.Error(f)
			}
		})
	}
}

// TestRulesSeeWhatIsBad runs each rule on its tree in testdata. A comment `want "text"` stands on each line that
// breaks it; a line without one must pass.
func TestRulesSeeWhatIsBad(t *testing.T) {
	for _, r := range rules() {
		t.Run(r.name, func(t *testing.T) {
			dir := filepath.Join("testdata", r.name)
			bad, err := load(dir)
			if err != nil {
				t.Fatal(err)
			}
			bad.funcLinesMax, bad.fileLinesMax = 6, 30 // so that the example stays small
			found, err := r.check(bad)
			if err != nil {
				t.Fatal(err)
			}
			var got []string
			for _, f := range found {
				got = append(got, f.String())
			}
			slices.Sort(got)
			want := wanted(t, dir)
			if len(want) == 0 {
				t.Fatalf("%s breaks nothing", dir)
			}
			if diff := cmp.Diff(want, got); diff != "" {
				t.Errorf("findings in %s (-want +got):\n%s", dir, diff)
			}
		})
	}
}

func wanted(t *testing.T, dir string) []string {
	t.Helper()
	mark := regexp.MustCompile("want `([^`]*)`")
	var want []string
	err := filepath.WalkDir(dir, func(path string, d os.DirEntry, err error) error {
		if err != nil || d.IsDir() {
			return err
		}
		data, err := os.ReadFile(path)
		if err != nil {
			return err
		}
		name, err := filepath.Rel(dir, path)
		for i, line := range strings.Split(string(data), "\n") {
			for _, m := range mark.FindAllStringSubmatch(line, -1) {
				want = append(want, finding{filepath.ToSlash(name), i + 1, m[1]}.String())
			}
		}
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	slices.Sort(want)
	return want
}
