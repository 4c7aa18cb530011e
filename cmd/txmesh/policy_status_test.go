package main

import (
	"bytes"
	"encoding/json"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/rogpeppe/go-internal/testscript"

	"txmesh/controlplane/api"
	"txmesh/controlplane/authority"
)

// statusNow is when the statuses below are looked at.
var statusNow = time.Date(2030, 5, 6, 7, 8, 9, 0, time.UTC)

func goodAndBad() (good, bad api.Status) {
	const inForce = "7f3a0000000000000000000000000000000000000000000000000000000000aa"
	old := "6b21" + inForce[4:]
	ago := func(d time.Duration) *time.Time { at := statusNow.Add(-d); return &at }
	one := func(owner, service string, state api.State, policies, reason string, since *time.Time) api.Sidecar {
		return api.Sidecar{Owner: owner, Service: service, Inbound: "10.0.0.7:15806", Replica: "a", State: state, Policies: policies, Reason: reason, Since: since}
	}
	good = api.Status{Replica: "a", Policies: inForce, Sidecars: []api.Sidecar{one("OWNER0000000A", "bank/accounts", api.Accepted, inForce, "", ago(time.Minute))}}
	bad = api.Status{Replica: "a", Policies: inForce, Problem: "policy.yaml:7:5: TXM0011: unknown key",
		Replicas: []api.Replica{{Address: "b:15810", Error: "connection refused"}},
		Sidecars: []api.Sidecar{good.Sidecars[0],
			one("OWNER0000000B", "bank/savings", api.Rejected, old, "bank/p:6:3: TXM0016: undeclared reference\nbank/p:9:3: TXM0020: no such path", ago(12*time.Second)),
			one("OWNER0000000C", "bank/transfers", api.Frozen, old, "", ago(time.Hour)),
			one("OWNER0000000D", "shop/orders", api.Stale, "", "", nil)}}
	return good, bad
}

func TestStatusAsPeopleReadIt(t *testing.T) {
	_, bad := goodAndBad()
	var b bytes.Buffer
	if err := printStatus(&b, bad, statusNow); err != nil {
		t.Fatal(err)
	}
	want := `1 of 4 sidecars on 7f3a

newer policies are not handed out, because
  policy.yaml:7:5: TXM0011: unknown key

refused: they keep the policies they had
  bank/savings  OWNER0000000B  10.0.0.7:15806  on 6b21, answered 12s ago
      bank/p:6:3: TXM0016: undeclared reference
      bank/p:9:3: TXM0020: no such path

frozen: connected, but they have not answered for two heartbeats
  bank/transfers  OWNER0000000C  10.0.0.7:15806  on 6b21, answered 1h0m0s ago

stale: they have not answered yet
  shop/orders  OWNER0000000D  10.0.0.7:15806  on no policies

replica b:15810 is not connected, its sidecars are not counted
  connection refused
`
	if d := cmp.Diff(want, b.String()); d != "" {
		t.Errorf("printed (-want +got):\n%s", d)
	}
}

// TestPolicyStatusCommand runs the scripts of testdata/status against the API of control planes with these meshes:
// GOOD has all sidecars on the policies in force, BAD has one in every state, NEW has no policies yet.
func TestPolicyStatusCommand(t *testing.T) {
	good, bad := goodAndBad()
	testscript.Run(t, testscript.Params{Dir: "testdata/status", UpdateScripts: os.Getenv("UPDATE_SCRIPTS") != "",
		Setup: func(env *testscript.Env) error {
			token := filepath.Join(env.WorkDir, "token")
			env.Setenv("TOKEN", token)
			for name, st := range map[string]api.Status{"GOOD": good, "BAD": bad, "NEW": {Replica: "a", Sidecars: []api.Sidecar{}}} {
				a, err := authority.New(authority.Options{TrustDomain: "test", Dir: filepath.Join(env.WorkDir, "data"), Life: time.Hour})
				if err != nil {
					return err
				}
				srv := httptest.NewServer(api.Local(api.Options{Authority: a, Token: "the token of this test", Metrics: http.NotFoundHandler(),
					Status: func() api.Status { return st }}))
				env.Defer(srv.Close)
				env.Setenv(name, srv.URL)
			}
			other := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) { _ = json.NewEncoder(w).Encode("hello") }))
			env.Defer(other.Close)
			env.Setenv("OTHER", other.URL)
			return os.WriteFile(token, []byte("the token of this test\n"), 0o600)
		}})
}
