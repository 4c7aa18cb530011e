package diagram

import (
	"fmt"
	"slices"
	"strings"
	"time"
)

// row is one line of the diagram with its arrow. The path is a list of lanes; one lane alone is a note on it.
type row struct {
	time   string
	path   []int
	sign   rune // stands on the first lane of the path
	broken bool // the arrow never arrived, or nothing came back
	text   string
	tone   tone
	dies   bool // the owner is dead from here on
	rises  bool
}

// script turns events into rows.
type script struct {
	d     Drawing
	g     grid
	begun time.Time
	rows  []row
}

// rows puts the events of the journal and the marks of the observer into the order of time.
func rows(d Drawing, g grid) []row {
	s := &script{d: d, g: g, begun: d.History[0].At}
	marks := slices.Clone(d.Marks)
	slices.SortStableFunc(marks, func(a, b Mark) int { return a.At.Compare(b.At) })
	for i := 0; i < len(d.History); i++ {
		e := d.History[i]
		for len(marks) > 0 && marks[0].At.Before(e.At) {
			s.mark(marks[0])
			marks = marks[1:]
		}
		if n := s.same(i); n > 2 {
			s.event(e)
			s.add(row{path: []int{g.owner()}, text: fmt.Sprintf("... %d more tries", n-2)})
			i += n - 1
			e = d.History[i]
		}
		s.event(e)
	}
	for _, m := range marks {
		s.mark(m)
	}
	return s.rows
}

// same counts the tries of one op that follow each other from event i on.
func (s *script) same(i int) int {
	e, n := s.d.History[i], 1
	if e.Event != "deferred" {
		return n
	}
	for _, next := range s.d.History[i+1:] {
		if next.Event != e.Event || next.Branch != e.Branch || next.Op != e.Op {
			break
		}
		n++
	}
	return n
}

func (s *script) add(r row) {
	if len(s.g.lanes) == 0 || slices.Contains(r.path, -1) {
		r.path = nil
	}
	s.rows = append(s.rows, r)
}

// since is the time of an event on the clock of the transaction.
func (s *script) since(at time.Time) string {
	d := at.Sub(s.begun)
	switch {
	case d < time.Second:
		return fmt.Sprintf("%.1f ms", float64(d)/float64(time.Millisecond))
	case d < time.Hour:
		return fmt.Sprintf("%.2f s", d.Seconds())
	default:
		return d.Round(time.Second).String()
	}
}

func (s *script) event(e Event) {
	at, owner := s.since(e.At), s.g.owner()
	switch e.Event {
	case "began":
		s.began(at, e)
	case "enlisted":
		s.add(row{time: at, path: s.there(e.Branch), text: s.d.nameOf(e.Branch) + ": enlisted, then sent"})
	case "answered":
		s.answered(at, e)
	case "deferred":
		s.deferred(at, e)
	case "decided":
		s.decided(at, e)
	case "halted":
		s.add(row{time: at, path: []int{owner}, sign: '●', tone: bad, text: s.op(e) + " is stuck: " + e.Cause})
	case "forced":
		s.add(row{time: at, path: []int{owner}, sign: '●', tone: odd, text: because(e.By+": "+e.Outcome+" "+s.op(e), e.Cause)})
	case "stopped":
		s.add(row{time: at, path: []int{owner}, sign: '●', tone: bad, text: because(e.By+": stop", e.Cause)})
	case "left":
		s.add(row{time: at, path: []int{owner}, sign: '●', text: s.d.nameOf(e.Branch) + " leaves the transaction"})
	case "extended":
		s.add(row{time: at, path: []int{owner}, sign: '●', text: "the deadline is moved"})
	case "finished":
		s.add(row{time: at, path: []int{owner}, sign: '●', tone: toneOf(e.Outcome), text: "finished: " + e.Outcome})
	default:
		s.add(row{time: at, path: []int{owner}, sign: '●', text: e.Event})
	}
}

func (s *script) began(at string, e Event) {
	text := "begins"
	if e.Name != "" {
		text = e.Name + " begins"
	}
	service, owner := s.g.find(shortName(s.d.Service), false), s.g.owner()
	if !s.d.Rooted {
		s.add(row{time: at, path: []int{service, owner}, text: text})
		return
	}
	s.add(row{time: at, path: []int{0, owner}, text: text})
	s.add(row{path: []int{owner, service}})
}

