package main

import (
	"cmp"
	"fmt"
	"strings"
	"text/tabwriter"
	"time"
)

// stuckOp is an op that waits for an operator.
type stuckOp struct {
	branch string // "-": the initiator or the listeners
	name   string
	op     txOp
}

// stuck lists what waits for an operator.
func (d txDetail) stuck() []stuckOp {
	var found []stuckOp
	for _, b := range d.Branches {
		for _, o := range b.Ops {
			if o.Halted {
				found = append(found, stuckOp{b.Branch, b.Name, o})
			}
		}
	}
	for _, o := range []*txOp{d.Asked, d.Told} {
		if o != nil && o.Halted {
			found = append(found, stuckOp{"-", "the initiator", *o})
		}
	}
	return found
}

// age is how old something is, in one unit or two.
func age(d time.Duration) string {
	switch {
	case d < 0:
		return "0s"
	case d < time.Minute:
		return fmt.Sprintf("%.1fs", d.Seconds())
	case d < time.Hour:
		return fmt.Sprintf("%dm%02ds", int(d.Minutes()), int(d.Seconds())%60)
	case d < 48*time.Hour:
		return fmt.Sprintf("%dh%02dm", int(d.Hours()), int(d.Minutes())%60)
	default:
		return fmt.Sprintf("%dd", int(d.Hours()/24))
	}
}

// clip shortens a text for a column.
func clip(s string, width int) string {
	if r := []rune(s); len(r) > width {
		return string(r[:width-3]) + "..."
	}
	return s
}

func (s *screen) phase(word string) string {
	switch word {
	case "stuck":
		return s.bad(word)
	case "committed":
		return s.good(word)
	default:
		return word
	}
}

// printList is a table with a line for each transaction. Cells are padded before they are painted.
func printList(s *screen, found []txSummary, more bool, now time.Time) {
	if len(found) == 0 {
		s.say("no transactions")
		return
	}
	const line = "%-40s  %-6s  %s  %-22s  %s"
	s.say("%s", s.strong(fmt.Sprintf(line, "ID", "AGE", "PHASE     ", "NAME", "REASON")))
	stuck := ""
	for _, t := range found {
		phase := s.phase(t.Phase) + strings.Repeat(" ", max(0, 10-len(t.Phase)))
		text := fmt.Sprintf(line, t.ID, age(now.Sub(t.Begun)), phase, clip(t.Name, 22), clip(t.Reason, 14))
		s.say("%s", strings.TrimRight(text, " "))
		if t.Phase == "stuck" {
			stuck = cmp.Or(stuck, t.ID)
		}
	}
	if more {
		s.say("there are more: see --limit")
	}
	if stuck != "" {
		s.say("\nstuck ones wait for you: see txmesh tx show %s", stuck)
	}
}

// printTransaction is all that the journal says about one.
func printTransaction(s *screen, d txDetail, now time.Time) {
	title := strings.TrimSpace(d.Name + " " + d.ID)
	s.say("%s  %s", s.strong(title), s.phase(d.Phase))
	took := "running for " + age(now.Sub(d.Begun))
	if !d.Finished.IsZero() {
		took = "took " + d.Finished.Sub(d.Begun).Round(100*time.Microsecond).String()
	}
	s.say("begun %s by mode %s, %s", d.Begun.Format(time.RFC3339), d.Mode, took)
	if d.Reason != "" {
		s.say("reason: %s", d.Reason)
	}
	switch at := d.Expires.Format(time.RFC3339); {
	case d.Phase != "open" || d.Expires.IsZero():
	case d.Mode == "msg" || d.Mode == "workflow":
		s.say("asks its initiator at %s, or aborts if there is nobody to ask", at)
	default:
		s.say("aborts by itself at %s if nobody decides before", at)
	}
	s.say("")
	printBranches(s, d)
	s.draw(d.drawing())
	printAdvice(s, d)
}

func printBranches(s *screen, d txDetail) {
	if len(d.Branches) == 0 {
		s.say("it has no branches\n")
		return
	}
	var table strings.Builder
	w := tabwriter.NewWriter(&table, 0, 0, 2, ' ', 0)
	fmt.Fprintln(w, "BRANCH\tNAME\tSERVICE\tFATE\tOP\tOUTCOME\tTRIES\tCAUSE")
	for _, b := range d.Branches {
		first := fmt.Sprintf("%s\t%s\t%s\t%s", b.Branch, clip(b.Name, 20), clip(b.Service, 20), b.Fate)
		for _, o := range b.Ops {
			if !o.matters(b.Fate) {
				continue
			}
			outcome := strings.Replace(o.Outcome, "none", "-", 1)
			if o.Halted {
				outcome = "stuck"
			}
			if o.Forced {
				outcome += ", by an operator"
			}
			tries := "-"
			if o.Attempts > 0 {
				tries = fmt.Sprint(o.Attempts)
			}
			fmt.Fprintf(w, "%s\t%s\t%s\t%s\t%s\n", first, o.Op, outcome, tries, clip(o.Cause, 40))
			first = "\t\t\t"
		}
	}
	_ = w.Flush() // a Builder takes everything
	for line := range strings.Lines(table.String()) {
		s.say("%s", strings.TrimRight(line, " \n"))
	}
	s.say("")
}

// matters reports whether an op was tried, or will be.
func (o txOp) matters(fate string) bool {
	due := map[string]string{"undone": "undo", "stands": "commit"}[fate]
	return o.Op == "forward" || o.Op == due || o.Outcome != "none" || o.Attempts > 0 || o.Halted || o.Forced
}

// printAdvice says what an operator can do.
func printAdvice(s *screen, d txDetail) {
	for _, o := range d.stuck() {
		name := o.name
		if o.branch != "-" {
			name = fmt.Sprintf("branch %s (%s)", o.branch, o.name)
		}
		s.say("\n%s %s of %s: %s", s.bad("stuck:"), o.op.Op, name, o.op.Cause)
		s.say("  remove the cause, then      txmesh tx retry %s %s %s --why '...'", d.ID, o.branch, o.op.Op)
		s.say("  or do it by hand, then      txmesh tx skip %s %s %s --why '...'", d.ID, o.branch, o.op.Op)
	}
	if d.Phase != "open" {
		return
	}
	for _, b := range d.Branches {
		if b.Fate == "open" && b.forward().Outcome == "none" {
			s.say("\nwaits for the answer of branch %s (%s)", b.Branch, b.Name)
		}
	}
}

// printOutcome says what an act led to.
func printOutcome(s *screen, o txOutcome) {
	s.say("%s is %s", o.ID, s.phase(o.Status))
	for _, w := range o.Waiting {
		text := fmt.Sprintf("  it waits for the answer of branch %s (%s)", w.Branch, w.Name)
		if w.Cause != "" {
			text += ": " + w.Cause
		}
		s.say("%s", text)
	}
	if len(o.Waiting) > 0 {
		s.say("  the commit is carried out when they are answered, if that is before it expires")
	}
}
