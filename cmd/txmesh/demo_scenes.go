package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"net/http"
	"slices"
	"strings"
	"time"

	"txmesh/cmd/txmesh/diagram"
)

// scene is one transfer of the demonstration.
type scene struct {
	title  string
	story  string
	to     string
	crash  bool
	status int    // what the client is told in the end
	phase  string // how the transaction ends
	moral  string
}

// order is what the client asks for.
type order struct {
	From   string `json:"from"`
	To     string `json:"to"`
	Amount int64  `json:"amount"`
}

func scenes() []scene {
	return []scene{
		{title: "A transfer that succeeds", to: "bob", status: http.StatusCreated, phase: "committed",
			story: "transfers calls accounts, then savings. Both answer 201.",
			moral: "both accounts changed"},
		{title: "A transfer that a service refuses", to: "carol", status: http.StatusConflict, phase: "aborted",
			story: "The account of carol is closed: savings answers 409 when the money has left alice's account\nalready. The policy says what takes it back; the service does not even know.",
			moral: "the withdrawal was undone, nothing moved"},
		{title: "A transfer through a kill -9", to: "slow", crash: true, status: http.StatusConflict, phase: "aborted",
			story: "savings books the deposit at once but holds its answer back. Meanwhile the sidecar beside\ntransfers, which owns the transaction, is killed with -9 and started again on the same journal.",
			moral: "nobody could answer the client, so both changes were undone"},
	}
}

// balances are the accounts of both services, as the services themselves tell.
type balances struct{ accounts, savings map[string]int64 }

// result is what was seen of one transfer.
type result struct {
	id     string
	status int
	text   string
	took   time.Duration
	marks  []diagram.Mark
	during *balances // while the sidecar was dead; nil: it never was
	killed time.Time
}

// play runs one scene, prints what happened and checks it against the promise.
func (d *demo) play(ctx context.Context, n int, sc scene) error {
	ctx, cancel := context.WithTimeoutCause(ctx, sceneMax, fmt.Errorf("transfer %d did not end within %v", n, sceneMax))
	defer cancel()
	s := d.screen
	o := order{From: "alice", To: sc.to, Amount: 30}
	s.say("\n%s", s.strong(fmt.Sprintf("%d. %s: %d from alice to %s", n, sc.title, o.Amount, o.To)))
	for line := range strings.SplitSeq(sc.story, "\n") {
		s.say("   %s", line)
	}
	before, err := d.balances(ctx)
	if err != nil {
		return err
	}
	act := d.transfer
	if sc.crash {
		act = d.transferThroughCrash
	}
	r, err := act(ctx, fmt.Sprintf("demo-%d", n), o)
	if err != nil {
		return limitOf(ctx, err)
	}
	tx, err := d.ended(ctx, r.id)
	if err != nil {
		return limitOf(ctx, err)
	}
	after, err := d.balances(ctx)
	if err != nil {
		return err
	}
	s.say("")
	g := tx.drawing()
	g.Marks = r.marks
	s.draw(g)
	s.say("")
	d.printBalances(o, before, r.during, after)
	if err := errors.Join(verify(sc, o, r, tx, before, after), verifyCrash(o, r, tx, before)); err != nil {
		return fmt.Errorf("transfer %d is not as promised: %w", n, err)
	}
	s.say("   %s", s.good("As promised: "+sc.moral+"."))
	s.say("   The client was told %d after %s.", r.status, took(r.took))
	return nil
}

// limitOf names the limit that ended a context, where that is what happened.
func limitOf(ctx context.Context, err error) error {
	if errors.Is(err, context.DeadlineExceeded) {
		return fmt.Errorf("%w: %w", context.Cause(ctx), err)
	}
	return err
}

// transfer asks for one and waits for its answer.
func (d *demo) transfer(ctx context.Context, key string, o order) (result, error) {
	began := time.Now()
	status, header, text, err := d.order(ctx, key, o)
	if err != nil {
		return result{}, fmt.Errorf("ask for a transfer: %w", err)
	}
	at := time.Now()
	r := result{id: header.Get("tx-id"), status: status, text: string(text), took: at.Sub(began)}
	if r.id == "" {
		return r, fmt.Errorf("the answer %d to the transfer names no transaction: %s", status, text)
	}
	r.marks = []diagram.Mark{{At: at, Kind: diagram.Answered, Text: fmt.Sprintf("%d to the client", status)}}
	return r, nil
}

