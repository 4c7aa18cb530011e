package xds

import (
	"errors"
	"fmt"
	"maps"
	"os"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
	"testing"
	"time"

	tlsv3 "github.com/envoyproxy/go-control-plane/envoy/extensions/transport_sockets/tls/v3"
	cachetypes "github.com/envoyproxy/go-control-plane/pkg/cache/types"
	"github.com/google/go-cmp/cmp"
)

// good is a document with one rule.
func good(name, rule string) string {
	return `apiVersion: txmesh.io/v1beta1
kind: TransactionPolicy
metadata: {name: ` + name + `, namespace: bank}
spec:
  calls:
  - name: ` + rule + `
    match: {service: accounts, method: POST, path: /` + rule + `}
    undo: {method: DELETE, path: "/` + rule + `/{response.body.id}"}
`
}

// twoFaults has an unknown key and an expression that is none.
const twoFaults = `apiVersion: txmesh.io/v1beta1
kind: TransactionPolicy
metadata: {name: bad, namespace: bank}
spec:
  calls:
  - name: x
    match: {service: accounts, method: POST, path: /x}
    onunknown: Stop
    undo: {when: "1 +", method: DELETE, path: /x}
`

var ledger = Node{Owner: "01jd0000000bb", Incarnation: "I2", Service: "bank/ledger", Inbound: "10.0.0.7:15806", Peer: "10.0.0.7:15808",
	Home: "~bank/ledger", Version: "1"}

func TestEverythingArrives(t *testing.T) {
	p := newPlane(t)
	p.policy("bank/b", good("b", "deposit"))
	p.policy("bank/a", good("a", "withdraw"))
	p.peers("bank/ledger", ledger)
	p.secret("ROOTCA", &tlsv3.Secret{Type: &tlsv3.Secret_ValidationContext{ValidationContext: &tlsv3.CertificateValidationContext{TrustedCa: inline("PEM")}}})
	p.secret("mesh-secret", &tlsv3.Secret{Type: &tlsv3.Secret_GenericSecret{GenericSecret: &tlsv3.GenericSecret{Secret: inline("0123456789abcdef")}}})
	p.runtime("takeover/01jd0000000cc", map[string]any{"owner": "01jd0000000cc", "epoch": 7, "adopter": self.Owner, "reason": "lapsed"})
	f := follow(t, Options{Addresses: []string{p.address}})
	<-f.Synced()
	if got, want := f.rules(), "withdraw deposit "; got != want {
		t.Errorf("rules = %q, want %q", got, want)
	}
	if diff := cmp.Diff(Fleet{Sidecars: []Node{ledger}, Live: true}, f.sidecars()); diff != "" {
		t.Errorf("fleet differs (-want +got):\n%s", diff)
	}
	f.mu.Lock()
	defer f.mu.Unlock()
	if diff := cmp.Diff(map[string]string{"roots": "PEM", "mesh": "0123456789abcdef"}, f.secrets); diff != "" {
		t.Errorf("secrets differ (-want +got):\n%s", diff)
	}
	if diff := cmp.Diff([]Takeover{{Owner: "01jd0000000cc", Epoch: 7, Adopter: self.Owner, Reason: "lapsed"}}, f.takeovers); diff != "" {
		t.Errorf("takeovers differ (-want +got):\n%s", diff)
	}
	if s := f.Status(); !s.Fresh || !s.Policies || s.Problem != "" || s.Heard.IsZero() {
		t.Errorf("status = %+v", s)
	}
}

func TestTheFirstRequestAloneNamesTheNode(t *testing.T) {
	p := newPlane(t)
	follow(t, Options{Addresses: []string{p.address}})
	eventually(t, "all types are subscribed to and acknowledged", func() bool {
		return len(p.seen(typePolicies)) == 2 && len(p.seen(typePeers)) == 2 && len(p.seen(typeSecrets)) == 2 && len(p.seen(typeRuntime)) == 2
	})
	first := p.seen(typePolicies)[0]
	want := map[string]any{"owner": self.Owner, "incarnation": "I1", "service": "bank/transfers", "inbound": "127.0.0.1:1", "peer": "127.0.0.1:2",
		"home": "", "version": "test", "standby": false, "tls": false, "spiffe": ""}
	if diff := cmp.Diff(want, first.Node.Metadata.AsMap()); diff != "" {
		t.Errorf("metadata differs (-want +got):\n%s", diff)
	}
	if first.Node.Id != self.Owner+"/I1" || first.Node.Cluster != "bank/transfers" {
		t.Errorf("node = %s of %s", first.Node.Id, first.Node.Cluster)
	}
	for _, url := range []string{typePolicies, typePeers, typeSecrets, typeRuntime} {
		r := p.seen(url)
		if !slices.Equal(r[0].ResourceNamesSubscribe, []string{"*"}) || len(r[0].InitialResourceVersions) != 0 || r[1].ResponseNonce == "" {
			t.Errorf("%s: first request %v, second %v", url, r[0], r[1])
		}
	}
}

