package chaos

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"net/http"
	"os"
	"slices"
	"strings"
	"time"

	"txmesh/sdk/dtm"
)

// get asks the sidecar. A token is needed for its own API only.
func get(url, token string, v any) error {
	r, err := http.NewRequest(http.MethodGet, url, nil)
	if err != nil {
		return err
	}
	if token != "" {
		r.Header.Set("Authorization", "Bearer "+token)
	}
	res, err := (&http.Client{Timeout: 30 * time.Second}).Do(r)
	if err != nil {
		return err
	}
	body, err := readAll(res.Body)
	if err != nil {
		return err
	}
	if res.StatusCode != http.StatusOK {
		return fmt.Errorf("%s: %d %s", url, res.StatusCode, body)
	}
	return json.Unmarshal(body, v)
}

// all lists what the door knows of one status, or of all.
func (c *chaos) all(status string) (map[string]string, error) {
	found := map[string]string{}
	for position, more := "", true; more; more = position != "" {
		var page struct {
			Transactions []dtm.Transaction `json:"transactions"`
			Next         string            `json:"next_position"`
		}
		if err := get(c.client.door+"/all?limit=500&status="+status+"&position="+position, "", &page); err != nil {
			return nil, err
		}
		for _, x := range page.Transactions {
			found[x.GID] = x.Status
		}
		position = page.Next
	}
	return found, nil
}

// unfinished names what has not ended: what the door says, and what the journal does.
func (c *chaos) unfinished() (string, error) {
	var open []string
	for _, status := range []string{dtm.StatusPrepared, dtm.StatusSubmitted, dtm.StatusAborting} {
		found, err := c.all(status)
		if err != nil {
			return "", err
		}
		for _, gid := range slices.Sorted(maps.Keys(found)) {
			open = append(open, gid+" "+status)
		}
	}
	token, err := os.ReadFile(c.dataDir + "/api-token")
	if err != nil {
		return "", err
	}
	var page struct {
		Transactions []struct{ ID, Phase string } `json:"transactions"`
	}
	err = get(c.api+"/v1/transactions?phase=open&phase=committing&phase=aborting&phase=stuck", strings.TrimSpace(string(token)), &page)
	for _, x := range page.Transactions {
		open = append(open, x.ID+" "+x.Phase+" in the journal")
	}
	return strings.Join(open, ", "), err
}

// settle waits until nothing is open.
func (c *chaos) settle() {
	const settleMax = 60 * time.Second
	calm := time.Now()
	for {
		open, err := c.unfinished()
		if err == nil && open == "" {
			c.t.Logf("nothing open %v after the last fault", time.Since(calm).Round(time.Millisecond))
			return
		}
		if time.Since(calm) > settleMax {
			c.t.Errorf("open %v after the last fault: %s; %v", settleMax, open, err)
			return
		}
		<-time.After(pause)
	}
}

// effect is what the ledger of one database says of one transfer.
type effect struct {
	amount, held int64
	entries, ops int // the entries, and how many different ops they are of
}

func (l Ledger) effects(ctx context.Context) (map[string]effect, error) {
	rows, err := l.DB.QueryContext(ctx, "select gid, sum(amount), sum(held), count(*), count(distinct op) from entry group by gid")
	if err != nil {
		return nil, err
	}
	defer rows.Close()
	found := map[string]effect{}
	for rows.Next() {
		var gid string
		var e effect
		if err := rows.Scan(&gid, &e.amount, &e.held, &e.entries, &e.ops); err != nil {
			return nil, err
		}
		found[gid] = e
	}
	return found, rows.Err()
}

// balance is the money of one database.
func (l Ledger) balance(ctx context.Context) (amount, held int64, err error) {
	err = l.DB.QueryRowContext(ctx, "select sum(amount), sum(held) from account").Scan(&amount, &held)
	return amount, held, err
}

// prepared are the XA transactions that a database still holds.
func (l Ledger) prepared(ctx context.Context, query string) (n int, err error) {
	rows, err := l.DB.QueryContext(ctx, query)
	if err != nil {
		return 0, err
	}
	for rows.Next() {
		n++
	}
	return n, errors.Join(rows.Err(), rows.Close())
}

// check compares what clients were told, what the door says, and what is in the databases.
func (c *chaos) check() {
	t, ctx := c.t, c.t.Context()
	status, err := c.all("")
	must(t, err)
	inMaria, err := c.maria.effects(ctx)
	must(t, err)
	inPostgres, err := c.postgres.effects(ctx)
	must(t, err)
	effects := map[string]map[string]effect{"/mariadb": inMaria, "/postgres": inPostgres}
	for _, p := range c.made {
		from, to := effects[p.from.path][p.gid], effects[p.to.path][p.gid]
		if wrong := p.judge(status[p.gid], from, to); wrong != "" {
			t.Errorf("%s of %d from %s %d to %s %d, %q at the door: %s; answers %v, effects %+v and %+v", p.gid, p.amount,
				p.from.path, p.from.id, p.to.path, p.to.id, status[p.gid], wrong, p.counts, from, to)
		}
	}
	c.checkDatabases()
	c.figures(status)
}

