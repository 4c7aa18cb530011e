//go:build power

package e2e

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"golang.org/x/sys/unix"

	"txmesh/tests/power"
)

// seatPolicy journals a value of the request, so that a call can be as large as the test wants.
const seatPolicy = `apiVersion: txmesh.io/v1beta1
kind: TransactionPolicy
metadata: {name: seats, namespace: bank}
spec:
  start:
  - {name: order, match: {service: shop, method: POST, path: /orders}, timeout: 20s}
  calls:
  - name: seat
    match: {service: stock, method: POST, path: /seats}
    reserve:
      confirm: {method: PUT, path: "/seats/{response.body.id}", body: {for: "{request.body.ref}"}}
      cancel: {method: DELETE, path: "/seats/{response.body.id}", body: {for: "{request.body.ref}"}}
    undoRetry: {delay: 50ms, maxDelay: 200ms}
`

const (
	openAtOnce = 200
	callsLater = 6 // of each transaction, when the disk is full
	refBytes   = 3 << 10
)

// The journal of a sidecar lies on an ext4 of 64 MB, and somebody else takes its last byte while 200 transactions are
// open. New ones are refused. The open ones go on, with more than a log of Badger holds, so that files are made and
// mapped on the full disk; they end, and the process lives. Once it is killed before they go on, and always afterwards.
func TestOpenTransactionsEndOnAFullExt4(t *testing.T) {
	for _, tt := range []struct {
		name   string
		killed bool
	}{{"the process lives", false}, {"kill -9 when full", true}} {
		t.Run(tt.name, func(t *testing.T) {
			disk := power.NewDisk(t, 64<<20)
			m := newMesh(t, seatPolicy, member{name: "stock"}, member{name: "shop", calls: []string{"stock"}})
			c := &crowd{shop: &shop{mesh: m, t: t, shop: m.nodes["shop"], stock: m.nodes["stock"]}}
			m.must(os.Symlink(disk.Mount, c.shop.shop.journal()))
			m.start()
			c.begin()
			file := c.shop.shop.fill()
			c.refuses("full")
			if tt.killed {
				c.shop.shop.crash()
				c.refuses("full, after kill -9")
			}
			c.end()
			m.must(os.Remove(file))
			c.takes("with space again")
			c.shop.shop.crash()
			c.takes("with space, after kill -9")
			c.each("end, after kill -9", c.ended)
		})
	}
}

// begin opens all with one call each.
func (c *crowd) begin() {
	c.t.Helper()
	for i := range c.begun {
		c.begun[i] = c.shop.begin("10m")
	}
	c.each("call", func(i int) error { return c.call(i, "first") })
	c.say("200 are open")
}

// end lets all go on and decides them, on a full disk.
func (c *crowd) end() {
	c.t.Helper()
	sidecar := c.shop.shop.sidecar
	process := sidecar.PID()
	for range callsLater {
		c.each("call", func(i int) error { return c.call(i, strings.Repeat("x", refBytes)) })
	}
	c.refuses("full, 1,200 calls later")
	began := time.Now()
	c.each("decide", c.decide)
	c.each("end", c.ended)
	c.t.Logf("all have ended after %v", time.Since(began).Round(time.Millisecond))
	c.refuses("full, all have ended")
	c.settled()
	if held, tables := c.files(); held || tables == 0 {
		c.t.Errorf("the reserve is held: %t, tables: %d; want it used and one at least, else little was tested", held, tables)
	}
	if !sidecar.Running() || sidecar.PID() != process {
		c.t.Errorf("the sidecar has ended: %v", sidecar.Err())
	}
}

// crowd is the open transactions of a shop.
type crowd struct {
	*shop
	begun [openAtOnce]begun
}

// each does something for all transactions, a few at a time.
func (c *crowd) each(what string, do func(i int) error) {
	c.t.Helper()
	const atOnce = 8
	var errs [openAtOnce]error
	var wg sync.WaitGroup
	for from := range atOnce {
		wg.Go(func() {
			for i := from; i < openAtOnce; i += atOnce {
				errs[i] = do(i)
			}
		})
	}
	wg.Wait()
	if err := errors.Join(errs[:]...); err != nil {
		sidecar := c.shop.shop.sidecar
		c.t.Fatalf("%s: sidecar runs: %t, bus error: %t: %v", what, sidecar.Running(), strings.Contains(sidecar.Output(), "SIGBUS"), err)
	}
}