// Row 1: an empty cache answers at once, so that readiness need not wait.
func TestNothingIsACompleteConfiguration(t *testing.T) {
	p := newPlane(t)
	f := follow(t, Options{Addresses: []string{p.address}})
	<-f.Synced()
	if got := f.rules(); got != "" {
		t.Errorf("rules = %q, want an empty set", got)
	}
}

func TestChangesAndRemovalsCountAtOnce(t *testing.T) {
	p := newPlane(t)
	p.policy("bank/a", good("a", "withdraw"))
	p.peers("bank/ledger", ledger)
	f := follow(t, Options{Addresses: []string{p.address}})
	<-f.Synced()
	p.policy("bank/a", good("a", "debit"))
	eventually(t, "the change is in force", func() bool { return f.rules() == "debit " })
	p.remove(typePolicies, "bank/a")
	p.remove(typePeers, "bank/ledger")
	eventually(t, "both are gone", func() bool { return f.rules() == "" && len(f.sidecars().Sidecars) == 0 })
	p.runtime("takeover/x", map[string]any{"owner": "x", "epoch": "18446744073709551615", "adopter": "y"})
	told := func(n int) func() bool {
		return func() bool { f.mu.Lock(); defer f.mu.Unlock(); return len(f.takeovers) == n }
	}
	eventually(t, "the takeover is told", told(1))
	p.remove(typeRuntime, "takeover/x")
	eventually(t, "the takeover is over", told(0))
}

// Rows 3 and 4, and the repair: it comes alone, though what came with the refused document was not used either.
func TestARefusedSetIsRepaired(t *testing.T) {
	p := newPlane(t)
	p.policy("bank/a", good("a", "withdraw"))
	f := follow(t, Options{Addresses: []string{p.address}})
	<-f.Synced()
	if err := p.caches[typePolicies].UpdateResources(resourcesOf(t, map[string]string{"bank/bad": twoFaults, "bank/b": good("b", "deposit")}), nil); err != nil {
		t.Fatal(err)
	}
	eventually(t, "it is refused", func() bool { return len(p.nacks(typePolicies)) == 1 })
	text := p.nacks(typePolicies)[0]
	if lines := strings.Split(text, "\n"); len(lines) != 2 || !strings.HasPrefix(lines[0], "bank/bad:8:5: TXM") || !strings.HasPrefix(lines[1], "bank/bad:9:") {
		t.Errorf("refusal = %q, want both faults with their places", text)
	}
	if got := f.rules(); got != "withdraw " {
		t.Errorf("rules = %q, want the last good ones", got)
	}
	if s := f.Status(); !strings.Contains(s.Problem, "policies refused: bank/bad:8:5: TXM") || !s.Policies {
		t.Errorf("status = %+v", s)
	}
	p.policy("bank/bad", good("bad", "mended"))
	eventually(t, "all three are in force", func() bool { return f.rules() == "withdraw deposit mended " })
	last := p.answers(typePolicies)
	if got := len(last[len(last)-1].Resources); got != 1 {
		t.Errorf("the repair came with %d resources, want it alone", got)
	}
	if s := f.Status(); s.Problem != "" {
		t.Errorf("problem after the repair = %q", s.Problem)
	}
}

// A replica that did not hear the refusal gets the document's own chance again, and tells its operator.
func TestARefusedSetIsRefusedAgainByTheNextStream(t *testing.T) {
	p := newPlane(t)
	p.policy("bank/a", good("a", "withdraw"))
	p.policy("bank/bad", twoFaults)
	f := follow(t, Options{Addresses: []string{p.address}})
	eventually(t, "it is refused", func() bool { return len(p.nacks(typePolicies)) == 1 })
	<-f.Synced() // a refusal does not hold up the start
	if s := f.Status(); s.Policies || f.rules() != "none" {
		t.Errorf("status = %+v, rules = %s; want no policies", s, f.rules())
	}
	p.stop()
	p.start(p.address)
	eventually(t, "it is refused again", func() bool { return len(p.nacks(typePolicies)) == 2 })
	p.remove(typePolicies, "bank/bad")
	eventually(t, "the rest is in force", func() bool { return f.rules() == "withdraw " })
}

