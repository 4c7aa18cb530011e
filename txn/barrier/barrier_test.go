package barrier

import (
	"fmt"
	"strings"
	"testing"

	"github.com/cockroachdb/datadriven"

	"txmesh/txn"
)

func asked() []txn.Op { return []txn.Op{txn.Forward, txn.Commit, txn.Undo, txn.Ask} }

// home plays the participant's side of the table: a row, an application with an effect, and a process that can
// be restarted while the application works.
type home struct {
	state   State
	effects int // how often the work took effect, less how often it was undone
	ran     []string
	answer  string // of the forward call, as recorded
}

// ask puts one op to the home and returns what it answers.
func (h *home) ask(op txn.Op, late bool, application string) string {
	v := Judge(h.state, op, late)
	switch v {
	case Run:
		return v.String() + ": " + h.run(op, application)
	case Replay:
		if op == txn.Undo || op == txn.Ask && h.state == Undone {
			return v.String() + ": undone"
		}
		return v.String() + ": " + h.answer
	case Empty, Absent:
		h.state = Undone
	case Refuse, Early, Resolve:
	default:
		panic(fmt.Sprint("no such verdict: ", v))
	}
	return v.String()
}

func (h *home) run(op txn.Op, application string) string {
	h.ran = append(h.ran, op.String())
	if op == txn.Forward {
		h.state = Running
		if application == "" {
			return "..."
		}
		h.end(application)
	}
	if op == txn.Undo {
		h.effects--
		h.state = Undone
	}
	return "application"
}

func (h *home) end(application string) {
	h.answer = application
	if h.state = Refused; application == "ok" {
		h.state = Done
		h.effects++
	}
}

// TestHistories plays testdata/histories: one history per cell. Commands: forward [late] [ok|refused], commit,
// undo, ask (each [late]), ends ok|refused (the running forward), restart, new.
func TestHistories(t *testing.T) {
	datadriven.Walk(t, "testdata/histories", func(t *testing.T, path string) {
		h := &home{}
		seen := map[string]bool{}
		datadriven.RunTest(t, path, func(t *testing.T, d *datadriven.TestData) string {
			late := len(d.CmdArgs) > 0 && d.CmdArgs[0].Key == "late"
			var answer string
			switch d.Cmd {
			case "new":
				h = &home{}
				return ""
			case "ends":
				h.end(d.CmdArgs[0].Key)
			case "restart":
				if h.state == Running {
					h.state = Crashed
				}
			default:
				op := parseOp(t, d)
				seen[fmt.Sprint(h.state, op, late)] = true
				application := ""
				if n := len(d.CmdArgs); n > 0 && !late {
					application = d.CmdArgs[n-1].Key
				}
				answer = h.ask(op, late, application) + "\n"
			}
			if h.effects < 0 || h.effects > 1 {
				d.Fatalf(t, "took effect %d times", h.effects)
			}
			return fmt.Sprintf("%sstate %s, effects %d, application saw [%s]\n", answer, h.state, h.effects, strings.Join(h.ran, " "))
		})
		for s := range NumStates {
			for _, op := range asked() {
				for _, late := range []bool{false, true} {
					if !seen[fmt.Sprint(s, op, late)] {
						t.Errorf("no history for %s of a branch in state %s, late %v", op, s, late)
					}
				}
			}
		}
	})
}

func parseOp(t *testing.T, d *datadriven.TestData) txn.Op {
	for _, op := range asked() {
		if op.String() == d.Cmd {
			return op
		}
	}
	d.Fatalf(t, "unknown op %q", d.Cmd)
	return 0
}

// TestTableIsTotal asks every cell, and holds the whole table against the few sentences that it must obey.
func TestTableIsTotal(t *testing.T) {
	for s := range NumStates {
		for _, op := range asked() {
			for _, late := range []bool{false, true} {
				v := Judge(s, op, late)
				cell := fmt.Sprintf("%s of %s, late %v: %s", op, s, late, v)
				effect := v == Run && op == txn.Forward
				switch {
				case effect && (s != Nothing || late):
					t.Errorf("%s: the work may run once, in time", cell)
				case op != txn.Forward && v != Judge(s, op, !late):
					t.Errorf("%s: only forward minds the deadline", cell)
				case s == Undone && op == txn.Forward && v != Refuse:
					t.Errorf("%s: nothing runs after its undo", cell)
				case s == Running && v != Early:
					t.Errorf("%s: whoever asks while it runs is asked to wait", cell)
				case s == Crashed && v != Resolve:
					t.Errorf("%s: an unknown end is found out first", cell)
				case (v == Empty || v == Absent) && s != Nothing && s != Refused:
					t.Errorf("%s: an empty undo where something may have happened", cell)
				case op == txn.Commit && s != Done && v == Run:
					t.Errorf("%s: commit of what does not stand", cell)
				}
			}
		}
	}
}

func TestNobodyTellsAParticipant(t *testing.T) {
	defer func() {
		if got, want := recover(), "barrier: tell is not asked of a participant"; got != want {
			t.Errorf("panic %v, want %q", got, want)
		}
	}()
	Judge(Nothing, txn.Tell, false)
}

func TestEveryWordIsNamed(t *testing.T) {
	words := map[string]bool{}
	for s := range NumStates {
		words[s.String()] = true
	}
	for v := Run; v <= Resolve; v++ {
		words[v.String()] = true
	}
	if len(words) != int(NumStates)+int(Resolve)+1 {
		t.Errorf("words are not distinct: %v", words)
	}
}
