package txn

import (
	"fmt"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/cockroachdb/datadriven"
)

// TestHistories plays the files of testdata/histories. Commands:
//
//	begin mode=saga timeout=30s age=10s ask=x tell=x key=k print=p silence=asks limit=3 settle=2 backward try=3s ...
//	decide=commit delay=5s with begin decides in the same step | lines: branch ID ops... known=(forward,undo)
//	enlist ID? undo=x commit=x ask=x tell=x key=k after=(a,b) home=h resolve=ask calling answered=ok ...
//	returned BRANCH OP OUTCOME result=x cause=x      ("-" is the initiator or the listeners)
//	decide commit|abort reason=x        leave BRANCH        extend 30s        force BRANCH OP retry|skip
//	hasten        stop by=x why=x
//	wake +5s        sleep +5s (nobody wakes it)        crash        power-cut        state        new
//
// The reaction lists records, sync, calls and the wake-up, times counted from the first begin.
func TestHistories(t *testing.T) {
	datadriven.Walk(t, "testdata/histories", func(t *testing.T, path string) {
		w := newWorld()
		start := w.now
		datadriven.RunTest(t, path, func(t *testing.T, d *datadriven.TestData) string {
			if d.Cmd == "new" {
				w = newWorld()
				return ""
			}
			if d.Cmd == "state" {
				return show(w.m.State(), start)
			}
			e, err := parseEvent(w, d)
			if err != nil {
				d.Fatalf(t, "%v", err)
			}
			if d.Cmd == "sleep" {
				return ""
			}
			out, refused, broken := w.step(e)
			if broken != nil {
				d.Fatalf(t, "%v", broken)
			}
			if refused != nil {
				return "refused: " + refused.Error() + "\n"
			}
			return reaction(out, start)
		})
	})
}

func parseEvent(w *world, d *datadriven.TestData) (Event, error) {
	pos, opt := split(d.CmdArgs)
	arg := func(i int) string {
		if i < len(pos) {
			return pos[i]
		}
		return ""
	}
	id := func(s string) string { return strings.TrimPrefix(s, "-") }
	switch d.Cmd {
	case "begin":
		return parseBegin(d, opt)
	case "enlist":
		b, err := parseBranch(arg(0), opt)
		answered, err2 := parseWord[Outcome](text(opt, "answered"), Unknown)
		_, calling := opt["calling"]
		return Enlist{b, calling, answered, value(opt, "result"), text(opt, "call")}, first(err, err2)
	case "returned":
		op, err := parseWord[Op](arg(1), Tell)
		out, err2 := parseWord[Outcome](arg(2), Unknown)
		return Returned{id(arg(0)), op, out, value(opt, "result"), text(opt, "cause"), text(opt, "call")}, first(err, err2)
	case "decide":
		delay, err := span(opt, "delay", 0)
		return Decide{arg(0) == "commit", text(opt, "reason"), value(opt, "answer"), delay}, err
	case "leave":
		return Leave{arg(0)}, nil
	case "extend":
		t, err := time.ParseDuration(arg(0))
		return Extend{t}, err
	case "force":
		op, err := parseWord[Op](arg(1), Tell)
		act, err2 := parseWord[Act](arg(2), ActSkip)
		return Force{id(arg(0)), op, act, text(opt, "by"), text(opt, "why")}, first(err, err2)
	case "hasten":
		return Hasten{}, nil
	case "stop":
		return Stop{text(opt, "by"), text(opt, "why")}, nil
	case "wake", "sleep":
		t, err := time.ParseDuration(strings.TrimPrefix(arg(0), "+"))
		w.now = w.now.Add(t)
		return Wake{}, err
	case "crash", "power-cut":
		w.crash(d.Cmd == "power-cut")
		return Wake{}, nil
	}
	return nil, fmt.Errorf("unknown command %q", d.Cmd)
}

func split(args []datadriven.CmdArg) (pos []string, opt map[string][]string) {
	opt = map[string][]string{}
	for _, a := range args {
		if len(a.Vals) == 0 {
			pos = append(pos, a.Key)
		}
		opt[a.Key] = a.Vals
	}
	return pos, opt
}