// Rows 8 and 9.
func TestAReconnectTakesWhatChangedMeanwhile(t *testing.T) {
	p := newPlane(t)
	for _, name := range []string{"a", "b", "c"} {
		p.policy("bank/"+name, good(name, name))
	}
	p.peers("bank/ledger", ledger)
	f := follow(t, Options{Addresses: []string{p.address}})
	<-f.Synced()
	p.stop()
	eventually(t, "it is not fresh", func() bool { s := f.Status(); return !s.Fresh && s.Problem != "" })
	if f.rules() != "a b c " || len(f.sidecars().Sidecars) != 1 {
		t.Errorf("without the control plane: %q, %v; want the last good ones", f.rules(), f.sidecars())
	}
	p.policy("bank/a", good("a", "a2"))
	p.policy("bank/b", good("b", "b"))
	p.remove(typePolicies, "bank/c")
	before := len(p.answers(typePolicies))
	p.start(p.address)
	eventually(t, "the change is in force", func() bool { return f.rules() == "a2 b " })
	eventually(t, "it is fresh again", func() bool { return f.Status().Fresh })
	res := p.answers(typePolicies)[before]
	if len(res.Resources) != 1 || !slices.Equal(res.RemovedResources, []string{"bank/c"}) {
		t.Errorf("answer = %d resources, removed %v; want one and bank/c", len(res.Resources), res.RemovedResources)
	}
}

// Row 5: and what was fetched again is followed as before.
func TestOneResourceIsFetchedAgain(t *testing.T) {
	p := newPlane(t)
	p.policy("bank/a", good("a", "a"))
	p.policy("bank/b", good("b", "b"))
	f := follow(t, Options{Addresses: []string{p.address}})
	<-f.Synced()
	f.Refetch("policies", "bank/b")
	eventually(t, "it comes again", func() bool {
		all := p.answers(typePolicies)
		last := all[len(all)-1]
		return len(all) == 2 && len(last.Resources) == 1 && last.Resources[0].Name == "bank/b"
	})
	p.policy("bank/b", good("b", "b2"))
	eventually(t, "a later change arrives", func() bool { return f.rules() == "a b2 " })
	p.policy("bank/c", good("c", "c"))
	eventually(t, "new ones arrive", func() bool { return f.rules() == "a b2 c " })
}

// Row 10: a missed word would freeze a type for ever.
func TestEveryAnswerIsAcknowledged(t *testing.T) {
	p := newPlane(t)
	f := follow(t, Options{Addresses: []string{p.address}})
	<-f.Synced()
	for i := range 200 {
		p.policy("bank/a", good("a", fmt.Sprintf("a%d", i)))
		p.peers("bank/ledger", Node{Owner: fmt.Sprint("o", i), Peer: "h:1"})
		p.beat()
	}
	eventually(t, "the last of each is there", func() bool {
		s := f.sidecars().Sidecars
		return f.rules() == "a199 " && len(s) == 1 && s[0].Owner == "o199"
	})
	if p.streams() != 1 {
		t.Errorf("%d streams, want one", p.streams())
	}
}

// A server that stops sending, while its connection lives.
func TestSilenceEndsAStream(t *testing.T) {
	p := newPlane(t)
	f := follow(t, Options{Addresses: []string{p.address}, SilenceMax: 300 * time.Millisecond})
	<-f.Synced()
	for range 10 { // a heart that beats holds the stream for longer than the bound
		p.beat()
		time.Sleep(60 * time.Millisecond)
	}
	if p.streams() != 1 {
		t.Fatalf("%d streams while the heart beats, want one", p.streams())
	}
	eventually(t, "another stream is opened", func() bool { return p.streams() >= 2 })
	eventually(t, "the reason is known", func() bool { return f.Status().Problem == "no heartbeat for 300ms" || f.Status().Fresh })
}

func TestAddressesAreTriedInTurn(t *testing.T) {
	p := newPlane(t)
	f := follow(t, Options{Addresses: []string{"127.0.0.1:1", p.address, "127.0.0.1:1"}})
	<-f.Synced()
	other := newPlane(t)
	p.stop()
	p.caches = other.caches
	p.policy("bank/a", good("a", "a"))
	p.start(p.address)
	eventually(t, "it came back", func() bool { return f.rules() == "a " })
}

