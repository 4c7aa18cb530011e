package arch

import (
	"go/ast"
	"go/token"
)

// state refuses what two of us in one process would share: init functions and package variables that can change.
// Errors, patterns, dates, values computed once and unexported tables that nothing writes to are constants by
// another name.
func state(t tree) ([]finding, error) {
	packages := map[string][]source{}
	for _, s := range t.files {
		if !s.isTest() && !s.generated() {
			packages[s.dir()] = append(packages[s.dir()], s)
		}
	}
	var found []finding
	for _, files := range packages {
		written := map[string]bool{}
		for _, s := range files {
			writes(s.ast, written)
		}
		for _, s := range files {
			for _, d := range s.ast.Decls {
				found = append(found, t.stateOf(s, d, written)...)
			}
		}
	}
	return found, nil
}

func (t tree) stateOf(s source, d ast.Decl, written map[string]bool) []finding {
	if f, ok := d.(*ast.FuncDecl); ok && f.Recv == nil && f.Name.Name == "init" {
		return []finding{t.at(s, f, "no init function: what a type needs is a field or an argument")}
	}
	g, ok := d.(*ast.GenDecl)
	if !ok || g.Tok != token.VAR {
		return nil
	}
	var found []finding
	for _, spec := range g.Specs {
		v := spec.(*ast.ValueSpec)
		for i, name := range v.Names {
			var value ast.Expr
			if i < len(v.Values) {
				value = v.Values[i]
			}
			if why := mutable(name.Name, value, written); why != "" && !embedded(g, v) {
				found = append(found, t.at(s, name, "package variable %s %s", name.Name, why))
			}
		}
	}
	return found
}

// mutable says why a package variable can change, or nothing.
func mutable(name string, value ast.Expr, written map[string]bool) string {
	if name == "_" {
		return ""
	}
	if written[name] {
		return "is written to: make it a field"
	}
	switch value := value.(type) {
	case *ast.CallExpr:
		switch callee(value) {
		case "errors.New", "fmt.Errorf", "regexp.MustCompile", "sync.OnceValue", "sync.OnceValues", "time.Date":
			return ""
		}
		return "holds the result of a call: make it a field or a function"
	case *ast.BasicLit:
		if ast.IsExported(name) {
			return "can be written by every importer: make it a constant"
		}
		return "" // the linker sets such a one
	case *ast.CompositeLit:
		if ast.IsExported(name) {
			return "can be written by every importer: make it a function that returns it"
		}
		return ""
	}
	return "has no fixed value: make it a field"
}

// embedded reports whether the compiler fills the variable from a file.
func embedded(g *ast.GenDecl, v *ast.ValueSpec) bool {
	for _, group := range []*ast.CommentGroup{g.Doc, v.Doc} {
		if group == nil {
			continue
		}
		for _, c := range group.List {
			if len(c.Text) > 11 && c.Text[:11] == "//go:embed " {
				return true
			}
		}
	}
	return false
}

func callee(call *ast.CallExpr) string {
	if s, ok := call.Fun.(*ast.SelectorExpr); ok {
		if x, ok := s.X.(*ast.Ident); ok {
			return x.Name + "." + s.Sel.Name
		}
	}
	return ""
}

// writes collects the names that functions assign to, count up, delete from or take the address of, and do not
// declare themselves.
func writes(f *ast.File, written map[string]bool) {
	for _, d := range f.Decls {
		fn, ok := d.(*ast.FuncDecl)
		if !ok || fn.Body == nil {
			continue
		}
		own := declared(fn)
		note := func(e ast.Expr) {
			if name := rootOf(e); name != "" && !own[name] {
				written[name] = true
			}
		}
		ast.Inspect(fn.Body, func(n ast.Node) bool {
			switch n := n.(type) {
			case *ast.AssignStmt:
				for _, e := range n.Lhs {
					note(e)
				}
			case *ast.IncDecStmt:
				note(n.X)
			case *ast.UnaryExpr:
				if n.Op == token.AND {
					note(n.X)
				}
			case *ast.CallExpr:
				if x, ok := n.Fun.(*ast.Ident); ok && (x.Name == "delete" || x.Name == "clear" || x.Name == "copy") {
					note(n.Args[0])
				}
			}
			return true
		})
	}
}

// declared collects the names of a function's own variables, parameters and results.
func declared(fn *ast.FuncDecl) map[string]bool {
	own := map[string]bool{}
	add := func(names ...*ast.Ident) {
		for _, n := range names {
			own[n.Name] = true
		}
	}
	ast.Inspect(fn, func(n ast.Node) bool {
		switch n := n.(type) {
		case *ast.Field:
			add(n.Names...)
		case *ast.ValueSpec:
			add(n.Names...)
		case *ast.AssignStmt:
			if n.Tok == token.DEFINE {
				for _, e := range n.Lhs {
					if x, ok := e.(*ast.Ident); ok {
						add(x)
					}
				}
			}
		case *ast.RangeStmt:
			for _, e := range []ast.Expr{n.Key, n.Value} {
				if x, ok := e.(*ast.Ident); ok && n.Tok == token.DEFINE {
					add(x)
				}
			}
		}
		return true
	})
	return own
}

// rootOf is the variable at the left of a[i].b, or nothing.
func rootOf(e ast.Expr) string {
	for {
		switch x := e.(type) {
		case *ast.Ident:
			return x.Name
		case *ast.SelectorExpr:
			e = x.X
		case *ast.IndexExpr:
			e = x.X
		case *ast.StarExpr:
			e = x.X
		case *ast.ParenExpr:
			e = x.X
		case *ast.SliceExpr:
			e = x.X
		default:
			return ""
		}
	}
}
