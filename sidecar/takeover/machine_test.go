package takeover

import (
	"errors"
	"fmt"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"txmesh/txlog"

	"github.com/cockroachdb/datadriven"
)

// history is a machine, and a table of leases that stands for the store.
type history struct {
	m       *Machine
	now     time.Duration
	leases  []txlog.Lease
	beating map[string]bool
	idle    []string
	cut     bool // the store answers nothing
	asked   []Action
	then    []txlog.Lease // the table when they were asked
}

// TestHistories plays the files of testdata/histories. The lease time is 3 s. Commands:
//
//	new SELF service=s standby     a machine that has just claimed its own journal at epoch 1
//	leases                         the table, a line each: OWNER EPOCH HOLDER service=s free beats
//	run 5s                         ticks every 250 ms; observations and renewals are answered from the table at once
//	ask                            half a second passes, and what is asked for then is not answered yet
//	pass 5s                        time in which nothing happens
//	answer                         what was asked for is answered, as it was then
//	cut | mend                     the store answers nothing, or does again
//	idle a b                       owners without an open transaction from now on
//	claimed OWNER EPOCH service=s error=fenced|lost        renewed OWNER EPOCH error=fenced|lost
//	started OWNER EPOCH error=fenced|lost                  stopped OWNER EPOCH
//	fenced OWNER EPOCH             offered OWNER EPOCH     ordered OWNER EPOCH adopter=x
//	leave                          held                    rank OWNER service=s
//
// The reaction lists the actions with their times, but for observations and renewals that were answered.
func TestHistories(t *testing.T) {
	datadriven.Walk(t, "testdata/histories", func(t *testing.T, path string) {
		h := &history{}
		datadriven.RunTest(t, path, func(t *testing.T, d *datadriven.TestData) string {
			out, err := h.command(d)
			if err != nil {
				d.Fatalf(t, "%v", err)
			}
			return out
		})
	})
}

// words splits the arguments of a line into those with a name and those without.
func words(line string) (pos []string, opt map[string]string) {
	opt = map[string]string{}
	for _, w := range strings.Fields(line) {
		if k, v, named := strings.Cut(w, "="); named {
			opt[k] = v
		} else {
			pos = append(pos, w)
		}
	}
	return append(pos, "", "", ""), opt
}

func (h *history) command(d *datadriven.TestData) (string, error) {
	_, line, _ := strings.Cut(d.FullCmd(), " ")
	pos, opt := words(line)
	service := opt["service"]
	if service == "" {
		service = "s"
	}
	epoch, _ := strconv.ParseUint(pos[1], 10, 64) // absent where a command has none
	o, fault := txlog.Owner{ID: pos[0], Epoch: epoch}, fault(opt["error"])
	switch d.Cmd {
	case "new":
		self := txlog.Holder{Sidecar: pos[0], Service: service}
		own := txlog.Lease{Owner: txlog.Owner{ID: pos[0], Epoch: 1}, Holder: self}
		*h = history{beating: map[string]bool{}}
		h.m = NewMachine(Config{Self: self, Standby: slices.Contains(pos, "standby")}, 0, own)
		return "", nil
	case "leases":
		return "", h.table(d.Input)
	case "run":
		most, err := time.ParseDuration(pos[0])
		return h.run(most), err
	case "pass":
		most, err := time.ParseDuration(pos[0])
		h.now += most
		return "", err
	case "ask":
		h.now += 500 * time.Millisecond
		h.asked, h.then = h.m.Step(h.now, Tick{Idle: h.idle}), slices.Clone(h.leases)
		return "", nil
	case "answer":
		return h.answer(h.asked, h.then), nil
	case "cut", "mend":
		h.cut = d.Cmd == "cut"
		return "", nil
	case "idle":
		h.idle = strings.Fields(line)
		return "", nil
	case "held":
		return h.held(), nil
	case "rank":
		return fmt.Sprintln(h.m.rank(txlog.Lease{Owner: o, Holder: txlog.Holder{Service: service}})), nil
	case "claimed":
		l := txlog.Lease{Owner: o, Holder: txlog.Holder{Sidecar: h.m.cfg.Self.Sidecar, Service: service}}
		return h.step(Claimed{o.ID, l, fault}), nil
	case "renewed":
		return h.step(Renewed{o, fault}), nil
	case "started":
		return h.step(Started{o, fault}), nil
	case "stopped":
		return h.step(Stopped{o}), nil
	case "fenced":
		return h.step(Fenced{o}), nil
	case "offered":
		return h.step(Offered{o}), nil
	case "ordered":
		return h.step(Ordered{o, opt["adopter"]}), nil
	case "leave":
		return h.step(Leave{}), nil
	}
	return "", fmt.Errorf("unknown command %q", d.Cmd)
}