func TestABadPeerIsRefusedAndTheOthersCount(t *testing.T) {
	p := newPlane(t)
	p.peers("bank/ledger", ledger)
	f := follow(t, Options{Addresses: []string{p.address}})
	<-f.Synced()
	mail := Node{Owner: "m", Service: "bank/mail", Peer: "h:1"}
	if err := p.caches[typePeers].UpdateResources(map[string]cachetypes.Resource{"bank/ledger": assignment(t, "bank/ledger", Node{Owner: "z", Peer: "nowhere"}),
		"bank/mail": assignment(t, "bank/mail", mail)}, nil); err != nil {
		t.Fatal(err)
	}
	eventually(t, "it is refused", func() bool { return len(p.nacks(typePeers)) == 1 })
	if got, want := p.nacks(typePeers)[0], `bank/ledger: endpoint 1: peer "nowhere" of owner z is not host:port`; got != want {
		t.Errorf("refusal = %q, want %q", got, want)
	}
	if diff := cmp.Diff([]Node{ledger, mail}, f.sidecars().Sidecars); diff != "" {
		t.Errorf("fleet differs (-want +got):\n%s", diff)
	}
}

func TestPoliciesThatCannotBePutInForceYetAreTriedAgain(t *testing.T) {
	p := newPlane(t)
	p.policy("bank/a", good("a", "a"))
	f := newFollower(t, Options{Addresses: []string{p.address}})
	f.fail = errors.New("disk full")
	f.run()
	eventually(t, "all is acknowledged", func() bool { return f.Status().Fresh })
	if f.Status().Policies {
		t.Error("policies count as in force")
	}
	f.mu.Lock()
	f.fail = nil
	f.mu.Unlock()
	<-f.Synced()
	if f.rules() != "a " {
		t.Errorf("rules = %q", f.rules())
	}
}

func TestAStartWithoutControlPlane(t *testing.T) {
	file := filepath.Join(t.TempDir(), "control-plane")
	p := newPlane(t)
	p.policy("bank/a", good("a", "withdraw"))
	p.peers("bank/ledger", ledger)
	f := follow(t, Options{Addresses: []string{p.address}, File: file, SaveAfter: time.Hour})
	<-f.Synced()
	f.stop() // writes
	p.stop()
	again := follow(t, Options{Addresses: []string{p.address}, File: file})
	if got := again.rules(); got != "withdraw " {
		t.Errorf("rules = %q, want those from disk before anything runs", got)
	}
	if diff := cmp.Diff(Fleet{Sidecars: []Node{ledger}}, again.sidecars()); diff != "" {
		t.Errorf("fleet differs (-want +got):\n%s", diff)
	}
	if s := again.Status(); s.Fresh || !s.Policies || !s.Heard.IsZero() {
		t.Errorf("status = %+v, want policies that are not fresh", s)
	}
	before := len(p.answers(typePolicies))
	p.policy("bank/b", good("b", "deposit"))
	p.start(p.address)
	<-again.Synced()
	if got := again.rules(); got != "withdraw deposit " {
		t.Errorf("rules = %q", got)
	}
	if res := p.answers(typePolicies)[before]; len(res.Resources) != 1 {
		t.Errorf("%d resources came, want the new one alone: the versions on disk were not sent", len(res.Resources))
	}
	if !again.sidecars().Live {
		t.Error("the fleet does not count as live, though nothing had changed")
	}
}

func TestRefusedPoliciesAreNotKept(t *testing.T) {
	file := filepath.Join(t.TempDir(), "control-plane")
	p := newPlane(t)
	p.policy("bank/a", good("a", "withdraw"))
	f := follow(t, Options{Addresses: []string{p.address}, File: file})
	<-f.Synced()
	p.policy("bank/a", twoFaults)
	eventually(t, "it is refused", func() bool { return len(p.nacks(typePolicies)) == 1 })
	p.peers("bank/ledger", ledger) // so that the file is written again
	eventually(t, "the peer is there", func() bool { return len(f.sidecars().Sidecars) == 1 })
	f.stop()
	p.stop()
	again := follow(t, Options{Addresses: []string{p.address}, File: file})
	if again.rules() != "withdraw " || len(again.sidecars().Sidecars) != 1 {
		t.Errorf("rules from disk = %q, %v; want the last good ones", again.rules(), again.sidecars())
	}
}

