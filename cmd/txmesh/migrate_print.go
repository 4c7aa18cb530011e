package main

import (
	"fmt"
	"strings"
	"text/tabwriter"

	"txmesh/cmd/txmesh/takeover"
)

// fates are the items of a migration by what becomes of them.
type fates struct {
	going, stay, history, missed []takeover.Item
	before                       int // taken over by an earlier run
}

func fatesOf(items []takeover.Item) fates {
	var s fates
	for _, i := range items {
		switch {
		case i.Outcome == takeover.OutcomeBefore:
			s.before++
		case i.Finished() && i.Why == "":
			s.history = append(s.history, i)
		case i.Finished():
			s.missed = append(s.missed, i)
		case i.Why == "":
			s.going = append(s.going, i)
		default:
			s.stay = append(s.stay, i)
		}
	}
	return s
}

// printPlan says what --apply would do.
func printPlan(s *screen, items []takeover.Item) {
	all := fatesOf(items)
	s.say("%s", s.strong(count(len(all.going), "unfinished transaction")+" would be taken over"))
	printItems(s, all.going)
	if len(all.stay) > 0 {
		s.say("\n%s", s.bad(count(len(all.stay), "unfinished transaction")+" would stay"))
		printReasons(s, all.stay)
	}
	printHistory(s, all, " would be")
	s.say("\nnothing was changed")
	if len(all.going)+len(all.history) > 0 {
		s.say("to do it:  stop your clients, then the server of DTM, and run this on its tables with --source-stopped --apply,")
		s.say("           or run the same command with --apply on the running server; docs/guide/migrate-dtm.md tells the difference")
	}
}

// printTaken says what --apply has done.
func printTaken(s *screen, items []takeover.Item, journal, api string) {
	all := fatesOf(items)
	s.say("%s", s.strong(count(len(all.going), "unfinished transaction")+" taken over"))
	printItems(s, all.going)
	if len(all.stay) > 0 {
		s.say("\n%s", s.bad(count(len(all.stay), "unfinished transaction")+" not taken over"))
		printReasons(s, all.stay)
	}
	printHistory(s, all, "")
	if all.before > 0 {
		s.say("\n%s had been taken over before, by %s", count(all.before, "transaction"), journal)
	}
	s.say("\nkeep %s until all has ended: it says what was taken, and how it stood", journal)
	s.say("look at them with:  txmesh tx list --api %s --name dtm", api)
}

// printItems is a line for each transaction that goes.
func printItems(s *screen, items []takeover.Item) {
	if len(items) == 0 {
		return
	}
	table(s, "GID\tTYPE\tSTATUS\tDONE\tNEXT", items, func(i takeover.Item) string {
		done := "-"
		if all := i.Done + i.Left; all > 0 {
			done = fmt.Sprintf("%d/%d", i.Done, all)
		}
		return fmt.Sprintf("%s\t%s\t%s\t%s\t%s", clip(i.GID, gidWidth), i.Type, i.Status, done, i.Next)
	})
	for _, i := range items {
		if i.Differs != "" {
			s.say("%s %s", s.bad("note:"), i.GID+": "+i.Differs)
		}
	}
}

// printReasons is a line for each transaction that stays.
func printReasons(s *screen, items []takeover.Item) {
	table(s, "GID\tTYPE\tSTATUS\tWHY", items, func(i takeover.Item) string {
		return fmt.Sprintf("%s\t%s\t%s\t%s", clip(i.GID, gidWidth), i.Type, i.Status, i.Why)
	})
	for _, i := range items {
		if i.Stopped {
			s.say("%s %s is stopped at the source and not here: remove the cause and run the same command again", s.bad("stopped:"), i.GID)
		}
	}
}

func printHistory(s *screen, all fates, would string) {
	if len(all.history)+len(all.missed) == 0 {
		return
	}
	s.say("\n%s%s kept, so that a repeated submit finds what became of it", count(len(all.history), "finished transaction"), would)
	if len(all.missed) > 0 {
		s.say("%s%s left out, for the rows do not tell the whole story", count(len(all.missed), "finished transaction"), would)
		printReasons(s, all.missed)
	}
}

// gidWidth is the widest column of ids: those that clients get from newGid have 22 to 26 characters.
const gidWidth = 40

func table(s *screen, head string, items []takeover.Item, line func(takeover.Item) string) {
	var text strings.Builder
	w := tabwriter.NewWriter(&text, 0, 0, 2, ' ', 0)
	fmt.Fprintln(w, head)
	for _, i := range items {
		fmt.Fprintln(w, line(i))
	}
	_ = w.Flush() // a Builder takes everything
	for l := range strings.Lines(text.String()) {
		s.say("%s", strings.TrimRight(l, " \n"))
	}
}

func count(n int, what string) string {
	if n == 1 {
		return "1 " + what
	}
	return fmt.Sprintf("%d %ss", n, what)
}
