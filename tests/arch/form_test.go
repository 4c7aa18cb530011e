package arch

import (
	"fmt"
	"go/ast"
	"os"
	"path"
	"path/filepath"
	"regexp"
	"strings"
)

// docs wants a doc comment on every package, in the form that go doc shows.
func docs(t tree) ([]finding, error) {
	first, documented := map[string]source{}, map[string]bool{}
	var found []finding
	for _, s := range t.files {
		dir := s.dir()
		if _, seen := first[dir]; !seen || first[dir].isTest() && !s.isTest() {
			first[dir] = s
		}
		if s.ast.Doc == nil {
			continue
		}
		documented[dir] = true
		if name := s.ast.Name.Name; name != "main" && !s.isTest() && !strings.HasPrefix(s.ast.Doc.Text(), "Package "+name+" ") {
			found = append(found, t.at(s, s.ast.Name, "the doc comment begins with Package %s and says what it does", name))
		}
	}
	for dir, s := range first {
		if !documented[dir] {
			found = append(found, t.at(s, s.ast.Name, "package %s has no doc comment: what it decides, what it never does, where to start reading", s.ast.Name.Name))
		}
	}
	return found, nil
}

// size keeps functions on a screen and files in one room.
func size(t tree) ([]finding, error) {
	var found []finding
	for _, s := range t.files {
		if s.isTest() || s.generated() {
			continue
		}
		if n := t.line(s.ast.FileEnd); n > t.fileLinesMax {
			found = append(found, t.at(s, s.ast.Name, "%d lines in a file, at most %d: perhaps two rooms", n, t.fileLinesMax))
		}
		for _, d := range s.ast.Decls {
			f, ok := d.(*ast.FuncDecl)
			if !ok {
				continue
			}
			if n := t.line(f.End()) - t.line(f.Pos()) + 1; n > t.funcLinesMax {
				found = append(found, t.at(s, f, "%d lines in function %s, at most %d", n, f.Name.Name, t.funcLinesMax))
			}
		}
	}
	return found, nil
}

// todo wants the number of an issue on every promise.
func todo(t tree) ([]finding, error) {
	word := regexp.MustCompile(`\b(TODO|FIXME|XXX)\b`)
	withNumber := regexp.MustCompile(`\bTODO\(#\d+\)`)
	var found []finding
	for _, s := range t.files {
		for _, group := range s.ast.Comments {
			for _, c := range group.List {
				for i, line := range strings.Split(c.Text, "\n") {
					if w := word.FindString(line); w != "" && !withNumber.MatchString(line) {
						found = append(found, finding{s.path, t.line(c.Pos()) + i, w + " without the number of an issue in brackets"})
					}
				}
			}
		}
	}
	return found, nil
}

// paths refuses absolute paths of the machine that something was written on.
func paths(t tree) ([]finding, error) {
	home := regexp.MustCompile(`(?:^|[^A-Za-z0-9._~}-])/(?:work|root|home|Users)/[A-Za-z0-9._-]`)
	var found []finding
	for _, x := range t.texts {
		for i, line := range x.lines {
			if home.MatchString(line) {
				found = append(found, finding{x.path, i + 1, "an absolute path of one machine"})
			}
		}
	}
	return found, nil
}

// records wants every decision in the index of its folder, under the title that it has itself.
func records(t tree) ([]finding, error) {
	var found []finding
	var index string
	for _, x := range t.texts {
		if x.path == "docs/adr/README.md" {
			index = strings.Join(x.lines, "\n")
		}
	}
	for _, x := range t.texts {
		number, title, ok := strings.Cut(strings.TrimPrefix(x.lines[0], "# "), ". ")
		if path.Dir(x.path) != "docs/adr" || !numbered(path.Base(x.path)) {
			continue
		}
		title, _, _ = strings.Cut(title, " <!--")
		if line := fmt.Sprintf("| [%s](%s) | %s |", number, path.Base(x.path), title); !ok || !strings.Contains(index, line) {
			found = append(found, finding{x.path, 1, "not in docs/adr/README.md: " + line})
		}
	}
	return found, nil
}

func numbered(name string) bool { return len(name) > 5 && strings.Trim(name[:4], "0123456789") == "" }

// links wants the file behind every relative link of a document.
func links(t tree) ([]finding, error) {
	link := regexp.MustCompile(`\]\(([^)#\s]+)(?:#[^)]*)?\)`)
	var found []finding
	for _, x := range t.texts {
		if path.Ext(x.path) != ".md" {
			continue
		}
		for i, line := range x.lines {
			for _, m := range link.FindAllStringSubmatch(line, -1) {
				if strings.Contains(m[1], "://") || strings.HasPrefix(m[1], "mailto:") {
					continue
				}
				if _, err := os.Stat(filepath.Join(t.root, path.Dir(x.path), m[1])); err != nil {
					found = append(found, finding{x.path, i + 1, "link to " + m[1] + ", which does not exist"})
				}
			}
		}
	}
	return found, nil
}
