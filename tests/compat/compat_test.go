package compat

import (
	"slices"
	"testing"

	"github.com/google/go-cmp/cmp"
)

// What a transfer moves, and what is in each account before it.
const (
	amount  = 30
	opening = 100
)

// scenario is one transfer of amount. Of its two accounts only the first may move when it fails.
type scenario struct {
	name     string
	program  string // name that the drivers know it by
	amount   int64  // amount, unless set
	closed   bool   // the account to which the money goes does not exist
	lose     string // see network
	cut      string
	together int  // see network
	killed   bool // the driver does not come to its end
	refused  bool // the client tells its user so
	status   string
	calls    []string // that the service sees
}

const (
	succeed = "succeed"
	failed  = "failed"
)

// scenarios is what every client should be able to do.
var scenarios = []scenario{
	{name: "saga", program: "saga", status: succeed, calls: []string{"01 action", "02 action"}},
	{name: "saga rollback", program: "saga", closed: true, status: failed,
		calls: []string{"01 action", "02 action", "02 compensate", "01 compensate"}},
	{name: "saga waited for", program: "saga-waited", status: succeed, calls: []string{"01 action", "02 action"}},
	{name: "saga rollback waited for", program: "saga-waited", closed: true, refused: true, status: failed,
		calls: []string{"01 action", "02 action", "02 compensate", "01 compensate"}},
	{name: "saga concurrent", program: "saga-concurrent", together: 2, status: succeed, calls: []string{"01 action", "02 action"}},
	{name: "saga ordered", program: "saga-ordered", status: succeed, calls: []string{"01 action", "02 action"}},
	{name: "saga null compensation, late action", program: "saga", lose: "01 action", status: failed,
		calls: []string{"01 action", "01 compensate"}},
	{name: "saga answer lost", program: "saga", cut: "01 action", status: succeed,
		calls: []string{"01 action", "01 action", "02 action"}},
	{name: "tcc", program: "tcc", status: succeed, calls: []string{"01 try", "02 try", "02 confirm", "01 confirm"}},
	{name: "tcc rollback", program: "tcc", closed: true, refused: true, status: failed,
		calls: []string{"01 try", "02 try", "02 cancel", "01 cancel"}},
	{name: "tcc null cancel, late try", program: "tcc", lose: "02 try", refused: true, status: failed,
		calls: []string{"01 try", "02 try", "02 cancel", "01 cancel"}},
	{name: "tcc answer lost", program: "tcc", cut: "01 confirm", status: succeed,
		calls: []string{"01 try", "02 try", "02 confirm", "01 confirm", "01 confirm"}},
	{name: "tcc nested", program: "tcc-nested", status: succeed,
		calls: []string{"01 try", "02 try", "0201 try", "0201 confirm", "02 confirm", "01 confirm"}},
	{name: "tcc nested rollback", program: "tcc-nested", closed: true, refused: true, status: failed,
		calls: []string{"01 try", "02 try", "0201 try", "0201 cancel", "02 cancel", "01 cancel"}},
	{name: "msg", program: "msg", status: succeed, calls: []string{"01 action"}},
	{name: "msg without prepare", program: "msg-plain", status: succeed, calls: []string{"01 action", "02 action"}},
	{name: "msg refused", program: "msg", amount: opening + 1, refused: true, status: failed},
	{name: "msg client dies after its commit", program: "msg-dies-committed", killed: true, status: succeed,
		calls: []string{"00 msg", "01 action"}},
	{name: "msg client dies before its commit", program: "msg-dies-uncommitted", killed: true, status: failed,
		calls: []string{"00 msg"}},
}

func TestClients(t *testing.T) {
	db, door := startMariaDB(t), startSidecar(t)
	user := int64(0)
	for _, c := range clients(t) {
		t.Run(c.name, func(t *testing.T) {
			f := c.start(t, door, db)
			for _, s := range scenarios {
				user += 2
				from, to := user, user+1
				t.Run(s.name, func(t *testing.T) {
					if why := c.cannot[s.name]; why != "" {
						t.Skip(c.name, why)
					}
					s.play(t, f, from, to)
				})
			}
		})
	}
	t.Run("node", func(t *testing.T) { testNode(t, door) })
}

// play makes the accounts, has the client transfer, and looks at how it ended: for the sidecar, in the accounts, and on
// the way to the service.
func (s scenario) play(t *testing.T, f fixture, from, to int64) {
	f.db.exec(t, "insert into dtm_busi.user_account (user_id, balance) values (?, ?)", from, opening)
	want := []account{{Balance: opening}, {}}
	if !s.closed {
		f.db.exec(t, "insert into dtm_busi.user_account (user_id, balance) values (?, ?)", to, opening)
		want[1].Balance = opening
	}
	n := newNetwork(t, f.address)
	n.lose, n.cut, n.together = s.lose, s.cut, s.together
	sum := int64(amount)
	if s.amount != 0 {
		sum = s.amount
	}

	b := f.begin(t, s.program, n.URL, from, to, sum)
	if b.killed != s.killed || (b.error != "") != s.refused {
		t.Errorf("the client came to its end: %v, and said %q; want %v, and a refusal: %v", !b.killed, b.error, !s.killed, s.refused)
	}
	if got := f.door.end(t, b.gid); got != s.status {
		t.Errorf("transaction %s: got %s, want %s", b.gid, got, s.status)
	}
	if s.status == succeed {
		want[0].Balance -= sum
		want[1].Balance += sum
	}
	check := func(when string) {
		if diff := cmp.Diff(want, []account{f.db.account(t, from), f.db.account(t, to)}); diff != "" {
			t.Errorf("accounts at the end%s (-want +got):\n%s", when, diff)
		}
	}
	check("")
	if s.lose != "" { // a late request could make good what a compensation of nothing has spoilt
		n.deliverLate(t)
		check(" and after the late request")
	}
	calls := n.seen()
	slices.Sort(calls[:min(s.together, len(calls))])
	if diff := cmp.Diff(s.calls, calls); diff != "" {
		t.Errorf("calls of branches (-want +got):\n%s", diff)
	}
}
