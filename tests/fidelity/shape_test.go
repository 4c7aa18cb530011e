package fidelity

import (
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
)

// shape is one conversation of testdata.
type shape struct {
	name    string
	forward bool
	refused string // code
	steps   []step
}

// step is one thing that one side does.
type step struct {
	side   byte   // 'C' or 'S'
	act    string // "", "&", "close", "end", "broken"
	direct []byte // what the side sends, and what the other reads without a proxy
	behind []byte // what the other reads behind a proxy
}

// shapes reads all files.
func shapes(t *testing.T) []shape {
	files, err := filepath.Glob("testdata/*.txt")
	if err != nil {
		t.Fatal(err)
	}
	var all []shape
	for _, f := range files {
		text, err := os.ReadFile(f)
		if err != nil {
			t.Fatal(err)
		}
		theme := strings.TrimSuffix(filepath.Base(f), ".txt")
		for i, line := range strings.Split(string(text), "\n") {
			if all, err = parseLine(all, theme, line); err != nil {
				t.Fatalf("%s:%d: %v", f, i+1, err)
			}
		}
	}
	return all
}

func parseLine(all []shape, theme, line string) ([]shape, error) {
	if name, ok := strings.CutPrefix(line, "## "); ok {
		return append(all, shape{name: theme + "/" + name}), nil
	}
	if line == "" || line[0] == '#' {
		return all, nil
	}
	if len(all) == 0 {
		return nil, fmt.Errorf("%q before the first shape", line)
	}
	s := &all[len(all)-1]
	switch {
	case line == "via: forward":
		s.forward = true
	case strings.HasPrefix(line, "refused: "):
		s.refused = line[len("refused: "):]
	case line[0] == 'C' || line[0] == 'S':
		s.steps = append(s.steps, step{side: line[0], act: strings.TrimSpace(line[1:])})
	case len(line) > 1 && line[1] == ' ' && strings.IndexByte(" -+", line[0]) >= 0 && len(s.steps) > 0:
		return all, s.steps[len(s.steps)-1].add(line[0], line[2:])
	default:
		return nil, fmt.Errorf("cannot read %q", line)
	}
	return all, nil
}

func (s *step) add(mark byte, text string) error {
	end := "\r\n"
	if strings.HasSuffix(text, `\`) && !strings.HasSuffix(text, `\\`) {
		text, end = text[:len(text)-1], ""
	}
	text, err := strconv.Unquote(`"` + strings.ReplaceAll(text, `"`, `\"`) + `"`)
	if err != nil {
		return fmt.Errorf("escapes in %q: %w", text, err)
	}
	if mark != '+' {
		s.direct = append(s.direct, text+end...)
	}
	if mark != '-' {
		s.behind = append(s.behind, text+end...)
	}
	return nil
}
