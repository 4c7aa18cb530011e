package takeover

import (
	"fmt"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"txmesh/tests/processes"
)

// planeAt starts a control plane without certificates, which hands out the policy.
func planeAt(t *testing.T, w *world) *processes.Process {
	t.Helper()
	dir, err := build()
	if err != nil {
		t.Fatal(err)
	}
	policies := filepath.Join(w.dir, "policies")
	if err := os.Mkdir(policies, 0o700); err != nil {
		t.Fatal(err)
	}
	if err := os.Rename(w.policy, filepath.Join(policies, "policy.yaml")); err != nil {
		t.Fatal(err)
	}
	p := &processes.Process{Name: "control plane", Path: filepath.Join(dir, "txmesh-controlplane"), Log: filepath.Join(w.dir, "plane.log"),
		Args: []string{"--listen", "127.0.0.1:0", "--api", "127.0.0.1:0", "--insecure", "true", "--policies", policies, "--data-dir", filepath.Join(w.dir, "plane")}}
	var at struct{ Listen string }
	if err := p.Start(&at); err != nil {
		t.Fatal(err)
	}
	w.plane = at.Listen
	t.Cleanup(p.Kill)
	return p
}

// The control plane is killed under load: nothing fails. A sidecar that starts meanwhile works from its last good set,
// and says that it is stale.
func TestATimeWithoutTheControlPlane(t *testing.T) {
	beside(t)
	w, b := newWorld(t, "badger", strings.Replace(policy, "spec:", startRule, 1)), newBooks()
	plane := planeAt(t, w)
	accounts := w.start("bank/accounts", b.replica(t), nil)
	to := "service=accounts,listen=127.0.0.1:0,to=" + accounts.at.Inbound
	var caller [2]*member
	for i := range caller {
		caller[i] = w.start("bank/transfers", forwarder(t, &caller[i]), nil, "--upstreams", to)
	}
	var made, failed atomic.Int64
	transfer := func(m *member) {
		n := made.Add(1)
		if status, text := w.request("POST", "http://"+m.at.Inbound+"/transfers", fmt.Sprintf(`{"ref":"p-%d"}`, n), "Content-Type", "application/json"); status != 200 {
			failed.Add(1)
			t.Errorf("transfer %d = %d %s", n, status, text)
		}
	}
	eventually(t, "the mesh is complete", 20*time.Second, func() bool {
		status, _ := w.request("POST", "http://"+caller[0].at.Inbound+"/transfers", `{"ref":"first"}`, "Content-Type", "application/json")
		return status == 200
	})
	lasts := time.Duration(size(2, 300)) * time.Second
	began := time.Now()
	var again atomic.Bool // the second caller is done
	defer again.Store(true)
	loaded := make(chan struct{})
	go func() {
		defer close(loaded)
		all(4, 4, func(int) {
			for !again.Load() || time.Since(began) < lasts+2*time.Second {
				transfer(caller[0])
				time.Sleep(10 * time.Millisecond)
			}
		})
	}()
	time.Sleep(time.Second)
	plane.Kill()
	caller[1].process.Kill()
	caller[1].begin()
	if status, text := w.request("GET", "http://"+caller[1].at.API+"/readyz", ""); status != 200 || !strings.Contains(text, "stale") {
		t.Errorf("readiness of one that started without the control plane = %d %s, want 200 and that it is stale", status, text)
	}
	for range 20 {
		transfer(caller[1])
	}
	again.Store(true)
	<-loaded
	t.Logf("%v without the control plane: %d transfers, %d failed", lasts, made.Load(), failed.Load())
	refs := make([]string, made.Load())
	for i := range refs {
		refs[i] = fmt.Sprint("p-", i+1)
	}
	b.balance(t, refs, 0)
}

const startRule = `spec:
  start:
  - {name: transfer, match: {service: transfers, method: POST, path: /transfers}, timeout: 20s}`

// forwarder is a service that has each transfer entered at accounts, by its sidecar.
func forwarder(t *testing.T, m **member) string {
	return serve(t, http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		req, err := http.NewRequestWithContext(r.Context(), "POST", "http://"+(*m).at.Upstreams["bank/accounts"]+"/entries", r.Body)
		if err != nil {
			t.Error(err)
			return
		}
		req.Header.Set("Content-Type", "application/json")
		req.Header.Set("tx-context", r.Header.Get("tx-context"))
		res, err := (*m).w.client.Do(req)
		if err != nil {
			w.WriteHeader(http.StatusBadGateway)
			return
		}
		defer res.Body.Close()
		w.WriteHeader(res.StatusCode)
	}))
}
