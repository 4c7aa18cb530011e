package main

import (
	"bytes"
	"encoding/json"
	"fmt"
	"sync"
)

// amountMax is the largest integer that all three languages of the bank hold exactly.
const amountMax = 1<<53 - 1

// entry is one line of the ledger. The balances are the fold of the entries, so balance and entry are one write.
type entry struct {
	Kind     string          `json:"kind"` // opened, withdrawal, deposit, undone; answered: nothing changed
	ID       string          `json:"id,omitempty"`
	Account  string          `json:"account"`
	Amount   int64           `json:"amount,omitempty"`
	Transfer string          `json:"transfer,omitempty"` // the reference that the caller gave
	Balance  int64           `json:"balance"`            // after this entry
	Closed   bool            `json:"closed,omitempty"`
	Key      string          `json:"key,omitempty"`   // Idempotency-Key of the request
	Print    string          `json:"print,omitempty"` // fingerprint of the request
	Status   int             `json:"status,omitempty"`
	Answer   json.RawMessage `json:"answer,omitempty"` // what the key is answered for ever
}

// book keeps the accounts of one service: either withdrawals or deposits change them. It is safe for many
// goroutines.
type book struct {
	file *ledger
	kind string // withdrawal or deposit
	sign int64  // what a change adds: -1 or +1 times the amount

	mu       sync.Mutex // guards the fields below
	balances map[string]int64
	closed   map[string]bool
	changes  map[string]entry // by id
	undone   map[string]bool
	answered map[string]entry // by key
	entries  []entry
}

func openBook(c config) (*book, error) {
	file, lines, err := openLedger(c.data)
	if err != nil {
		return nil, err
	}
	b := &book{
		file: file, kind: "withdrawal", sign: -1,
		balances: map[string]int64{}, closed: map[string]bool{}, changes: map[string]entry{},
		undone: map[string]bool{}, answered: map[string]entry{},
	}
	if c.as == "savings" {
		b.kind, b.sign = "deposit", 1
	}
	for i, line := range lines {
		var e entry
		if err := json.Unmarshal(line, &e); err != nil {
			return nil, fmt.Errorf("read line %d of %s: %w", i+1, c.data, err)
		}
		b.fold(e)
	}
	for _, o := range c.balances {
		if _, known := b.balances[o.account]; !known {
			b.record(entry{Kind: "opened", Account: o.account, Balance: o.balance, Closed: o.closed})
		}
	}
	b.file.wait(b.file.submitted)
	return b, nil
}

// fold is the only place where state changes, for new entries and for those read after a restart.
func (b *book) fold(e entry) {
	switch e.Kind {
	case "opened":
		b.balances[e.Account], b.closed[e.Account] = e.Balance, e.Closed
	case "withdrawal", "deposit":
		b.balances[e.Account] = e.Balance
		b.changes[e.ID] = e
	case "undone":
		b.balances[e.Account] = e.Balance
		b.undone[e.ID] = true
	}
	if e.Key != "" {
		b.answered[e.Key] = e
	}
	b.entries = append(b.entries, e)
}

func (b *book) record(e entry) {
	b.fold(e)
	b.file.submit(compact(e))
}

// once answers a request that changes something: from the record if its key has been seen, else by decide. It
// returns when the answer is durable.
func (b *book) once(key, print string, decide func() entry) (int, []byte) {
	b.mu.Lock()
	e, seen := b.answered[key]
	if seen && e.Print != print {
		e.Status, e.Answer = 422, refusal("the idempotency key was used for another request")
	}
	if !seen {
		e = decide()
		e.Key, e.Print = key, print
		if key == "" {
			e.Print = ""
		}
		if key != "" || e.Kind != "answered" {
			b.record(e)
		}
	}
	n := b.submitted()
	b.mu.Unlock()
	b.file.wait(n)
	return e.Status, e.Answer
}

// change decides about a withdrawal or a deposit; the caller holds mu.
func (b *book) change(account string, amount int64, transfer string) entry {
	e := entry{Kind: "answered", Account: account, Amount: amount, Transfer: transfer, Status: 409}
	balance, known := b.balances[account]
	e.Balance = balance
	after := balance + b.sign*amount
	switch {
	case !known:
		e.Status, e.Answer = 404, refusal("no account "+account)
	case b.closed[account]:
		e.Answer = refusal("account closed")
	case after < 0:
		e.Answer = refusal("insufficient funds")
	case after > amountMax:
		e.Answer = refusal("balance too large")
	default:
		e.Kind, e.ID, e.Balance, e.Status = b.kind, fmt.Sprintf("%c-%d", b.kind[0], len(b.changes)+1), after, 201
		e.Answer = changed(e.ID, after)
	}
	return e
}

// undo decides about taking a change back; the caller holds mu. It works on closed accounts too, and never
// refuses for the balance: whoever undoes has the right to.
func (b *book) undo(account, id string) entry {
	c, known := b.changes[id]
	if !known || c.Account != account {
		return entry{
			Kind: "answered", ID: id, Account: account, Balance: b.balances[account],
			Status: 404, Answer: refusal("no " + b.kind + " " + id + " of " + account),
		}
	}
	e := entry{
		Kind: "undone", ID: id, Account: account, Amount: c.Amount, Transfer: c.Transfer,
		Balance: b.balances[account] - b.sign*c.Amount, Status: 200,
	}
	if b.undone[id] {
		e.Kind, e.Balance = "answered", b.balances[account]
	}
	e.Answer = changed(id, e.Balance)
	return e
}

// submitted is the number of the last line, for wait; the caller holds mu.
func (b *book) submitted() int {
	b.file.mu.Lock()
	defer b.file.mu.Unlock()
	return b.file.submitted
}

func refusal(text string) json.RawMessage {
	return compact(struct {
		Error string `json:"error"`
	}{text})
}

func changed(id string, balance int64) json.RawMessage {
	return compact(struct {
		ID      string `json:"id"`
		Balance int64  `json:"balance"`
	}{id, balance})
}

// compact is JSON without a newline and with < and > as they are, as Python and Node write it.
func compact(v any) []byte {
	var out bytes.Buffer
	enc := json.NewEncoder(&out)
	enc.SetEscapeHTML(false)
	if err := enc.Encode(v); err != nil {
		panic(fmt.Sprintf("encode %#v: %v", v, err))
	}
	return bytes.TrimSuffix(out.Bytes(), []byte("\n"))
}