func parseBegin(d *datadriven.TestData, opt map[string][]string) (Event, error) {
	mode := Mode(text(opt, "mode"))
	plan, ok := Modes()[mode]
	if !ok {
		return nil, fmt.Errorf("unknown mode %q", mode)
	}
	s := Spec{ID: "x", Mode: mode, Plan: plan, Ask: value(opt, "ask"), Tell: value(opt, "tell"),
		Key: text(opt, "key"), Print: text(opt, "print")}
	var errs [8]error
	s.Timeout, errs[0] = span(opt, "timeout", 0)
	s.Plan.ForwardLimit, errs[1] = number(opt, "limit")
	s.Plan.SettleLimit, errs[2] = number(opt, "settle")
	s.Plan.Retry.StuckAfter, errs[3] = span(opt, "stuck", s.Plan.Retry.StuckAfter)
	s.Plan.CallTimeout, errs[4] = span(opt, "call", s.Plan.CallTimeout)
	s.Plan.Retry.TryTimeout, errs[6] = span(opt, "try", 0)
	if text(opt, "silence") == "asks" {
		s.Plan.Silence = SilenceAsks
	}
	if text(opt, "undo-refused") == "no" {
		s.Plan.UndoRefused = false
	}
	if text(opt, "order") == "free" {
		s.Plan.Chain = false
	}
	_, s.Plan.Backward = opt["backward"]
	begin := Begin{}
	begin.Age, errs[7] = span(opt, "age", 0)
	if word := text(opt, "decide"); word != "" {
		begin.Decide = &Decide{Commit: word == "commit"}
		begin.Decide.Delay, errs[5] = span(opt, "delay", 0)
	}
	for line := range strings.Lines(d.Input) {
		_, args, err := datadriven.ParseLine(strings.TrimSpace(line))
		pos, opt := split(args)
		if err != nil {
			return nil, fmt.Errorf("branch line %q: %w", line, err)
		}
		if len(pos) == 0 {
			return nil, fmt.Errorf("branch line %q: no id", line)
		}
		b, err := parseBranch(pos[0], opt)
		if err != nil {
			return nil, err
		}
		s.Branches = append(s.Branches, b)
		for _, word := range opt["known"] {
			op, err := parseWord[Op](word, Tell)
			if err != nil {
				return nil, err
			}
			begin.Known = append(begin.Known, Settled{Branch: b.ID, Op: op, Outcome: OK})
		}
	}
	begin.Spec = s
	return begin, first(errs[:]...)
}

func parseBranch(id string, opt map[string][]string) (Branch, error) {
	if id == "calling" || id == "keep" || id == "in-order" {
		id = ""
	}
	_, keep := opt["keep"]
	_, inOrder := opt["in-order"]
	b := Branch{ID: id, Key: text(opt, "key"), After: opt["after"], Home: text(opt, "home"), Print: text(opt, "print"),
		KeepAnswer: keep, InOrder: inOrder}
	for op := range NumOps {
		b.Ops[op] = value(opt, op.String())
	}
	var errs [3]error
	b.Timeout, errs[0] = span(opt, "timeout", 0)
	b.Retry.StuckAfter, errs[1] = span(opt, "stuck", 0)
	b.Unanswered, errs[2] = parseWord[Resolve](text(opt, "resolve"), ResolveStop)
	return b, first(errs[:]...)
}

func parseWord[T interface {
	~uint8
	String() string
}](s string, last T) (T, error) {
	for i := range uint8(last) + 1 {
		if s == "" || T(i).String() == s {
			return T(i), nil
		}
	}
	return 0, fmt.Errorf("unknown word %q", s)
}

func text(opt map[string][]string, k string) string { return strings.Join(opt[k], " ") }

func value(opt map[string][]string, k string) []byte {
	if len(opt[k]) == 0 {
		return nil
	}
	return []byte(opt[k][0])
}

func span(opt map[string][]string, k string, otherwise time.Duration) (time.Duration, error) {
	if len(opt[k]) == 0 {
		return otherwise, nil
	}
	return time.ParseDuration(opt[k][0])
}

func number(opt map[string][]string, k string) (int, error) {
	if len(opt[k]) == 0 {
		return 0, nil
	}
	return strconv.Atoi(opt[k][0])
}

func first(errs ...error) error {
	i := slices.IndexFunc(errs, func(err error) bool { return err != nil })
	if i < 0 {
		return nil
	}
	return errs[i]
}

