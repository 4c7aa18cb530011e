package takeover

import (
	"encoding/json"
	"fmt"
	"net"
	"net/http"
	"os"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"txmesh/tests/databases"
)

// whole asks for the sizes that the figures in docs/status.md are of.
func whole() bool { return os.Getenv("TXMESH_TAKEOVER") == "full" }

// size is how much a test does.
func size(short, full int) int {
	if whole() {
		return full
	}
	return short
}

// beside has a test run beside others, because it waits most of its time. One that figures are taken from runs alone.
func beside(t *testing.T) {
	if !whole() {
		t.Parallel()
	}
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
	beside(t)
	for name, open := range engines {
		t.Run(name, func(t *testing.T) {
			beside(t)
			f(t, open(t))
		})
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
	if n := second.open(1000); n != open {
		t.Fatalf("%d are open before the kill, want %d", n, open)
	}
	at := time.Now()
	first.process.Kill()
	close(b.down)
	eventually(t, "all have ended", 60*time.Second, func() bool { return second.open(1) == 0 })
	total = time.Since(at)
	adopted = second.said("journal adopted", first.at.Owner).Sub(at)
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
		eventually(t, "all have ended", time.Minute, func() bool { return callers[0].open(1) == 0 })
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
		eventually(t, "all have ended", time.Minute, func() bool { return callers[0].open(1) == 0 })
		b.balance(t, refs, 1)
	})
}

// A sidecar that starts while the store is away passes what belongs to no transaction, takes none, and says so. When the
// store comes, it goes on by itself.
func TestASidecarStartsWithoutTheStore(t *testing.T) {
	beside(t)
	store := "postgres://postgres@" + closedPort(t) + "/postgres?sslmode=disable"
	w, b := newWorld(t, store, policy), newBooks()
	m := w.start("bank/accounts", b.replica(t), nil)
	if status, text := w.request("GET", "http://"+m.at.Inbound+"/entries/x", ""); status != 404 {
		t.Errorf("untagged request = %d %s, want what the service says", status, text)
	}
	if status, text := w.request("GET", "http://"+m.at.API+"/readyz", ""); status != 503 || !strings.Contains(text, "store") {
		t.Errorf("readiness = %d %s, want 503 and why", status, text)
	}
	if status, text := w.request("POST", "http://"+m.at.API+"/v1/transactions", `{}`, "Authorization", "Bearer "+m.token); status != 503 {
		t.Errorf("begin = %d %s, want 503", status, text)
	}
}

// closedPort is an address where nobody listens.
func closedPort(t *testing.T) string {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	return l.Addr().String()
}

// While the store has no majority, new transactions are refused with Retry-After, open ones wait, and what belongs to none
// flows. Afterwards everything goes on, and nothing is lost.
func TestATimeWithoutTheStore(t *testing.T) {
	beside(t)
	cluster := databases.StartEtcd(t, 3)
	w, b := newWorld(t, "etcd://"+strings.Join(cluster.Endpoints(), ",")+"/away", policy), newBooks()
	replica := w.start("bank/accounts", b.replica(t), nil)
	caller := w.start("bank/transfers", b.replica(t), []*member{replica}, "--upstreams", "service=accounts,listen=127.0.0.1:0,to="+replica.at.Inbound)
	n := size(50, 200)
	refs, ids := make([]string, n), make([]string, n)
	all(n, 8, func(i int) {
		refs[i] = fmt.Sprint("away-", i)
		ids[i], _ = opened(t, caller, refs[i])
	})
	for i := range 2 {
		if err := cluster.Kill(i); err != nil {
			t.Fatal(err)
		}
	}
	aborted := make(chan struct{})
	go func() { // they wait
		defer close(aborted)
		all(n, n, func(i int) { caller.api("POST", "/v1/transactions/"+ids[i]+"/abort", `{"reason":"test"}`) })
	}()
	eventually(t, "new transactions are refused", 20*time.Second, func() bool {
		status, _ := w.request("GET", "http://"+caller.at.API+"/readyz", "")
		return status == 503
	})
	for range 5 {
		req, err := http.NewRequestWithContext(t.Context(), "POST", "http://"+caller.at.API+"/v1/transactions", strings.NewReader("{}"))
		if err != nil {
			t.Fatal(err)
		}
		req.Header.Set("Authorization", "Bearer "+caller.token)
		res, err := w.client.Do(req)
		if err != nil {
			t.Fatal(err)
		}
		if err := res.Body.Close(); err != nil || res.StatusCode != 503 || res.Header.Get("Retry-After") == "" {
			t.Errorf("begin while the store is away = %d %v, want 503 with Retry-After", res.StatusCode, res.Header)
		}
		if status, text := w.request("GET", "http://"+replica.at.Inbound+"/entries/nothing", ""); status != 404 {
			t.Errorf("untagged request = %d %s, want what the service says", status, text)
		}
		time.Sleep(200 * time.Millisecond)
	}
	b.balance(t, refs, 0)
	for i := range 2 {
		if err := cluster.Restart(i); err != nil {
			t.Fatal(err)
		}
	}
	<-aborted
	eventually(t, "all have ended", time.Minute, func() bool { return caller.open(1) == 0 })
	b.balance(t, refs, 1)
}