// judge says what is wrong with one transfer, or nothing.
func (p *promise) judge(status string, from, to effect) string {
	amount := int64(0)
	switch status {
	case dtm.StatusSucceed:
		amount = p.amount
	case dtm.StatusFailed, "": // the door does not know it: its client died early
	default:
		return "it has not ended"
	}
	for _, c := range p.claims {
		if c.want == known && status == "" || c.want != known && c.want != status {
			return fmt.Sprintf("%q was answered, so that it must be %s", c.answer, c.want)
		}
	}
	switch {
	case from.amount != -amount || to.amount != amount:
		return fmt.Sprintf("moved %d and %d instead of %d", from.amount, to.amount, amount)
	case from.held != 0 || to.held != 0:
		return "something is still held"
	case from.entries != from.ops || to.entries != to.ops:
		return "something was done twice"
	case p.refusable && status == dtm.StatusSucceed:
		return "it ought to be refused"
	}
	return ""
}

// checkDatabases looks at what does not belong to one transfer.
func (c *chaos) checkDatabases() {
	const before = (accounts - 1) * Rich // the poor account has nothing
	t, ctx := c.t, c.t.Context()
	sum := int64(0)
	for name, l := range map[string]Ledger{"MariaDB": c.maria, "PostgreSQL": c.postgres} {
		amount, held, err := l.balance(ctx)
		must(t, err)
		if sum += amount; held != 0 {
			t.Errorf("%s holds %d that belong to no transfer", name, held)
		}
	}
	if sum != 2*before {
		t.Errorf("sum of all balances = %d, was %d", sum, 2*before)
	}
	inMaria, err := c.maria.prepared(ctx, "xa recover")
	must(t, err)
	inPostgres, err := c.postgres.prepared(ctx, "select gid from pg_prepared_xacts")
	must(t, err)
	if inMaria != 0 || inPostgres != 0 {
		t.Errorf("XA transactions left: %d in MariaDB, %d in PostgreSQL, want none", inMaria, inPostgres)
	}
}

// figures prints what happened, and holds the run to what makes it a proof.
func (c *chaos) figures(status map[string]string) {
	t := c.t
	tally, answers := map[string]map[string]int{}, map[string]int{}
	for _, kind := range append(kinds(), "all") {
		tally[kind] = map[string]int{}
	}
	for _, p := range c.made {
		for _, kind := range []string{p.kind, "all"} {
			n := tally[kind]
			n["begun"]++
			n[status[p.gid]]++
			if p.refusable {
				n["refusable"]++
			}
			if p.diesAt > 0 {
				n["died"]++
			}
			if p.patience > 0 {
				n["hasty"]++
			}
		}
		for answer, n := range p.counts {
			answers[answer] += n
		}
	}
	var out strings.Builder
	fmt.Fprintf(&out, "%d clients, %v, %d kills: sidecar %d (down %v at most), bank %d (down %v at most)\n", c.clients,
		time.Since(c.began).Round(time.Second), c.sidecar.kills+c.bank.kills, c.sidecar.kills, c.sidecar.down.Round(time.Millisecond),
		c.bank.kills, c.bank.down.Round(time.Millisecond))
	fmt.Fprintf(&out, "%-10s %7s %8s %7s %8s %10s %12s %8s\n", "type", "begun", "succeed", "failed", "unknown", "refusable", "client gone", "hasty")
	for _, kind := range append(kinds(), "all") {
		n := tally[kind]
		fmt.Fprintf(&out, "%-10s %7d %8d %7d %8d %10d %12d %8d\n", kind, n["begun"], n[dtm.StatusSucceed], n[dtm.StatusFailed], n[""],
			n["refusable"], n["died"], n["hasty"])
		if kind != "all" && n["begun"] < c.each {
			t.Errorf("%d of %s, want at least %d", n["begun"], kind, c.each)
		}
		want := c.succeeding
		if kind != "all" {
			want /= 2 // a short run has few of a type
		}
		if part := float64(n[dtm.StatusSucceed]) / float64(n["begun"]); part < want {
			t.Errorf("%.1f %% of %s succeeded, want at least %.0f %%", part*100, kind, want*100)
		}
	}
	for _, answer := range slices.Sorted(maps.Keys(answers)) {
		fmt.Fprintf(&out, "%7d %s\n", answers[answer], answer)
	}
	t.Log("\n" + out.String())
	if c.sidecar.kills+c.bank.kills < c.kills {
		t.Errorf("%d kills, want at least %d", c.sidecar.kills+c.bank.kills, c.kills)
	}
}
