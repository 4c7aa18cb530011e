package e2e

import (
	"bufio"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"strconv"
	"strings"
	"time"
)

// transaction is what the API says of one.
type transaction struct {
	ID       string
	Mode     string
	Name     string
	Phase    string
	Reason   string
	Expires  time.Time
	Branches []struct {
		Branch, Name, Home, Fate string
		After                    []string
		Ops                      []struct {
			Op, Outcome, Cause string
			Attempts           int
			Halted, Forced     bool
		}
	}
	History []struct {
		At                                          time.Time
		Event, Branch, Name, Op, Outcome, Cause, By string
		Attempt                                     int
		Stand, Undo                                 []string
	}
}

// ask calls the API of the node's sidecar with its token.
func (n *node) ask(method, path, body string) (reply, error) {
	return n.m.send(method, "http://"+n.api+path, body, "Authorization", "Bearer "+n.token)
}

// must200 is ask for what must succeed.
func (n *node) admin(method, path, body string) reply {
	n.m.t.Helper()
	r, err := n.ask(method, path, body)
	if err != nil {
		n.m.t.Fatalf("%s %s: %v", method, path, err)
	}
	return r
}

func (n *node) list(query string) ([]transaction, error) {
	r, err := n.ask("GET", "/v1/transactions?limit=1000"+query, "")
	if err != nil {
		return nil, err
	}
	if r.status != 200 {
		return nil, fmt.Errorf("list: %d %s", r.status, r.body)
	}
	var v struct{ Transactions []json.RawMessage }
	if err := json.Unmarshal([]byte(r.body), &v); err != nil {
		return nil, err
	}
	var out []transaction
	for _, raw := range v.Transactions {
		var s struct{ ID, Mode, Name, Phase, Reason string }
		if err := json.Unmarshal(raw, &s); err != nil {
			return nil, err
		}
		out = append(out, transaction{ID: s.ID, Mode: s.Mode, Name: s.Name, Phase: s.Phase, Reason: s.Reason})
	}
	return out, nil
}

// open lists what has not ended.
func (n *node) open() ([]transaction, error) {
	return n.list("&phase=open&phase=committing&phase=aborting&phase=stuck")
}

func (n *node) show(id string) (transaction, error) {
	var x transaction
	r, err := n.ask("GET", "/v1/transactions/"+id, "")
	if err != nil {
		return x, err
	}
	if r.status != 200 {
		return x, fmt.Errorf("show %s: %d %s", id, r.status, r.body)
	}
	return x, json.Unmarshal([]byte(r.body), &x)
}

// only waits until the sidecar has one transaction that has not ended, and gives it.
func (n *node) only() transaction {
	n.m.t.Helper()
	var x transaction
	n.m.eventually("one transaction is open", func() (bool, string) {
		all, err := n.open()
		if err == nil && len(all) == 1 {
			x, err = n.show(all[0].ID)
			return err == nil, fmt.Sprint(err)
		}
		return false, fmt.Sprint(all, err)
	})
	return x
}

// reaches waits for a phase.
func (n *node) reaches(id, phase string) transaction {
	n.m.t.Helper()
	var x transaction
	n.m.eventually(id+" is "+phase, func() (bool, string) {
		var err error
		x, err = n.show(id)
		return err == nil && x.Phase == phase, fmt.Sprintf("%+v %v", x, err)
	})
	return x
}

// enlisted waits until a branch of that name stands unanswered in the only open transaction.
func (n *node) enlisted(name string) transaction {
	n.m.t.Helper()
	var x transaction
	n.m.eventually("branch "+name+" is enlisted", func() (bool, string) {
		all, err := n.open()
		for _, o := range all {
			if x, err = n.show(o.ID); err != nil {
				break
			}
			for _, b := range x.Branches {
				if b.Name == name && x.outcome(name, "forward") == "none" {
					return true, ""
				}
			}
		}
		return false, fmt.Sprint(all, err)
	})
	return x
}

// outcome is what is known of an op of the branch with a name; "" where there is none.
func (x transaction) outcome(name, op string) string {
	for _, b := range x.Branches {
		for _, o := range b.Ops {
			if b.Name == name && o.Op == op {
				return o.Outcome
			}
		}
	}
	return ""
}

// events lists the history as words, without times and causes.
func (x transaction) events() string {
	var out []string
	for _, e := range x.History {
		w := []string{e.Event}
		for _, s := range []string{e.Branch, e.Op, e.Outcome} {
			if s != "" {
				w = append(w, s)
			}
		}
		out = append(out, strings.Join(w, " "))
	}
	return strings.Join(out, "; ")
}

// metric reads one value; the name comes with its tags as they are printed.
func (n *node) metric(name string) (float64, error) {
	r, err := n.ask("GET", "/metrics", "")
	if err != nil {
		return 0, err
	}
	for line := range strings.Lines(r.body) {
		if rest, ok := strings.CutPrefix(line, name+" "); ok {
			return strconv.ParseFloat(strings.TrimSpace(rest), 64)
		}
	}
	return 0, errors.New("no metric " + name)
}

// effect is one line of a participant's file.
type effect struct {
	ID, Method, Path, Query, Op, Tx, Branch, Attempt, Key, Traceparent, Baggage, Ref, Body string
	Status                                                                                 int
	Answer                                                                                 json.RawMessage
	Calls                                                                                  []struct {
		Status      int
		Error, Body string
	}
}

// effects reads the file of a participant.
func (n *node) effects() []effect {
	n.m.t.Helper()
	return readLines[effect](n)
}

// readLines reads the lines of a service's own file.
func readLines[T any](n *node) []T {
	n.m.t.Helper()
	f, err := os.Open(n.data())
	if errors.Is(err, os.ErrNotExist) {
		return nil
	}
	n.m.must(err)
	defer f.Close()
	var out []T
	in := bufio.NewScanner(f)
	in.Buffer(nil, 4<<20)
	for in.Scan() {
		var v T
		if err := json.Unmarshal(in.Bytes(), &v); err != nil {
			n.m.t.Fatalf("%s: %q: %v", n.data(), in.Bytes(), err)
		}
		out = append(out, v)
	}
	n.m.must(in.Err())
	return out
}

// did is what a participant did, in order: "POST /x 201, DELETE /x/e1 200".
func (n *node) did() string {
	var out []string
	for _, e := range n.effects() {
		out = append(out, fmt.Sprintf("%s %s %d", e.Method, e.Path, e.Status))
	}
	return strings.Join(out, ", ")
}

// does waits until the participant's file says so.
func (n *node) does(want string) {
	n.m.t.Helper()
	n.m.eventually(n.name+" did what it must", func() (bool, string) {
		got := n.did()
		return got == want, "did " + got + "; want " + want
	})
}

// override changes what the participant answers; release lets go what waits for a name.
func (n *node) override(text string) { n.m.t.Helper(); n.m.write(n.name+".jsonl.answers", text) }

func (n *node) release(name string) { n.m.t.Helper(); n.m.write(n.name+".jsonl."+name, "") }

// waits returns when a request waits for a name.
func (n *node) waits(name string) {
	n.m.t.Helper()
	n.m.eventually(n.name+" waits for "+name, func() (bool, string) {
		_, err := os.Stat(n.data() + "." + name + ".waits")
		return err == nil, errText(err)
	})
}
