// Package diagram draws a transaction as a sequence diagram in plain text: who called whom, what was answered, when it
// was decided and what was undone, line by line as the owner's journal has it. It decides nothing and reads nothing:
// the same history gives the same text. The journal has one line where the wire has several: a call is drawn when its
// branch was enlisted, from the service beside the owner, through both sidecars, and an undo gets its time from its
// answer. What only an observer outside saw comes in as a Mark. Start at Drawing.String; rows.go has the words,
// lanes.go the geometry.
package diagram

import (
	"slices"
	"strings"
	"time"
)

// Event is one record of the journal, as the sidecar's API tells it.
type Event struct {
	At      time.Time `json:"at"`
	Event   string    `json:"event"`
	Branch  string    `json:"branch,omitempty"`
	Name    string    `json:"name,omitempty"`
	Op      string    `json:"op,omitempty"`
	Outcome string    `json:"outcome,omitempty"`
	Attempt int       `json:"attempt,omitempty"`
	Until   time.Time `json:"until,omitzero"`
	Stand   []string  `json:"stand,omitempty"`
	Undo    []string  `json:"undo,omitempty"`
	By      string    `json:"by,omitempty"`
	Cause   string    `json:"cause,omitempty"`
}

// Branch says where the calls of a branch go.
type Branch struct {
	ID      string
	Name    string // of the rule; empty: it is called by its ID
	Service string // namespace/name or host; empty: its name stands for it
	Sidecar bool   // a sidecar beside the service keeps its barrier
}

// Kind says what an observer saw.
type Kind uint8

// What a Mark can be: the owner's sidecar dies or is started, the client sends again, is answered, or sees its
// connection break.
const (
	Killed Kind = iota
	Started
	Sent
	Answered
	Broken
)

// Mark is something that the journal cannot know.
type Mark struct {
	At   time.Time
	Kind Kind
	Text string
}

// Drawing is all that is drawn. The zero values of the last three mean 100 columns, box characters and no colour.
type Drawing struct {
	Service  string // beside the owner, namespace/name; empty: not known
	Rooted   bool   // begun and decided by a request of a client, not by the service itself
	Branches []Branch
	History  []Event
	Marks    []Mark
	Width    int
	ASCII    bool
	Colour   bool
}

// String returns the diagram: two lines of titles and a line for each arrow, each ending in a newline. Without a
// history it is empty.
func (d Drawing) String() string {
	if len(d.History) == 0 {
		return ""
	}
	if d.Width <= 0 {
		d.Width = 100
	}
	g := layOut(d)
	p := painter{ascii: d.ASCII, colour: d.Colour}
	var b strings.Builder
	for _, line := range g.titles() {
		b.WriteString(p.line(line, "", strong))
	}
	dead := false
	for _, r := range rows(d, g) {
		if r.text == "" && len(g.lanes) == 0 {
			continue
		}
		line := g.draw(r, dead)
		dead = r.dies || dead && !r.rises
		for _, text := range wrap(r.text, d.Width-g.text) {
			b.WriteString(p.line(line, text, r.tone))
			line = g.blank(dead)
		}
	}
	return b.String()
}

// wrap breaks a text into lines of at most width letters, four lines at most.
func wrap(text string, width int) []string {
	const linesMax = 4
	var lines []string
	line := ""
	for _, word := range strings.Fields(text) {
		for len([]rune(word)) > width {
			cut := string([]rune(word)[:width])
			if line != "" {
				lines, line = append(lines, line), ""
			}
			lines, word = append(lines, cut), strings.TrimPrefix(word, cut)
		}
		switch {
		case line == "":
			line = word
		case len([]rune(line))+1+len([]rune(word)) <= width:
			line += " " + word
		default:
			lines, line = append(lines, line), word
		}
	}
	if line != "" || len(lines) == 0 {
		lines = append(lines, line)
	}
	if len(lines) > linesMax {
		last := []rune(lines[linesMax-1])
		lines = append(lines[:linesMax-1:linesMax-1], string(last[:min(len(last), width-1)])+"…")
	}
	return lines
}

// tone is how a line feels.
type tone uint8

const (
	plain tone = iota
	strong
	good
	bad
	odd
)

type painter struct{ ascii, colour bool }

// line puts the picture and the words of one line together.
func (p painter) line(picture, text string, t tone) string {
	s := picture + p.tinted(text, t)
	if text == "" {
		s = p.tinted(strings.TrimRight(picture, " "), t)
	}
	if p.ascii {
		s = strings.NewReplacer("│", "|", "─", "-", "┼", "+", "●", "o", "├", "|", "┤", "|", "╌", ".", "✗", "X", "╎", ":",
			"…", "~").Replace(s)
	}
	return s + "\n"
}

func (p painter) tinted(s string, t tone) string {
	code := map[tone]string{strong: "1", good: "32", bad: "31", odd: "33"}[t]
	if !p.colour || code == "" || s == "" {
		return s
	}
	return "\x1b[" + code + "m" + s + "\x1b[0m"
}

// nameOf is what a branch is called in the words of the diagram; two of the same name are told apart.
func (d Drawing) nameOf(id string) string {
	i := slices.IndexFunc(d.Branches, func(b Branch) bool { return b.ID == id })
	if i < 0 || d.Branches[i].Name == "" {
		return "branch " + id
	}
	name, same := d.Branches[i].Name, 0
	for _, b := range d.Branches {
		if b.Name == name {
			same++
		}
	}
	if same > 1 {
		return name + " #" + id
	}
	return name
}