func since(t, start time.Time) string {
	if t.IsZero() {
		return "never"
	}
	return "+" + t.Sub(start).String()
}

func reaction(out Output, start time.Time) string {
	var b strings.Builder
	for _, r := range out.Records {
		fmt.Fprintln(&b, showRecord(r, start))
	}
	if out.Sync {
		fmt.Fprintln(&b, "sync")
	}
	for _, c := range out.Calls {
		fmt.Fprintf(&b, "call %s", c.Op)
		if c.Branch != "" {
			fmt.Fprintf(&b, " %s", c.Branch)
		}
		fmt.Fprintf(&b, " at %q", c.Target)
		if c.Home != "" {
			fmt.Fprintf(&b, " home %s", c.Home)
		}
		if c.Outcome != None || c.Answer != nil {
			fmt.Fprintf(&b, ", forward was %s %q", c.Outcome, c.Answer)
		}
		if c.Timeout > 0 {
			fmt.Fprintf(&b, ", within %s", c.Timeout)
		}
		if c.Attempt > 1 {
			fmt.Fprintf(&b, ", attempt %d", c.Attempt)
		}
		fmt.Fprintln(&b)
	}
	if !out.Wake.IsZero() {
		fmt.Fprintln(&b, "wake", since(out.Wake, start))
	}
	if b.Len() == 0 {
		return "nothing\n"
	}
	return b.String()
}

func showRecord(r Record, start time.Time) string {
	name := func(id string) string {
		if id == "" {
			return "-"
		}
		return id
	}
	switch r := r.(type) {
	case Began:
		return fmt.Sprintf("began %s with %d branches, expires %s", r.Spec.Mode, len(r.Spec.Branches), since(r.Expires, start))
	case Enlisted:
		if r.Again {
			return "enlisted " + r.Branch.ID + " again"
		}
		return strings.TrimSuffix(fmt.Sprintf("enlisted %s after %s", r.Branch.ID, strings.Join(r.Branch.After, " ")), " after ")
	case Left:
		return "left " + r.Branch
	case Extended:
		return "extended to " + since(r.Expires, start)
	case Decided:
		word := "abort"
		if r.Commit {
			word = "commit"
		}
		s := fmt.Sprintf("decided %s, stand %v, undo %v", word, r.Stand, r.Undo)
		if r.Reason != "" {
			s += ": " + r.Reason
		}
		if !r.Due.IsZero() {
			s += ", due " + since(r.Due, start)
		}
		return s
	case Settled:
		s := fmt.Sprintf("settled %s %s %s", name(r.Branch), r.Op, r.Outcome)
		if r.Result != nil {
			s += fmt.Sprintf(" %q", r.Result)
		}
		return s
	case Deferred:
		return fmt.Sprintf("deferred %s %s attempt %d %s until %s", name(r.Branch), r.Op, r.Attempt, r.Outcome, since(r.Until, start))
	case Halted:
		return fmt.Sprintf("halted %s %s: %s", name(r.Branch), r.Op, r.Cause)
	case Finished:
		return "finished " + r.Phase.String()
	case Forced:
		return fmt.Sprintf("forced %s %s %s by %s", name(r.Branch), r.Op, r.Act, r.By)
	case Stopped:
		return fmt.Sprintf("stopped by %s: %s", r.By, r.Why)
	}
	return fmt.Sprintf("%T?", r)
}

func show(s State, start time.Time) string {
	var b strings.Builder
	fmt.Fprintf(&b, "%s, expires %s", s.Phase, since(s.Expires, start))
	if s.Reason != "" {
		fmt.Fprintf(&b, ": %s", s.Reason)
	}
	fmt.Fprintln(&b)
	for i := range s.Branches {
		br := s.Branches[i]
		fmt.Fprintf(&b, "%s:", br.ID)
		for op := range NumOps {
			if o := br.Known[op]; o.Outcome != None {
				fmt.Fprintf(&b, " %s %s %q", op, o.Outcome, o.Result)
			} else if o.Halted {
				fmt.Fprintf(&b, " %s halted", op)
			} else if o.Attempt > 0 {
				fmt.Fprintf(&b, " %s tried %d", op, o.Attempt)
			}
		}
		fmt.Fprintln(&b)
	}
	return b.String()
}
