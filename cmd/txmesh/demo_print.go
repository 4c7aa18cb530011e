package main

import "fmt"

// printBalances shows the two accounts of a transfer, before and after and where it is known in between.
func (d *demo) printBalances(o order, before balances, during *balances, after balances) {
	s := d.screen
	title := fmt.Sprintf("   %-24s %8s", "balance", "before")
	row := func(name string, of func(balances) int64) string {
		text := fmt.Sprintf("   %-24s %8d", name, of(before))
		if during != nil {
			text += fmt.Sprintf(" %24d", of(*during))
		}
		return text + fmt.Sprintf(" %8d", of(after))
	}
	if during != nil {
		title += fmt.Sprintf(" %24s", "while the sidecar is dead")
	}
	s.say("%s", s.strong(title+fmt.Sprintf(" %8s", "after")))
	s.say("%s", row(o.From+" in accounts", func(b balances) int64 { return b.accounts[o.From] }))
	s.say("%s", row(o.To+" in savings", func(b balances) int64 { return b.savings[o.To] }))
	s.say("")
}

// printAddresses says what can be tried while everything is up.
func (d *demo) printAddresses() {
	s := d.screen
	s.say("\n%s Ctrl-C ends it.\n", s.strong("Everything stays up; try it from another terminal."))
	s.say("  a transfer, through the sidecars (alice has accounts; bob, carol and slow have savings):")
	s.say("    curl -i http://%s/transfers -H 'Content-Type: application/json' \\", d.transfers.inbound)
	s.say(`      -H 'Idempotency-Key: "my-1"' -d '{"from":"alice","to":"bob","amount":10}'`)
	s.say("  the money, from the services themselves:")
	s.say("    curl http://%s/balances http://%s/balances", d.accounts.listen, d.savings.listen)
	s.say("  the transactions:")
	s.say("    export TXMESH_API=%s", d.transfers.adminAPI)
	s.say("    export TXMESH_TOKEN_FILE=%s", d.token)
	s.say("    go run ./cmd/txmesh tx list")
	s.say("    go run ./cmd/txmesh tx show ID")
	s.say("    curl -H \"Authorization: Bearer $(cat $TXMESH_TOKEN_FILE)\" http://$TXMESH_API/v1/transactions")
	s.say("  metrics of the sidecars of transfers, accounts and savings:")
	for _, m := range []*member{d.transfers, d.accounts, d.savings} {
		s.say("    http://%s/metrics", m.adminAPI)
	}
	s.say("  logs and journals: %s", d.dir)
	s.say("  the policy:        %s/policy.yaml; a change is taken over at once", d.programs.bank)
}
