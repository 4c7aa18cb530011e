package policies

import (
	"errors"
	"fmt"
	"slices"
	"strings"

	"cel.dev/cel-go/cel"
	"cel.dev/cel-go/common/ast"
	"cel.dev/cel-go/common/operators"
	"cel.dev/cel-go/common/types"
	"cel.dev/cel-go/common/types/ref"
	"cel.dev/cel-go/common/types/traits"
	"cel.dev/cel-go/ext"
)

// The bounds of one expression: its text, and the work of one evaluation in CEL's units of cost.
const (
	exprBytesMax = 4 << 10
	exprCostMax  = 200_000
)

// expr is a compiled expression: a plain path, read without CEL and therefore to the last digit, or a program.
type expr struct {
	text    string
	plain   path
	program cel.Program
	reads   *tree
}

// scope is what an expression can see: the pruned request, response and path variables.
type scope map[string]any

// ResolveName gives CEL the variable request.body and its like.
func (s scope) ResolveName(name string) (any, bool) {
	v, err := lookup(map[string]any(s), splitName(name))
	if err != nil {
		return nil, false
	}
	return celValue(v), true
}

// Parent ends the chain of activations.
func (s scope) Parent() cel.Activation { return nil }

func splitName(name string) path {
	root, field, ok := strings.Cut(name, ".")
	if !ok {
		return path{root}
	}
	return path{root, field}
}

// eval returns the value as JSON has it. A value that is not there is errMissing; anything else that goes wrong is
// an error of its own.
func (e *expr) eval(s scope) (any, error) {
	if e.program == nil {
		return lookup(map[string]any(s), e.plain)
	}
	out, _, err := e.program.Eval(s)
	if err != nil {
		if strings.HasPrefix(err.Error(), "index out of bounds") {
			return nil, fmt.Errorf("%s: %w (%w)", e.text, errItem, err)
		}
		if isMissing(err) {
			return nil, fmt.Errorf("%s: %w (%w)", e.text, errMissing, err)
		}
		return nil, fmt.Errorf("%s: %w", e.text, err)
	}
	v, err := fromCEL(out)
	if err != nil {
		return nil, fmt.Errorf("%s: %w", e.text, err)
	}
	return v, nil
}

// evalBool is for conditions.
func (e *expr) evalBool(s scope) (bool, error) {
	v, err := e.eval(s)
	if err != nil {
		return false, err
	}
	b, ok := v.(bool)
	if !ok {
		return false, fmt.Errorf("%s: is %s, not a boolean", e.text, typeName(v))
	}
	return b, nil
}

// errItem is errMissing in a list that is too short.
var errItem = fmt.Errorf("%w item", errMissing)

// isMissing knows CEL's errors for absent fields, keys and variables.
func isMissing(err error) bool {
	text := err.Error()
	for _, s := range []string{"no such key", "no such attribute", "no such field"} {
		if strings.HasPrefix(text, s) {
			return true
		}
	}
	return false
}

func fromCELContainer(v any) (any, error) {
	switch v := v.(type) {
	case traits.Mapper:
		out := map[string]any{}
		for it := v.Iterator(); it.HasNext() == types.True; {
			k := it.Next()
			name, ok := k.(types.String)
			if !ok {
				return nil, fmt.Errorf("a key is %s, not a string", k.Type())
			}
			e, err := fromCEL(v.Get(k))
			if err != nil {
				return nil, err
			}
			out[string(name)] = e
		}
		return out, nil
	case traits.Lister:
		out := []any{}
		for it := v.Iterator(); it.HasNext() == types.True; {
			e, err := fromCEL(it.Next())
			if err != nil {
				return nil, err
			}
			out = append(out, e)
		}
		return out, nil
	case *types.Err:
		return nil, v
	case ref.Val:
		return nil, fmt.Errorf("a %s has no form in JSON", v.Type())
	}
	return nil, fmt.Errorf("a %T has no form in JSON", v)
}

// variables are the names that expressions know, with their types.
func variables() []cel.EnvOption {
	text := cel.MapType(cel.StringType, cel.StringType)
	return []cel.EnvOption{
		cel.Variable("request.method", cel.StringType),
		cel.Variable("request.path", cel.StringType),
		cel.Variable("request.query", text),
		cel.Variable("request.headers", text),
		cel.Variable("request.body", cel.DynType),
		cel.Variable("request.message", cel.StringType),
		cel.Variable("response.code", cel.IntType),
		cel.Variable("response.headers", text),
		cel.Variable("response.body", cel.DynType),
		cel.Variable("response.message", cel.StringType),
		cel.Variable("response.grpc", text),
		cel.Variable("path", text),
	}
}

// members are the fields of the roots, for plain paths and for suggestions.
func members(root string) []string {
	switch root {
	case "request":
		return []string{"method", "path", "query", "headers", "body", "message"}
	case "response":
		return []string{"code", "headers", "body", "message", "grpc"}
	}
	return nil
}

func newEnv() (*cel.Env, error) {
	return cel.NewEnv(append(variables(), ext.Strings(), cel.ParserExpressionSizeLimit(exprBytesMax))...)
}

// program compiles a checked syntax tree under the cost limit.
func program(env *cel.Env, checked *cel.Ast) (cel.Program, error) {
	return env.Program(checked, cel.EvalOptions(cel.OptOptimize), cel.CostLimit(exprCostMax))
}

