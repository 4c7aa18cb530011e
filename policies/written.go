package policies

import (
	"bytes"
	"slices"
)

// Document is one document of a set as it was written: what is handed on to whoever compiles the set again.
type Document struct {
	Kind      string
	Namespace string
	Name      string
	Text      []byte // not to be changed
}

// Documents lists the documents in the order in which they were read, grants among them, tests left out.
func (s *Set) Documents() []Document { return slices.Clone(s.written) }

// section is a stretch of a file that holds one document at most.
type section struct {
	line int // of its first line, from 1
	text []byte
}

// sections cuts a file at its document marks. YAML takes a line that begins with one for nothing else, not even within
// quotes or blocks.
func sections(data []byte) []section {
	data = bytes.TrimPrefix(data, []byte("\ufeff"))
	var out []section
	from, at, line := 0, 0, 1
	first := 1
	cut := func(next, nextLine int) {
		out = append(out, section{line: first, text: data[from:at:at]})
		from, first = next, nextLine
	}
	for at < len(data) {
		end := len(data)
		if i := bytes.IndexByte(data[at:], '\n'); i >= 0 {
			end = at + i + 1
		}
		rest, starts := mark(data[at:end], "---")
		_, ends := mark(data[at:end], "...")
		switch {
		case ends, starts && !rest:
			cut(end, line+1)
		case starts: // its document begins on the same line
			cut(at, line)
		}
		at, line = end, line+1
	}
	cut(at, line)
	return out
}

// mark reports whether a line begins with a document mark, and whether anything but blanks follows it.
func mark(line []byte, word string) (rest, ok bool) {
	after, found := bytes.CutPrefix(line, []byte(word))
	if !found || len(after) > 0 && !bytes.ContainsRune([]byte(" \t\r\n"), rune(after[0])) {
		return false, false
	}
	return len(bytes.TrimSpace(after)) > 0, true
}

// textAt is the section that a line lies in.
func textAt(all []section, line int) []byte {
	for _, s := range slices.Backward(all) {
		if s.line <= line {
			return s.text
		}
	}
	return nil
}