func TestFilesThatCannotBeUsedAreSkipped(t *testing.T) {
	file := filepath.Join(t.TempDir(), "control-plane")
	p := newPlane(t)
	p.policy("bank/a", good("a", "withdraw"))
	f := follow(t, Options{Addresses: []string{p.address}, File: file})
	<-f.Synced()
	f.stop()
	whole, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	if info, err := os.Stat(file); err != nil || info.Mode().Perm() != 0o600 {
		t.Errorf("file = %v, %v; want mode 0600", info.Mode(), err)
	}
	flipped := slices.Clone(whole)
	flipped[len(flipped)-3] ^= 1
	for name, tt := range map[string]struct {
		data []byte
		want string
	}{
		"flipped bit":    {flipped, "is damaged: its checksum does not match"},
		"cut short":      {whole[:len(whole)-1], "is damaged: its checksum does not match"},
		"empty":          {nil, "is damaged: it does not begin as such files do"},
		"later release":  {[]byte("txmesh-control-plane 2 x\n"), "was written by another release"},
		"something else": {[]byte("hello\n"), "is damaged: it does not begin as such files do"},
	} {
		t.Run(name, func(t *testing.T) {
			if err := os.WriteFile(file, tt.data, 0o600); err != nil {
				t.Fatal(err)
			}
			if _, err := decode(tt.data); err == nil || err.Error() != tt.want {
				t.Errorf("decode = %v, want %s", err, tt.want)
			}
			f := follow(t, Options{Addresses: []string{p.address}, File: file})
			<-f.Synced()
			if f.rules() != "withdraw " {
				t.Errorf("rules = %q", f.rules())
			}
		})
	}
}

func TestAHundredPolicies(t *testing.T) {
	p := newPlane(t)
	texts := map[string]string{}
	for i := range 100 {
		texts[fmt.Sprintf("bank/p%02d", i)] = good(fmt.Sprintf("p%02d", i), fmt.Sprintf("r%02d", i))
	}
	if err := p.caches[typePolicies].UpdateResources(resourcesOf(t, texts), nil); err != nil {
		t.Fatal(err)
	}
	began := time.Now()
	f := follow(t, Options{Addresses: []string{p.address}})
	<-f.Synced()
	t.Logf("100 policies in force after %v", time.Since(began))
	if got := len(strings.Fields(f.rules())); got != 100 {
		t.Errorf("%d rules, want 100", got)
	}
	began = time.Now()
	p.policy("bank/p50", good("p50", "changed"))
	eventually(t, "one of them has changed", func() bool { return strings.Contains(f.rules(), " changed ") })
	t.Logf("one of them changed after %v", time.Since(began))
}

func TestNothingRunsOnAfterTheEnd(t *testing.T) {
	p := newPlane(t)
	before := runtime.NumGoroutine()
	for _, address := range []string{p.address, "127.0.0.1:1"} {
		f := follow(t, Options{Addresses: []string{address}, File: filepath.Join(t.TempDir(), "f")})
		if address == p.address {
			<-f.Synced()
		}
		f.stop()
	}
	eventually(t, "no goroutine is left", func() bool { return runtime.NumGoroutine() <= before })
}

func TestPlainTextStaysOnLoopback(t *testing.T) {
	for address, ok := range map[string]bool{"127.0.0.1:1": true, "[::1]:1": true, "localhost:1": true, "10.0.0.1:1": false, "control:1": false, "": false} {
		_, err := New(Options{Addresses: []string{address}})
		if (err == nil) != ok {
			t.Errorf("New(%s) = %v", address, err)
		}
	}
}

func TestMessagesAreBounded(t *testing.T) {
	var many []error
	for i := range 100 {
		many = append(many, fmt.Errorf("problem %d is what it is", i))
	}
	got := message(many)
	if len(got) > messageMax || !strings.HasPrefix(got, "problem 0 is what it is\n") || !strings.HasSuffix(got, " more") {
		t.Errorf("message = %d bytes, ends %q", len(got), got[max(0, len(got)-20):])
	}
	if got := message([]error{errors.New(strings.Repeat("ü", messageMax))}); len(got) > messageMax || len(got) < messageMax-2 {
		t.Errorf("message of one long line = %d bytes", len(got))
	}
	if got := message([]error{errors.New("a\nb")}); got != "a\nb" {
		t.Errorf("message = %q", got)
	}
}

func TestPausesGrowAndVary(t *testing.T) {
	seen := map[time.Duration]bool{}
	for failures := range 100 {
		d := fullJitter(failures, backoffDefault)
		if d < 0 || d >= backoffDefault || failures == 0 && d >= backoffMin {
			t.Errorf("pause after %d failures = %v", failures, d)
		}
		seen[d] = true
	}
	if len(seen) < 50 {
		t.Errorf("%d different pauses in 100: %v", len(seen), slices.Collect(maps.Keys(seen)))
	}
}
