package arch

import (
	"bytes"
	"fmt"
	"go/ast"
	"go/parser"
	"go/token"
	"io/fs"
	"os"
	"path"
	"path/filepath"
	"strings"
	"unicode/utf8"
)

// textBytesMax is the size above which a file is data, not text.
const textBytesMax = 1 << 20

// tree is all Go files and all texts of one module.
type tree struct {
	root  string
	fset  *token.FileSet
	files []source
	texts []text

	funcLinesMax, fileLinesMax int
}

// source is one Go file.
type source struct {
	path string // relative to the root, with slashes
	ast  *ast.File
}

// text is one file that people read.
type text struct {
	path  string
	lines []string
}

func (s source) dir() string     { return path.Dir(s.path) }
func (s source) isTest() bool    { return strings.HasSuffix(s.path, "_test.go") }
func (s source) generated() bool { return ast.IsGenerated(s.ast) }

func (t tree) line(p token.Pos) int { return t.fset.Position(p).Line }

func (t tree) at(s source, n ast.Node, format string, args ...any) finding {
	return finding{s.path, t.line(n.Pos()), fmt.Sprintf(format, args...)}
}

// load reads the module at root. What the go command does not look at stays out: modules of their own below it,
// testdata (of Go files), and folders that begin with a dot, except those that the project's tools read.
func load(root string) (tree, error) {
	t := tree{root: root, fset: token.NewFileSet(), funcLinesMax: 60, fileLinesMax: 500}
	err := filepath.WalkDir(root, func(name string, d fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		if d.IsDir() {
			if name != root && foreign(root, name) {
				return filepath.SkipDir
			}
			return nil
		}
		if !d.Type().IsRegular() {
			return nil
		}
		return t.add(name)
	})
	return t, err
}

func foreign(root, name string) bool {
	rel, err := filepath.Rel(root, name)
	if err != nil {
		return true
	}
	switch rel = filepath.ToSlash(rel); rel {
	case ".ci", ".github":
		return false
	case "bin", "benchmarks/out", "tests/arch/testdata":
		return true
	}
	if _, err := os.Stat(filepath.Join(name, "go.mod")); err == nil {
		return true
	}
	base := path.Base(rel)
	return strings.HasPrefix(base, ".") || base == "node_modules"
}

func (t *tree) add(name string) error {
	rel, err := filepath.Rel(t.root, name)
	if err != nil {
		return err
	}
	rel = filepath.ToSlash(rel)
	data, err := os.ReadFile(name)
	if err != nil {
		return err
	}
	if len(data) <= textBytesMax && utf8.Valid(data) && !bytes.ContainsRune(data, 0) {
		t.texts = append(t.texts, text{rel, strings.Split(string(data), "\n")})
	}
	if !strings.HasSuffix(rel, ".go") || strings.Contains("/"+rel, "/testdata/") {
		return nil
	}
	f, err := parser.ParseFile(t.fset, name, data, parser.ParseComments|parser.SkipObjectResolution)
	if err != nil {
		return err
	}
	t.files = append(t.files, source{rel, f})
	return nil
}
