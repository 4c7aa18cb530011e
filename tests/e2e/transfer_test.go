package e2e

import (
	"strings"
	"testing"
)

func TestTransferHappensInBothServices(t *testing.T) {
	m := newBank(t, "alice=100", "bob=20").start()
	transfers, accounts, savings := m.nodes["transfers"], m.nodes["accounts"], m.nodes["savings"]
	r := transfers.root("/transfers", `{"from":"alice","to":"bob","amount":30}`, "Idempotency-Key", `"k-1"`)
	if r.status != 201 || r.header.Get("Tx-Status") != "committed" || r.body != `{"id":"k-1"}` {
		t.Fatalf("transfer = %d %s %v, want 201 committed", r.status, r.body, r.header)
	}
	if a, s := readBook(accounts), readBook(savings); a.balances["alice"] != 70 || s.balances["bob"] != 50 ||
		a.times["k-1"] != 1 || s.times["k-1"] != 1 {
		t.Errorf("books say %+v and %+v, want 70 and 50, booked once", a, s)
	}
	again := transfers.root("/transfers", `{"from":"alice","to":"bob","amount":30}`, "Idempotency-Key", `"k-1"`)
	if again.status != 201 || again.body != r.body || again.header.Get("Tx-Replayed") != "true" {
		t.Errorf("repeat = %d %s %v, want the recorded answer", again.status, again.body, again.header)
	}
	x := transfers.reaches(r.header.Get("Tx-Id"), "committed")
	if len(x.Branches) != 2 || x.Branches[0].Home != accounts.owner || x.Branches[1].Home != savings.owner {
		t.Errorf("branches = %+v, want one at each home", x.Branches)
	}
}

func TestRefusedTransferIsUndone(t *testing.T) {
	m := newBank(t, "alice=100", "carol=closed").start()
	r := m.nodes["transfers"].root("/transfers", `{"from":"alice","to":"carol","amount":30}`, "Idempotency-Key", `"k-2"`)
	if r.status != 409 || r.header.Get("Tx-Status") != "aborted" || r.body != `{"error":"account closed"}` {
		t.Fatalf("transfer = %d %s %v, want the refusal of savings", r.status, r.body, r.header)
	}
	a, s := readBook(m.nodes["accounts"]), readBook(m.nodes["savings"])
	if a.balances["alice"] != 100 || a.times["k-2"] != 1 || a.net["k-2"] != 0 || s.times["k-2"] != 0 {
		t.Errorf("books say %+v and %+v, want the withdrawal undone and no deposit", a, s)
	}
}

// The sidecar of the root dies while savings keeps its answer back: the client gets none, and after the restart both
// changes are taken back.
func TestKilledSidecarUndoesWhatWasUnanswered(t *testing.T) {
	m := newBank(t, "alice=100", "bob=20").start()
	transfers, accounts, savings := m.nodes["transfers"], m.nodes["accounts"], m.nodes["savings"]
	p := transfers.later("/transfers", `{"from":"alice","to":"bob","amount":30}`, "Idempotency-Key", `"k-3"`, "X-Bank-Hold-Ms", "1500")
	x := transfers.enlisted("deposit")
	m.eventually("savings has booked", func() (bool, string) { return readBook(savings).times["k-3"] == 1, "no deposit" })
	transfers.crash()
	if _, err := p.wait(t); err == nil {
		t.Error("the client was answered by a killed sidecar")
	}
	x = transfers.reaches(x.ID, "aborted")
	a, s := readBook(accounts), readBook(savings)
	if a.balances["alice"] != 100 || s.balances["bob"] != 20 || a.times["k-3"] != 1 || s.times["k-3"] != 1 {
		t.Errorf("books say %+v and %+v, want 100 and 20, each booked once and undone\n%s", a, s, x.events())
	}
	if !strings.Contains(x.Reason, "restart") {
		t.Errorf("reason = %q, want one that names the restart", x.Reason)
	}
	again := transfers.root("/transfers", `{"from":"alice","to":"bob","amount":30}`, "Idempotency-Key", `"k-3"`)
	if again.status != 409 || again.header.Get("Tx-Error") != "TXM0116" || again.header.Get("Tx-Replayed") != "true" {
		t.Errorf("repeat = %d %s %v, want 409 TXM0116", again.status, again.body, again.header)
	}
}
