package main

import (
	"fmt"
	"io"
	"os"
	"strings"

	"txmesh/cmd/txmesh/diagram"
)

// screen prints for people: in colour and box characters where a terminal shows them.
type screen struct {
	w      io.Writer
	colour bool
	ascii  bool
}

// newScreen looks at what w is and at the environment. https://no-color.org
func newScreen(w io.Writer, env func(string) string) *screen {
	s := &screen{w: w}
	if f, ok := w.(*os.File); ok && env("NO_COLOR") == "" && env("TERM") != "dumb" {
		info, err := f.Stat()
		s.colour = err == nil && info.Mode()&os.ModeCharDevice != 0
	}
	for _, name := range []string{"LC_ALL", "LC_CTYPE", "LANG"} {
		if v := strings.ToLower(env(name)); v != "" {
			s.ascii = !strings.Contains(v, "utf-8") && !strings.Contains(v, "utf8")
			break
		}
	}
	return s
}

// say prints one line. What is printed is for people, so nobody waits for an error.
func (s *screen) say(format string, args ...any) { fmt.Fprintf(s.w, format+"\n", args...) }

func (s *screen) strong(text string) string { return s.paint("1", text) }
func (s *screen) good(text string) string   { return s.paint("32", text) }
func (s *screen) bad(text string) string    { return s.paint("31", text) }

func (s *screen) paint(code, text string) string {
	if !s.colour {
		return text
	}
	return "\x1b[" + code + "m" + text + "\x1b[0m"
}

// draw prints a diagram.
func (s *screen) draw(d diagram.Drawing) {
	d.ASCII, d.Colour = s.ascii, s.colour
	fmt.Fprint(s.w, d.String())
}
