package takeover

import (
	"encoding/json"
	"fmt"
	"os"
	"slices"
	"strconv"
	"testing"
	"time"
)

// size is how much a test does; TXMESH_TAKEOVER=full is what the figures in docs/status.md are of.
func size(short, full int) int {
	if os.Getenv("TXMESH_TAKEOVER") == "full" {
		return full
	}
	return short
}

const policy = `apiVersion: txmesh.io/v1beta1
kind: TransactionPolicy
metadata: {name: entries, namespace: bank}
spec:
  calls:
  - name: enter
    match: {service: accounts, method: POST, path: /entries}
    undo: {method: DELETE, path: "/entries/{request.body.ref}"}
    undoRetry: {delay: 50ms, maxDelay: 500ms}
    query: {method: GET, path: "/entries/{request.body.ref}"}
`

// onEach runs a test on every kind of shared store that is on this machine.
func onEach(t *testing.T, f func(t *testing.T, store string)) {
	for name, open := range engines {
		t.Run(name, func(t *testing.T) { f(t, open(t)) })
	}
}

// An owner is killed while all its transactions call a service that does not answer. A replica adopts them and ends
// them all.
func TestAReplicaEndsWhatAKilledOwnerHasBegun(t *testing.T) {
	onEach(t, func(t *testing.T, store string) {
		open := size(200, 1000)
		var totals, own []time.Duration
		for range size(1, 5) {
			total, adopted := adoption(t, store, open)
			totals, own = append(totals, total), append(own, total-adopted)
		}
		slices.Sort(totals)
		slices.Sort(own)
		t.Logf("%d open, from kill -9 to the end of all: median %v (%v to %v); of it after the journal was claimed: median %v", open,
			totals[len(totals)/2], totals[0], totals[len(totals)-1], own[len(own)/2])
	})
}

// adoption returns the time from the kill to the end of all, and to the claim.
func adoption(t *testing.T, store string, open int) (total, adopted time.Duration) {
	w := newWorld(t, store, policy)
	b := newBooks()
	defer w.stop()
	app := b.replica(t)
	first := w.start("bank/work", app, nil)
	second := w.start("bank/work", app, nil)
	b.down = make(chan struct{})
	aim := func(method, path string) string {
		return fmt.Sprintf(`{"method":%q,"url":"http://%s%s"}`, method, app, path)
	}
	all(open, 32, func(i int) {
		first.api("POST", "/v1/transactions", fmt.Sprintf(`{"mode":"saga","branches":[{"action":%s,"compensate":%s}]}`,
			aim("POST", "/entries/"+strconv.Itoa(i)), aim("DELETE", "/entries/"+strconv.Itoa(i))))
	})
	if n := second.open(); n != open {
		t.Fatalf("%d are open before the kill, want %d", n, open)
	}
	at := time.Now()
	first.process.Kill()
	close(b.down)
	eventually(t, "the journal is adopted", 20*time.Second, func() bool { return second.metric("txmesh_journals_adopted_total") > 0 })
	adopted = time.Since(at)
	eventually(t, "all have ended", 60*time.Second, func() bool { return second.open() == 0 })
	total = time.Since(at)
	b.mu.Lock()
	defer b.mu.Unlock()
	for i := range open {
		if b.done[strconv.Itoa(i)] == 0 {
			t.Errorf("saga %d has ended, and its service was not called", i)
		}
	}
	return total, adopted
}

// opened is a transaction that has done one call at a replica of accounts.
func opened(t *testing.T, at *member, ref string) (id string, status int) {
	t.Helper()
	var made struct{ ID, Context string }
	text := at.api("POST", "/v1/transactions", `{"timeout":"5m"}`)
	if err := json.Unmarshal([]byte(text), &made); err != nil {
		t.Fatalf("begin: %v in %s", err, text)
	}
	status, _ = at.w.request("POST", "http://"+at.at.Upstreams["bank/accounts"]+"/entries", fmt.Sprintf(`{"ref":%q}`, ref),
		"Content-Type", "application/json", "tx-context", made.Context)
	return made.ID, status
}

// accounts are two replicas of a service that share their books, and a caller of each.
func accounts(w *world, b *books) (replicas, callers [2]*member) {
	replicas[0] = w.start("bank/accounts", b.replica(w.t), nil)
	replicas[1] = w.start("bank/accounts", b.replica(w.t), replicas[:1])
	for i, r := range replicas {
		callers[i] = w.start("bank/transfers", b.replica(w.t), replicas[:], "--upstreams",
			"service=accounts,listen=127.0.0.1:0,to="+r.at.Inbound)
	}
	return replicas, callers
}

// The undo of a call that one replica has served arrives at any: each is undone, none as if there were nothing.
func TestAnUndoMayArriveAtAnotherReplica(t *testing.T) {
	onEach(t, func(t *testing.T, store string) {
		w, b := newWorld(t, store, policy), newBooks()
		_, callers := accounts(w, b)
		n := size(100, 1000)
		refs, ids := make([]string, n), make([]string, n)
		all(n, 16, func(i int) {
			refs[i] = fmt.Sprint("other-", i)
			var status int
			if ids[i], status = opened(t, callers[i%2], refs[i]); status != 200 {
				t.Errorf("call %d = %d", i, status)
			}
			callers[i%2].api("POST", "/v1/transactions/"+ids[i]+"/abort", `{"reason":"test"}`)
		})
		eventually(t, "all have ended", time.Minute, func() bool { return callers[0].open() == 0 })
		b.balance(t, refs, 1)
	})
}

// The replica that served the calls is killed, some of them before they were answered. The other finds out, and undoes.
func TestAnUndoOutlivesTheReplicaThatServedTheCall(t *testing.T) {
	onEach(t, func(t *testing.T, store string) {
		w, b := newWorld(t, store, policy), newBooks()
		replicas, callers := accounts(w, b)
		n := size(100, 1000)
		refs, ids := make([]string, n), make([]string, n)
		hang := make(chan struct{})
		for i := range refs {
			refs[i] = fmt.Sprint("lost-", i)
			if i%5 == 0 {
				b.hang[refs[i]] = hang
			}
		}
		answered := make(chan struct{})
		go func() {
			defer close(answered)
			all(n, n/5+16, func(i int) { ids[i], _ = opened(t, callers[0], refs[i]) })
		}()
		eventually(t, "all calls have taken effect", time.Minute, func() bool {
			b.mu.Lock()
			defer b.mu.Unlock()
			return len(b.done) == n
		})
		time.Sleep(200 * time.Millisecond) // so that those that are answered have their answers recorded
		replicas[0].process.Kill()
		<-answered
		all(n, 16, func(i int) { callers[0].api("POST", "/v1/transactions/"+ids[i]+"/abort", `{"reason":"test"}`) })
		eventually(t, "all have ended", time.Minute, func() bool { return callers[0].open() == 0 })
		b.balance(t, refs, 1)
	})
}