func (d *demo) order(ctx context.Context, key string, o order) (int, http.Header, []byte, error) {
	return d.request(ctx, http.MethodPost, "http://"+d.transfers.inbound+"/transfers", key, o)
}

// transferThroughCrash kills the owner's sidecar while the deposit has happened and is not answered.
//
//  1. The client asks; accounts has answered, savings holds its answer back.
//  2. kill -9. The client's connection breaks: it does not know what became of its transfer.
//  3. The sidecar is started again on the same journal and the same addresses, and brings the transaction to its end.
//  4. The client asks again with the same Idempotency-Key and is told the outcome.
func (d *demo) transferThroughCrash(ctx context.Context, key string, o order) (result, error) {
	began := time.Now()
	asking, giveUp := context.WithCancel(ctx)
	defer giveUp()
	broke := make(chan diagram.Mark, 1)
	go func() {
		status, _, _, err := d.order(asking, key, o)
		m := diagram.Mark{At: time.Now(), Kind: diagram.Broken, Text: "connection lost"}
		if err == nil {
			m.Kind, m.Text = diagram.Answered, fmt.Sprintf("%d to the client", status)
		} else if asking.Err() != nil {
			m.Text = "no answer"
		}
		broke <- m
	}()
	id, err := d.unanswered(ctx, o)
	if err != nil {
		giveUp()
		return result{}, fmt.Errorf("%w; the client saw: %s", err, (<-broke).Text)
	}
	r := result{id: id, killed: time.Now()}
	r.marks = []diagram.Mark{{At: r.killed, Kind: diagram.Killed, Text: "kill -9"}}
	d.transfers.sidecar.kill()
	r.marks = append(r.marks, <-broke)
	during, err := d.balances(ctx)
	if err != nil {
		return r, err
	}
	r.during = &during
	r.marks = append(r.marks, diagram.Mark{At: time.Now(), Kind: diagram.Started, Text: "started again"})
	if err := d.startSidecar(ctx, d.transfers); err != nil {
		return r, err
	}
	if _, err := d.ended(ctx, id); err != nil {
		return r, err
	}
	r.marks = append(r.marks, diagram.Mark{At: time.Now(), Kind: diagram.Sent, Text: "the client asks again"})
	status, header, text, err := d.order(ctx, key, o)
	if err != nil {
		return r, fmt.Errorf("ask again after the crash: %w", err)
	}
	at := time.Now()
	if again := header.Get("tx-id"); again != id {
		return r, fmt.Errorf("the repeated request was answered %d for transaction %q instead of %s: %s", status, again, id, text)
	}
	r.marks = append(r.marks, diagram.Mark{At: at, Kind: diagram.Answered, Text: fmt.Sprintf("%d: %s", status, header.Get("tx-status"))})
	r.status, r.text, r.took = status, string(text), at.Sub(began)
	return r, nil
}

// unanswered returns the open transaction once its deposit is booked, enlisted and not answered.
func (d *demo) unanswered(ctx context.Context, o order) (id string, err error) {
	seen := "no open transaction"
	err = poll(ctx, sceneMax/2, func() (bool, error) {
		open, _, err := d.api.list(ctx, txFilter{phases: []string{"open"}, limit: 1})
		if err != nil || len(open) == 0 {
			return false, err
		}
		tx, _, err := d.api.show(ctx, open[0].ID)
		if err != nil {
			return false, err
		}
		i := slices.IndexFunc(tx.Branches, func(b txBranch) bool { return b.Name == "deposit" })
		if i < 0 || tx.Branches[i].forward().Outcome != "none" {
			seen = fmt.Sprintf("transaction %s with %d branches", tx.ID, len(tx.Branches))
			return false, nil
		}
		now, err := d.balances(ctx)
		id, seen = tx.ID, "a deposit that savings has not booked"
		return err == nil && now.savings[o.To] == o.Amount, err
	})
	if err != nil {
		return "", fmt.Errorf("wait for a branch that is enlisted and not answered: %w; seen: %s", err, seen)
	}
	return id, nil
}