// decided is drawn as the answer to the root request where that is what decided.
func (s *script) decided(at string, e Event) {
	r := row{time: at, path: []int{s.g.owner()}, sign: '●', tone: toneOf(e.Outcome)}
	r.text = because("decided: "+map[string]string{"committed": "commit", "aborted": "abort"}[e.Outcome], e.Cause)
	if e.Outcome == "committed" || strings.HasPrefix(e.Cause, "root answered") {
		r.path, r.sign = []int{s.g.find(shortName(s.d.Service), false), s.g.owner()}, 0
	}
	s.add(r)
}

func (s *script) answered(at string, e Event) {
	path, name := s.there(e.Branch), s.d.nameOf(e.Branch)
	if e.Op != "forward" {
		path = s.reach(e)
		s.add(row{path: path, text: s.op(e)})
		s.add(row{time: at, path: back(path), tone: toneOf(e.Outcome), text: because(s.op(e)+": "+e.Outcome, e.Cause)})
		return
	}
	text := because(name+": "+e.Outcome, e.Cause)
	if s.decidedBefore(e) {
		// The service is not asked for an answer any more: whoever recorded it tells it.
		path, text = s.reach(Event{Branch: e.Branch, Op: "ask"}), because(name+map[bool]string{true: " did take effect", false: " did not take effect"}[e.Outcome == "ok"], e.Cause)
	}
	s.add(row{time: at, path: back(path), tone: toneOf(e.Outcome), text: text})
}

func (s *script) deferred(at string, e Event) {
	text := fmt.Sprintf("%s: %s, try %d", s.op(e), e.Outcome, e.Attempt)
	path := s.reach(e)
	if e.Op == "forward" {
		path, text = back(s.there(e.Branch)), s.d.nameOf(e.Branch)+": no answer"
	}
	s.add(row{time: at, path: path, broken: true, tone: odd, text: because(text, e.Cause)})
}

// decidedBefore reports whether the transaction was decided when this event was recorded.
func (s *script) decidedBefore(e Event) bool {
	i := slices.IndexFunc(s.d.History, func(x Event) bool { return x.Event == "decided" })
	return i >= 0 && !e.At.Before(s.d.History[i].At) && i < slices.IndexFunc(s.d.History, func(x Event) bool {
		return x.Event == e.Event && x.Branch == e.Branch && x.Op == e.Op && x.At.Equal(e.At)
	})
}

// there is the way of a forward call: from the service beside the owner through the sidecars to the callee.
func (s *script) there(branch string) []int {
	return append([]int{s.g.find(shortName(s.d.Service), false)}, s.reach(Event{Branch: branch, Op: "forward"})...)
}

// reach is the way of a call that the owner makes. The question what a call did ends at the sidecar that knows.
func (s *script) reach(e Event) []int {
	owner := s.g.owner()
	i := slices.IndexFunc(s.d.Branches, func(b Branch) bool { return b.ID == e.Branch })
	if i < 0 {
		return []int{owner}
	}
	b := s.d.Branches[i]
	path := []int{owner}
	if home := s.g.find(b.service(), true); home >= 0 && home != owner && b.Sidecar {
		path = append(path, home)
		if e.Op == "ask" {
			return path
		}
	}
	return append(path, s.g.find(b.service(), false))
}

// op is an op in the words of people.
func (s *script) op(e Event) string {
	if e.Branch == "" {
		return map[string]string{"ask": "asking the initiator", "tell": "telling the listeners"}[e.Op]
	}
	word := map[string]string{"commit": "confirm", "ask": "ask about", "forward": "call"}[e.Op]
	if word == "" {
		word = e.Op
	}
	return word + " " + s.d.nameOf(e.Branch)
}

func (s *script) mark(m Mark) {
	owner := s.g.owner()
	r := row{time: s.since(m.At), text: m.Text, path: []int{owner}}
	switch m.Kind {
	case Killed:
		r.sign, r.tone, r.dies = '✗', bad, true
	case Started:
		r.sign, r.tone, r.rises = '●', odd, true
	case Sent:
		r.path = []int{0, owner}
	case Answered:
		r.path = []int{owner, 0}
	case Broken:
		r.path, r.broken, r.sign, r.tone = []int{owner, 0}, true, '✗', bad
	default:
		panic(fmt.Sprintf("diagram: mark of kind %d", m.Kind))
	}
	s.add(r)
}

func back(path []int) []int {
	path = slices.Clone(path)
	slices.Reverse(path)
	return path
}

func because(text, cause string) string {
	if cause == "" {
		return text
	}
	return text + " (" + cause + ")"
}

func toneOf(outcome string) tone {
	switch outcome {
	case "ok", "commit", "committed":
		return good
	case "refused", "aborted", "stuck":
		return bad
	case "pending", "unknown":
		return odd
	default:
		return plain
	}
}
