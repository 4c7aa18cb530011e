package diagram

import (
	"encoding/json"
	"strings"
	"testing"
	"time"
	"unicode/utf8"

	"github.com/cockroachdb/datadriven"
)

// history is the input of a golden test: one event or mark a line, the time in front.
type history struct {
	Drawing
	start time.Time
}

func TestDiagrams(t *testing.T) {
	datadriven.Walk(t, "testdata", func(t *testing.T, path string) {
		datadriven.RunTest(t, path, func(t *testing.T, td *datadriven.TestData) string {
			h := history{start: time.Date(2026, 1, 2, 3, 4, 5, 0, time.UTC)}
			h.Rooted = td.HasArg("rooted")
			h.ASCII = td.HasArg("ascii")
			h.Colour = td.HasArg("colour")
			td.MaybeScanArgs(t, "width", &h.Width)
			td.MaybeScanArgs(t, "service", &h.Service)
			for line := range strings.Lines(td.Input) {
				h.read(t, strings.TrimSpace(line))
			}
			text, width := h.String(), h.Width
			if width == 0 {
				width = 100
			}
			for line := range strings.Lines(text) {
				if n := utf8.RuneCountInString(strings.TrimSuffix(line, "\n")); n > width && !h.Colour {
					t.Errorf("%s: a line of %d columns in a drawing of %d: %s", td.Pos, n, width, line)
				}
			}
			return text
		})
	})
}

func (h *history) read(t *testing.T, line string) {
	t.Helper()
	word, rest, _ := strings.Cut(line, " ")
	if word == "branch" {
		f := strings.Fields(rest)
		b := Branch{ID: f[0], Name: f[1]}
		if len(f) > 2 {
			b.Service = f[2]
		}
		b.Sidecar = len(f) > 3
		h.Branches = append(h.Branches, b)
		return
	}
	d, err := time.ParseDuration(word)
	if err != nil {
		t.Fatalf("%q: %v", line, err)
	}
	at := h.start.Add(d)
	word, text, _ := strings.Cut(rest, " ")
	if kind, ok := map[string]Kind{"killed": Killed, "started": Started, "sent": Sent, "reply": Answered, "broken": Broken}[word]; ok {
		h.Marks = append(h.Marks, Mark{at, kind, text})
		return
	}
	e := Event{}
	if err := json.Unmarshal([]byte(rest), &e); err != nil {
		t.Fatalf("%q: %v", line, err)
	}
	e.At = at
	h.History = append(h.History, e)
}