// ended returns a transaction when nothing in it is left to do.
func (d *demo) ended(ctx context.Context, id string) (tx txDetail, err error) {
	err = poll(ctx, sceneMax/2, func() (bool, error) {
		var err error
		tx, _, err = d.api.show(ctx, id)
		if err == nil && tx.Phase == "stuck" {
			err = fmt.Errorf("it is stuck: %+v", tx.stuck())
		}
		return !tx.Finished.IsZero(), err
	})
	if err != nil {
		return tx, fmt.Errorf("wait for the end of transaction %s, which is %s: %w\n%s", id, tx.Phase, err, d.transfers.sidecar.tail())
	}
	return tx, nil
}

// balances asks the services themselves, past all sidecars.
func (d *demo) balances(ctx context.Context) (balances, error) {
	var b balances
	for _, part := range []struct {
		m    *member
		into *map[string]int64
	}{{d.accounts, &b.accounts}, {d.savings, &b.savings}} {
		status, _, text, err := d.request(ctx, http.MethodGet, "http://"+part.m.listen+"/balances", "", nil)
		if err == nil && status != http.StatusOK {
			err = fmt.Errorf("answered %d: %s", status, text)
		}
		if err == nil {
			err = json.Unmarshal(text, part.into)
		}
		if err != nil {
			return b, fmt.Errorf("read the balances of %s: %w\n%s", part.m.name, err, part.m.app.tail())
		}
	}
	return b, nil
}

// verify compares what became of a transfer with what was promised: in both services, or in neither.
func verify(sc scene, o order, r result, tx txDetail, before, after balances) error {
	want := balances{maps.Clone(before.accounts), maps.Clone(before.savings)}
	if sc.phase == "committed" {
		want.accounts[o.From] -= o.Amount
		want.savings[o.To] += o.Amount
	}
	var wrong []error
	for _, part := range []struct {
		name      string
		got, want map[string]int64
	}{{"accounts", after.accounts, want.accounts}, {"savings", after.savings, want.savings}} {
		for _, account := range slices.Sorted(maps.Keys(part.want)) {
			if part.got[account] != part.want[account] {
				wrong = append(wrong, fmt.Errorf("balance of %s in %s is %d, promised was %d",
					account, part.name, part.got[account], part.want[account]))
			}
		}
		if len(part.got) != len(part.want) {
			wrong = append(wrong, fmt.Errorf("%s has %d accounts instead of %d", part.name, len(part.got), len(part.want)))
		}
	}
	if tx.Phase != sc.phase {
		wrong = append(wrong, fmt.Errorf("transaction %s is %s, promised was %s", tx.ID, tx.Phase, sc.phase))
	}
	if r.status != sc.status {
		wrong = append(wrong, fmt.Errorf("the client was told %d, promised was %d: %s", r.status, sc.status, r.text))
	}
	return errors.Join(wrong...)
}

// verifyCrash sees to it that the third transfer showed what it is there for: money that had moved in both services,
// and a deposit that nobody had answered when the sidecar died.
func verifyCrash(o order, r result, tx txDetail, before balances) error {
	if r.during == nil {
		return nil
	}
	var wrong []error
	if got, want := r.during.accounts[o.From], before.accounts[o.From]-o.Amount; got != want {
		wrong = append(wrong, fmt.Errorf("while the sidecar was dead %s had %d, meant was %d", o.From, got, want))
	}
	if got, want := r.during.savings[o.To], before.savings[o.To]+o.Amount; got != want {
		wrong = append(wrong, fmt.Errorf("while the sidecar was dead %s had %d, meant was %d", o.To, got, want))
	}
	for _, e := range tx.History {
		name := ""
		if i := slices.IndexFunc(tx.Branches, func(b txBranch) bool { return b.Branch == e.Branch }); i >= 0 {
			name = tx.Branches[i].Name
		}
		if name == "deposit" && e.Event == "answered" && e.At.Before(r.killed) {
			wrong = append(wrong, errors.New("the deposit was answered before the sidecar was killed"))
		}
	}
	return errors.Join(wrong...)
}