func (c *crowd) call(i int, ref string) error {
	r, err := c.send("POST", "http://"+c.shop.shop.to["stock"]+"/seats", order{Ref: ref}.json(), "Tx-Context", c.begun[i].Context)
	if err == nil && r.status != 201 {
		err = fmt.Errorf("%d %s", r.status, r.body)
	}
	return err
}

// fate is how a transaction is decided: every other is aborted.
func fate(i int) (act, phase, settledBy string) {
	if i%2 == 0 {
		return "commit", "committed", "PUT"
	}
	return "abort", "aborted", "DELETE"
}

func (c *crowd) decide(i int) error {
	act, _, _ := fate(i)
	r, err := c.shop.shop.ask("POST", "/v1/transactions/"+c.begun[i].ID+"/"+act, "")
	if err == nil && r.status != 200 {
		err = fmt.Errorf("%s: %d %s", act, r.status, r.body)
	}
	return err
}

// ended waits for the end of a transaction with all its branches.
func (c *crowd) ended(i int) error {
	_, want, _ := fate(i)
	return poll(20*time.Second, func() (bool, string) {
		x, err := c.shop.shop.show(c.begun[i].ID)
		return err == nil && x.Phase == want && len(x.Branches) == 1+callsLater, fmt.Sprintf("%s, %d branches%s", x.Phase, len(x.Branches), errText(err))
	})
}

// settled looks into the file of the service: each seat is confirmed or cancelled once, as its transaction ended.
func (c *crowd) settled() {
	c.t.Helper()
	did := map[string]map[string]string{} // by transaction and seat
	for _, e := range c.stock.effects() {
		if did[e.Tx] == nil {
			did[e.Tx] = map[string]string{}
		}
		did[e.Tx][e.ID+strings.TrimPrefix(strings.TrimPrefix(e.Path, "/seats"), "/")] += e.Method + " "
	}
	got, want := map[string]int{}, map[string]int{}
	for i, b := range c.begun {
		act, _, by := fate(i)
		want[act+": POST "+by+" "] += 1 + callsLater
		for _, methods := range did[b.ID] {
			got[act+": "+methods]++
		}
	}
	if diff := cmp.Diff(want, got); diff != "" {
		c.t.Errorf("what became of the seats (-want +got):\n%s", diff)
	}
	c.t.Logf("seats: %v", got)
}

// refuses is what a new transaction meets.
func (c *crowd) refuses(when string) {
	c.t.Helper()
	c.say(when)
	if r := c.shop.shop.root("/orders", "{}"); r.status != 503 || r.header.Get("Tx-Error") != "TXM0123" || r.header.Get("Retry-After") != "1" {
		c.t.Errorf("%s: order = %d %s, want 503 TXM0123", when, r.status, r.body)
	}
	if r := c.shop.shop.admin("POST", "/v1/transactions", "{}"); r.status != 503 || r.header.Get("Tx-Error") != "TXM0308" {
		c.t.Errorf("%s: begin = %d %s, want 503 TXM0308", when, r.status, r.body)
	}
}

func (c *crowd) takes(when string) {
	c.t.Helper()
	c.eventually(when+", new transactions are taken", func() (bool, string) {
		r := c.shop.shop.root("/orders", "{}")
		return r.status == 201 && r.header.Get("Tx-Status") == "committed", r.body
	})
	c.say(when)
}

// say logs what the disk looks like.
func (c *crowd) say(when string) {
	c.t.Helper()
	var st unix.Statfs_t
	c.must(unix.Statfs(c.shop.shop.journal(), &st))
	held, tables := c.files()
	c.t.Logf("%s: %d KiB free, reserve held: %t, tables: %d", when, st.Bavail*uint64(st.Bsize)>>10, held, tables)
}

// files says whether the reserve is there, and how many tables.
func (c *crowd) files() (reserve bool, tables int) {
	c.t.Helper()
	files, err := os.ReadDir(c.shop.shop.journal())
	c.must(err)
	for _, f := range files {
		reserve = reserve || f.Name() == "RESERVE"
		if filepath.Ext(f.Name()) == ".sst" {
			tables++
		}
	}
	return reserve, tables
}