// collect returns what a syntax tree reads. Constant selections are followed to their end; where one is computed,
// the value before it counts as read whole.
func collect(e ast.Expr) *tree {
	t := &tree{}
	walk(e, nil, t)
	return t
}

func walk(e ast.Expr, bound []string, t *tree) {
	if p, ok := chain(e, bound); ok {
		t.add(p)
		return
	}
	switch e.Kind() {
	case ast.SelectKind:
		walk(e.AsSelect().Operand(), bound, t)
	case ast.CallKind:
		walkCall(e.AsCall(), bound, t)
	case ast.ListKind:
		for _, item := range e.AsList().Elements() {
			walk(item, bound, t)
		}
	case ast.MapKind:
		for _, entry := range e.AsMap().Entries() {
			m := entry.AsMapEntry()
			walk(m.Key(), bound, t)
			walk(m.Value(), bound, t)
		}
	case ast.StructKind:
		for _, field := range e.AsStruct().Fields() {
			walk(field.AsStructField().Value(), bound, t)
		}
	case ast.ComprehensionKind:
		c := e.AsComprehension()
		walk(c.IterRange(), bound, t)
		inner := append(slices.Clone(bound), c.IterVar(), c.IterVar2(), c.AccuVar())
		for _, part := range []ast.Expr{c.AccuInit(), c.LoopCondition(), c.LoopStep(), c.Result()} {
			walk(part, inner, t)
		}
	case ast.UnspecifiedExprKind, ast.IdentKind, ast.LiteralKind:
	}
}

func walkCall(c ast.CallExpr, bound []string, t *tree) {
	if c.FunctionName() == operators.In && len(c.Args()) == 2 {
		// "x" in request.headers reads that one header.
		if p, ok := chain(c.Args()[1], bound); ok && len(p) == 2 && (p[1] == "headers" || p[1] == "query") {
			if name, ok := stringLiteral(c.Args()[0]); ok {
				t.add(append(p, name))
				return
			}
		}
	}
	if c.IsMemberFunction() {
		walk(c.Target(), bound, t)
	}
	for _, a := range c.Args() {
		walk(a, bound, t)
	}
}

func chain(e ast.Expr, bound []string) (path, bool) {
	switch e.Kind() {
	case ast.IdentKind:
		name := strings.TrimPrefix(e.AsIdent(), ".")
		if slices.Contains(bound, name) {
			return nil, false
		}
		return splitName(name), true
	case ast.SelectKind:
		s := e.AsSelect()
		if p, ok := chain(s.Operand(), bound); ok {
			return append(p, s.FieldName()), true
		}
	case ast.CallKind:
		c := e.AsCall()
		if c.FunctionName() != operators.Index || len(c.Args()) != 2 {
			return nil, false
		}
		p, ok := chain(c.Args()[0], bound)
		if !ok {
			return nil, false
		}
		if name, ok := stringLiteral(c.Args()[1]); ok {
			return append(p, name), true
		}
		if i, ok := intLiteral(c.Args()[1]); ok {
			return append(p, i), true
		}
	case ast.UnspecifiedExprKind, ast.ComprehensionKind, ast.ListKind, ast.LiteralKind, ast.MapKind, ast.StructKind:
	}
	return nil, false
}

func stringLiteral(e ast.Expr) (string, bool) {
	if e.Kind() != ast.LiteralKind {
		return "", false
	}
	s, ok := e.AsLiteral().(types.String)
	return string(s), ok
}

// itemMax bounds a constant index: recording item 4,000,000,000 would make a list of as many places.
const itemMax = 1 << 12

func intLiteral(e ast.Expr) (int, bool) {
	if e.Kind() != ast.LiteralKind {
		return 0, false
	}
	i, ok := e.AsLiteral().(types.Int)
	if !ok || i < 0 || i >= itemMax {
		return 0, false
	}
	return int(i), true
}

var errNotPlain = errors.New("not a plain path")

// parsePlain reads request.body.items[0]["a b"] without CEL. errNotPlain says that it is something else.
func parsePlain(s string) (path, error) {
	name, rest := cutIdent(s)
	if name == "" {
		return nil, errNotPlain
	}
	p := path{name}
	for rest != "" {
		switch {
		case rest[0] == '.':
			if name, rest = cutIdent(rest[1:]); name == "" {
				return nil, errNotPlain
			}
			p = append(p, name)
		case rest[0] == '[':
			step, after, err := cutIndex(rest[1:])
			if err != nil {
				return nil, err
			}
			p, rest = append(p, step), after
		default:
			return nil, errNotPlain
		}
	}
	return p, nil
}

func cutIdent(s string) (ident, rest string) {
	i := 0
	for i < len(s) && isIdent(s[:i+1]) {
		i++
	}
	return s[:i], s[i:]
}

func cutIndex(s string) (step any, rest string, err error) {
	if s != "" && (s[0] == '"' || s[0] == '\'') {
		end := strings.IndexByte(s[1:], s[0])
		if end < 0 || strings.ContainsRune(s[1:1+end], '\\') || !strings.HasPrefix(s[end+2:], "]") {
			return nil, "", errNotPlain
		}
		return s[1 : 1+end], s[end+3:], nil
	}
	digits, rest, ok := strings.Cut(s, "]")
	if !ok || !wholeNumber.MatchString(digits) || len(digits) > 4 || digits[0] == '-' {
		return nil, "", errNotPlain
	}
	i := 0
	for _, d := range digits {
		i = i*10 + int(d-'0')
	}
	if i >= itemMax {
		return nil, "", errNotPlain
	}
	return i, rest, nil
}
