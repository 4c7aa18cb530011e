package arch

import (
	"fmt"
	"go/ast"
	"go/importer"
	"go/token"
	"go/types"
	"path"
	"slices"
	"strings"
)

// coreImports is what the core may use of the standard library: nothing that reads a clock, the network, the disk or
// a random number, starts a goroutine or writes a log.
func coreImports() []string {
	return []string{
		"bytes", "cmp", "encoding/base64", "encoding/binary", "encoding/hex", "errors", "fmt", "hash/fnv", "iter",
		"maps", "math", "math/bits", "slices", "sort", "strconv", "strings", "time", "unicode", "unicode/utf8",
	}
}

// core keeps package txn and those below it pure: same input, same output, byte for byte.
func core(t tree) ([]finding, error) {
	byDir := map[string][]source{}
	for _, s := range t.files {
		if !s.isTest() && covers("txn/...", s.dir()) {
			byDir[s.dir()] = append(byDir[s.dir()], s)
		}
	}
	var found []finding
	for dir, files := range byDir {
		info, err := t.typesOf(dir, files)
		if err != nil {
			return nil, err
		}
		for _, s := range files {
			found = append(found, t.impure(s, info)...)
		}
	}
	return found, nil
}

// typesOf checks the types of one package, to know a map when it sees one. Our own packages are read from the tree.
func (t tree) typesOf(dir string, files []source) (*types.Info, error) {
	info := &types.Info{Types: map[ast.Expr]types.TypeAndValue{}, Uses: map[*ast.Ident]types.Object{}}
	c := types.Config{Importer: t.importer()}
	if _, err := c.Check(module+dir, t.fset, asts(files), info); err != nil {
		return nil, fmt.Errorf("check the types of %s: %w", dir, err)
	}
	return info, nil
}

type treeImporter struct {
	tree     tree
	standard types.Importer
}

func (t tree) importer() types.Importer {
	return treeImporter{t, importer.ForCompiler(t.fset, "source", nil)}
}

func (i treeImporter) Import(name string) (*types.Package, error) {
	dir, ours := strings.CutPrefix(name, module)
	if !ours {
		return i.standard.Import(name)
	}
	var files []source
	for _, s := range i.tree.files {
		if s.dir() == dir && !s.isTest() {
			files = append(files, s)
		}
	}
	c := types.Config{Importer: i}
	return c.Check(name, i.tree.fset, asts(files), nil)
}

func asts(files []source) []*ast.File {
	var out []*ast.File
	for _, s := range files {
		out = append(out, s.ast)
	}
	return out
}

func (t tree) impure(s source, info *types.Info) []finding {
	var found []finding
	for _, spec := range s.ast.Imports {
		name := strings.Trim(spec.Path.Value, `"`)
		if !covers("txn/...", strings.TrimPrefix(name, module)) && !slices.Contains(coreImports(), name) {
			found = append(found, t.at(s, spec, "the core may not import %s", name))
		}
	}
	sorted := map[ast.Expr]bool{} // maps.Keys and the like whose order is made good at once
	ast.Inspect(s.ast, func(n ast.Node) bool {
		if call, ok := n.(*ast.CallExpr); ok {
			if name := called(call, info); strings.HasPrefix(name, "slices.Sorted") {
				sorted[call.Args[0]] = true
			}
		}
		if why := impurity(n, info, sorted); why != "" {
			found = append(found, t.at(s, n, "%s", why))
		}
		return true
	})
	return found
}

// impurity says what is wrong with one node, or nothing.
func impurity(n ast.Node, info *types.Info, sorted map[ast.Expr]bool) string {
	switch n := n.(type) {
	case *ast.GoStmt:
		return "the core starts no goroutine"
	case *ast.ChanType, *ast.SendStmt, *ast.SelectStmt:
		return "the core has no channels"
	case *ast.UnaryExpr:
		if n.Op == token.ARROW {
			return "the core has no channels"
		}
	case *ast.RangeStmt:
		if tv, ok := info.Types[n.X]; ok {
			if _, isMap := tv.Type.Underlying().(*types.Map); isMap {
				return "the core does not range over a map: its order differs from run to run"
			}
		}
	case *ast.CallExpr:
		name := called(n, info)
		switch name {
		case "maps.All", "maps.Keys", "maps.Values":
			if !sorted[n] {
				return name + " has no order: sort it at once with slices.Sorted"
			}
		}
	case *ast.SelectorExpr: // also as a value: clock := time.Now
		switch name := selected(n, info); name {
		case "time.Now", "time.Since", "time.Until", "time.Sleep", "time.After", "time.AfterFunc", "time.Tick",
			"time.NewTimer", "time.NewTicker":
			return "the core reads no clock: " + name + " comes in as a value"
		}
	}
	return ""
}

func called(call *ast.CallExpr, info *types.Info) string {
	if s, ok := call.Fun.(*ast.SelectorExpr); ok {
		return selected(s, info)
	}
	return ""
}

// selected is package.Name of a selector on a package, whatever the file calls that package.
func selected(s *ast.SelectorExpr, info *types.Info) string {
	if x, ok := s.X.(*ast.Ident); ok {
		if p, ok := info.Uses[x].(*types.PkgName); ok {
			return path.Base(p.Imported().Path()) + "." + s.Sel.Name
		}
	}
	return ""
}