func fault(word string) error {
	switch word {
	case "":
		return nil
	case "fenced":
		return fmt.Errorf("wrapped: %w", txlog.ErrFenced)
	}
	return errors.New(word)
}

func (h *history) table(input string) error {
	h.leases, h.beating = nil, map[string]bool{}
	for line := range strings.Lines(input) {
		pos, opt := words(line)
		epoch, err := strconv.ParseUint(pos[1], 10, 64)
		if err != nil {
			return err
		}
		l := txlog.Lease{Owner: txlog.Owner{ID: pos[0], Epoch: epoch}, Holder: txlog.Holder{Sidecar: pos[2], Service: "s"},
			Free: slices.Contains(pos, "free")}
		if s := opt["service"]; s != "" {
			l.Holder.Service = s
		}
		h.beating[l.Owner.ID] = slices.Contains(pos, "beats")
		h.leases = append(h.leases, l)
	}
	return nil
}

func (h *history) step(e Event) string { return h.show(h.m.Step(h.now, e)) }

// run ticks for a time.
func (h *history) run(most time.Duration) string {
	var out strings.Builder
	for end := h.now + most; h.now < end; {
		h.now += 250 * time.Millisecond
		for i, l := range h.leases {
			if h.beating[l.Owner.ID] {
				h.leases[i].Beat++
			}
		}
		out.WriteString(h.answer(h.m.Step(h.now, Tick{Idle: h.idle}), h.leases))
	}
	return out.String()
}

// answer answers what a table can answer and shows the rest.
func (h *history) answer(as []Action, leases []txlog.Lease) string {
	var out strings.Builder
	for _, a := range as {
		switch a := a.(type) {
		case Observe:
			e := Observed{Err: fault("cut")}
			if !h.cut {
				e = Observed{Leases: slices.DeleteFunc(slices.Clone(leases), func(l txlog.Lease) bool {
					return a.Service != "" && l.Holder.Service != a.Service
				})}
			}
			out.WriteString(h.step(e))
		case Renew:
			e := Renewed{Owner: a.Owner}
			if h.cut {
				e.Err = fault("cut")
			}
			out.WriteString(h.step(e))
		default:
			out.WriteString(h.show([]Action{a}))
		}
	}
	return out.String()
}

func (h *history) show(as []Action) string {
	var out strings.Builder
	for _, a := range as {
		fmt.Fprintf(&out, "%v: %s\n", h.now, spell(a))
	}
	return out.String()
}

func spell(a Action) string {
	switch a := a.(type) {
	case Observe:
		return fmt.Sprintf("observe %q", a.Service)
	case Claim:
		return fmt.Sprintf("claim %s known=%d service=%s", a.Owner, a.Known, a.Holder.Service)
	case Renew:
		return "renew " + at(a.Owner)
	case Adopt:
		return "adopt " + at(a.Lease.Owner) + " service=" + a.Lease.Holder.Service
	case Drop:
		return fmt.Sprintf("drop %s: %v", at(a.Owner), a.Why)
	case Release:
		return "release " + at(a.Owner)
	case Retire:
		return "retire " + at(a.Owner)
	case Offer:
		return "offer " + at(a.Owner) + " to " + a.Heir.Sidecar
	}
	panic(fmt.Sprintf("no such action: %T", a))
}

func at(o txlog.Owner) string { return fmt.Sprintf("%s at %d", o.ID, o.Epoch) }

func (h *history) held() string {
	var out strings.Builder
	for _, l := range h.m.Held() {
		word := ""
		if !h.m.Runs(l.Owner.ID) {
			word = ", ending"
		}
		fmt.Fprintf(&out, "%s%s\n", at(l.Owner), word)
	}
	if h.m.Unsure(h.now) {
		out.WriteString("unsure\n")
	}
	if h.m.Left() {
		out.WriteString("left\n")
	}
	for _, id := range []string{"a", "b", "c"} {
		if live, known := h.m.Live(id); known {
			fmt.Fprintf(&out, "%s lives: %v\n", id, live)
		}
	}
	return out.String()
}
