package policies

import (
	"cmp"
	"fmt"
	"slices"
	"strings"
)

// Severity tells findings that refuse a set from those that only speak.
type Severity uint8

// Error refuses the set, Warning does not.
const (
	Error Severity = iota
	Warning
)

// Finding is one fault of a document, where it is and what to do about it.
type Finding struct {
	Code     string
	Severity Severity
	File     string
	Line     int // from 1
	Column   int // from 1, in characters
	Text     string
}

// String is the finding as file:line:column: code: text.
func (f Finding) String() string {
	return fmt.Sprintf("%s:%d:%d: %s: %s", f.File, f.Line, f.Column, f.Code, f.Text)
}

// Remedy says what to do about it, from the table of codes.
func (f Finding) Remedy() string {
	for _, c := range Codes() {
		if c.Code == f.Code {
			return c.Remedy
		}
	}
	return ""
}

// Findings is the error of Compile: never empty, in the order of file, line and column.
type Findings []Finding

// Error lists every finding, one a line.
func (fs Findings) Error() string {
	lines := make([]string, len(fs))
	for i, f := range fs {
		lines[i] = f.String()
	}
	return strings.Join(lines, "\n")
}

func compareFindings(a, b Finding) int {
	return cmp.Or(cmp.Compare(a.File, b.File), cmp.Compare(a.Line, b.Line), cmp.Compare(a.Column, b.Column),
		cmp.Compare(a.Code, b.Code), cmp.Compare(a.Text, b.Text))
}

// pos is a place in a source.
type pos struct {
	file         string
	line, column int
}

// reporter collects findings while documents are read and compiled.
type reporter struct {
	findings Findings
}

func (r *reporter) fault(at pos, code, format string, args ...any) {
	r.add(at, Error, code, fmt.Sprintf(format, args...))
}

func (r *reporter) warn(at pos, code, format string, args ...any) {
	r.add(at, Warning, code, fmt.Sprintf(format, args...))
}

func (r *reporter) add(at pos, s Severity, code, text string) {
	r.findings = append(r.findings, Finding{Code: code, Severity: s, File: at.file, Line: at.line, Column: at.column, Text: text})
}

func (r *reporter) broken() bool {
	return slices.ContainsFunc(r.findings, func(f Finding) bool { return f.Severity == Error })
}

func (r *reporter) sorted(s Severity) Findings {
	var out Findings
	for _, f := range r.findings {
		if f.Severity == s {
			out = append(out, f)
		}
	}
	slices.SortStableFunc(out, compareFindings)
	return slices.Compact(out)
}

// nearest returns the known word that was probably meant, or "".
func nearest(word string, known []string) string {
	best, distance := "", len(word)/3+1
	for _, k := range known {
		if strings.EqualFold(k, word) {
			return k
		}
		if d := editDistance(word, k); d <= distance && (best == "" || d < distance) {
			best, distance = k, d
		}
	}
	return best
}

func editDistance(a, b string) int {
	row := make([]int, len(b)+1)
	for j := range row {
		row[j] = j
	}
	for i := range len(a) {
		diagonal := row[0]
		row[0] = i + 1
		for j := range len(b) {
			cost := 1
			if a[i] == b[j] {
				cost = 0
			}
			next := min(row[j]+1, row[j+1]+1, diagonal+cost)
			diagonal, row[j+1] = row[j+1], next
		}
	}
	return row[len(b)]
}

func didYouMean(word string, known []string) string {
	if n := nearest(word, known); n != "" {
		return fmt.Sprintf("; did you mean %q?", n)
	}
	return "; known: " + strings.Join(known, ", ")
}
