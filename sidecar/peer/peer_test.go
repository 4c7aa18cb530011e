package peer

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net/http"
	"net/http/httptest"
	"reflect"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"txmesh/interceptor"
	"txmesh/policies"
	"txmesh/sidecar/engine"
	"txmesh/txlog/memory"
	"txmesh/txn"
)

const ownerA, ownerB = "AAAAAAAAAAAAA", "BBBBBBBBBBBBB"

// documents is a fake of the kept policy documents.
type documents struct {
	mu   sync.Mutex // guards docs and kept
	docs map[string]policies.Source
	kept int
}

func (d *documents) Get(_ context.Context, hash string) (policies.Source, error) {
	d.mu.Lock()
	defer d.mu.Unlock()
	src, ok := d.docs[hash]
	if !ok {
		return src, ErrDocument
	}
	return src, nil
}

func (d *documents) Keep(_ context.Context, hash string, doc policies.Source) error {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.docs[hash] = doc
	d.kept++
	return nil
}

// homeFunc settles as the test says.
type homeFunc func(interceptor.HomeCall) interceptor.HomeReply

func (f homeFunc) Settle(_ context.Context, c interceptor.HomeCall) interceptor.HomeReply {
	return f(c)
}

type silent struct{}

func (silent) Call(context.Context, txn.Call) (txn.Outcome, []byte, string) {
	return txn.Unknown, nil, ""
}

// held is the journal of one owner.
type held struct {
	*engine.Engine
	owner string
}

func (h held) Holds(owner string) bool { return owner == h.owner }

// mesh is an owner A with a peer port, and a relay at B that reaches it.
type mesh struct {
	t       *testing.T
	clock   *clock
	engine  *engine.Engine // of A
	docsA   *documents
	docsB   *documents
	home    homeFunc
	refused []string
	server  *Server
	http    *httptest.Server
	client  *Client
	relay   *Relay // of B
}

func newMesh(t *testing.T) *mesh {
	m := &mesh{t: t, clock: &clock{time.UnixMilli(1_800_000_000_000)}, docsA: &documents{docs: map[string]policies.Source{}},
		docsB: &documents{docs: map[string]policies.Source{}}}
	var err error
	if m.engine, err = engine.New(engine.Config{Store: memory.New(memory.Options{}), Caller: silent{}}); err != nil {
		t.Fatal(err)
	}
	if err := m.engine.Start(t.Context()); err != nil {
		t.Fatal(err)
	}
	auth := newTestAuth(t, secret, m.clock)
	m.server = NewServer(ServerOptions{Identity: func() Identity {
		return Identity{Owner: ownerA, Incarnation: "1", Service: "bank/a", Inbound: "10.0.0.1:1"}
	},
		Local: held{m.engine, ownerA}, Documents: m.docsA, Auth: auth, Log: slog.New(slog.DiscardHandler),
		Home:    homeFunc(func(c interceptor.HomeCall) interceptor.HomeReply { return m.home(c) }),
		Refused: func(cause string) { m.refused = append(m.refused, cause) }})
	m.http = httptest.NewServer(m.server)
	m.client = NewClient(newTestAuth(t, secret, m.clock), 10*time.Second, func(_ context.Context, owner string) (string, error) {
		return m.http.Listener.Addr().String(), nil
	})
	m.relay = NewRelay(held{owner: ownerB}, m.client, m.docsB)
	t.Cleanup(func() {
		m.client.Close()
		m.http.Close()
		if err := m.engine.Close(); err != nil {
			t.Error(err)
		}
	})
	return m
}

func (m *mesh) begin(id txn.ID) {
	m.t.Helper()
	spec := txn.Spec{ID: id, Mode: txn.Explicit, Plan: txn.Explicit.Plan(), Timeout: time.Minute}
	if _, err := m.engine.Do(m.t.Context(), id, txn.Begin{Spec: spec}); err != nil {
		m.t.Fatal(err)
	}
}

func note(hash string) []byte { return interceptor.BranchNote{Document: hash, Rule: "inline"}.Encode() }

// document is a policy document with the rule "inline".
func document(t *testing.T) (hash string, doc policies.Source) {
	t.Helper()
	c, err := policies.Inline("bank/a", func(name string) string {
		return map[string]string{"tx-undo": "DELETE /x"}[name]
	})
	if err != nil {
		t.Fatal(err)
	}
	return c.Document, c.Source()
}

func TestRelayBringsABranchToItsOwner(t *testing.T) {
	m := newMesh(t)
	const id = ownerA + ".1"
	m.begin(id)
	hash, doc := document(t)
	m.docsB.docs[hash] = doc
	b := txn.Branch{Key: "k", Name: "withdraw", Home: "CCCCCCCCCCCCC", Note: note(hash), Unanswered: txn.ResolveAsk,
		Retry: txn.Retry{Delay: time.Second}, Timeout: time.Minute, Join: []string{"trace:1"}}
	b.Ops[txn.Undo], b.Ops[txn.Ask] = []byte{'+'}, []byte{}
	want := interceptor.Placed{Branch: "0", Home: "CCCCCCCCCCCCC"}
	for range 2 { // the second is the repeat of the first
		got, err := m.relay.Enlist(t.Context(), id, txn.Enlist{Branch: b, Calling: true})
		if err != nil || got != want {
			t.Fatalf("Enlist = %+v, %v, want %+v", got, err, want)
		}
	}
	if diff := cmp.Diff(map[string]policies.Source{hash: doc}, m.docsA.docs); diff != "" || m.docsA.kept != 1 {
		t.Errorf("documents at the owner, kept %d times, differ (-want +got):\n%s", m.docsA.kept, diff)
	}
	if err := m.relay.Returned(t.Context(), id, txn.Returned{Branch: "0", Outcome: txn.OK, Result: []byte("{}")}, false); err != nil {
		t.Fatal(err)
	}
	if err := m.relay.Returned(t.Context(), id, txn.Returned{Branch: "0", Outcome: txn.OK, Result: []byte("{}")}, true); err != nil {
		t.Fatal(err)
	}
	s, err := m.engine.State(t.Context(), id)
	if err != nil {
		t.Fatal(err)
	}
	b.ID = "0"
	if diff := cmp.Diff(b, s.Branches[0].Branch); diff != "" {
		t.Errorf("branch at the owner differs (-sent +got):\n%s", diff)
	}
	if o := s.Branches[0].Known[txn.Forward]; o.Outcome != txn.OK || string(o.Result) != "{}" {
		t.Errorf("forward = %+v, want ok {}", o)
	}
}

// The client went away: what was begun for it is done all the same, here and at a peer.
func TestEnlistOutlivesItsClient(t *testing.T) {
	m := newMesh(t)
	m.begin(ownerA + ".1")
	gone, cancel := context.WithCancel(t.Context())
	cancel()
	for i, r := range []*Relay{NewRelay(held{m.engine, ownerA}, nil, m.docsA), m.relay} {
		want := interceptor.Placed{Branch: strconv.Itoa(i)}
		got, err := r.Enlist(gone, ownerA+".1", txn.Enlist{Branch: txn.Branch{Key: want.Branch}, Calling: true})
		if err != nil || got != want {
			t.Errorf("Enlist %d = %+v, %v, want %+v", i, got, err, want)
		}
	}
}

// The owner lost the document: it is asked for, and sent, though it was sent before.
func TestDocumentIsSentAgainWhenTheOwnerAsks(t *testing.T) {
	m := newMesh(t)
	m.begin(ownerA + ".1")
	hash, doc := document(t)
	m.docsB.docs[hash] = doc
	for i, key := range []string{"k1", "k2"} {
		clear(m.docsA.docs)
		if _, err := m.relay.Enlist(t.Context(), ownerA+".1", txn.Enlist{Branch: txn.Branch{Key: key, Note: note(hash)}}); err != nil {
			t.Fatal(err)
		}
		if len(m.docsA.docs) != 1 {
			t.Errorf("after Enlist %d the owner has %d documents, want 1", i, len(m.docsA.docs))
		}
	}
}

func TestRefusalsKeepTheirMeaning(t *testing.T) {
	m := newMesh(t)
	m.begin(ownerA + ".1")
	enlist := func(id txn.ID, b txn.Branch) error {
		_, err := m.relay.Enlist(t.Context(), id, txn.Enlist{Branch: b, Calling: true})
		return err
	}
	if err := enlist(ownerA+".1", txn.Branch{Key: "k", Name: "a"}); err != nil {
		t.Fatal(err)
	}
	for _, tt := range []struct {
		name string
		err  error
		want error
		text string
	}{
		{"conflict", enlist(ownerA+".1", txn.Branch{Key: "k", Name: "b"}), txn.ErrConflict, "repeated with other content"},
		{"unknown transaction", enlist(ownerA+".2", txn.Branch{Key: "k"}), txn.ErrUnknown, "no such transaction"},
		{"another owner", enlist("CCCCCCCCCCCCC.1", txn.Branch{Key: "k"}), ErrMisdirected, "transaction CCCCCCCCCCCCC.1 was sent to sidecar " + ownerA},
		{"document that nobody has", enlist(ownerA+".1", txn.Branch{Key: "x", Note: note("none")}), ErrDocument, "policy document none"},
		{"answer to another owner", m.relay.Returned(t.Context(), "CCCCCCCCCCCCC.1", txn.Returned{}, true), ErrMisdirected, "does not hold the journal of CCCCCCCCCCCCC"},
	} {
		if !errors.Is(tt.err, tt.want) || !strings.Contains(tt.err.Error(), tt.text) {
			t.Errorf("%s = %v, want %v with %q", tt.name, tt.err, tt.want, tt.text)
		}
	}
	if _, err := m.engine.Do(t.Context(), ownerA+".1", txn.Decide{}); err != nil {
		t.Fatal(err)
	}
	if err := enlist(ownerA+".1", txn.Branch{Key: "late"}); !errors.Is(err, txn.ErrDecided) {
		t.Errorf("enlist after the decision = %v, want ErrDecided", err)
	}
	if _, err := m.relay.Enlist(t.Context(), ownerA+".1", txn.Enlist{}); err == nil {
		t.Error("a branch without key or id was relayed")
	}
}

// What an owner cannot compile, or what is not what it claims to be, it must not enlist.
func TestDocumentIsCheckedByItsOwner(t *testing.T) {
	m := newMesh(t)
	m.begin(ownerA + ".1")
	hash, doc := document(t)
	for _, tt := range []struct {
		name string
		hash string
		doc  policies.Source
		want string
	}{
		{"not a document", hash, policies.Source{Name: "x", Data: []byte("kind: Nonsense")}, "policy document " + hash + " does not compile at the owner"},
		{"another document", "0000", doc, "policy document " + hash + " came under the hash 0000"},
	} {
		_, err := m.client.Enlist(t.Context(), ownerA, ownerA+".1", txn.Enlist{Branch: txn.Branch{Key: "k", Note: note(tt.hash)}}, &Document{tt.hash, tt.doc})
		if err == nil || !strings.Contains(err.Error(), "refused (malformed): peer: malformed message: "+tt.want) {
			t.Errorf("%s: Enlist = %v, want %s", tt.name, err, tt.want)
		}
	}
	if len(m.docsA.docs) != 0 {
		t.Errorf("documents kept = %v, want none", m.docsA.docs)
	}
}

func TestSettleReachesItsHome(t *testing.T) {
	m := newMesh(t)
	sent := interceptor.HomeCall{Home: ownerA, Branch: "X.1-2", Op: txn.Undo, Known: txn.OK, Attempt: 3, Judged: true,
		Deadline: time.UnixMilli(1_800_000_000_000).UTC(), Request: &interceptor.Outgoing{Method: "DELETE", Host: "h",
			Path: "/a%2Fb", Query: "q=1", Header: http.Header{"X": {"1", "2"}}, Body: []byte{0, 1}}}
	want := interceptor.HomeReply{Outcome: txn.OK, ByQuery: true, Cause: "c",
		Reply: &interceptor.Reply{Status: 204, Header: http.Header{"Y": {"z"}}, Body: []byte("b")}}
	m.home = func(c interceptor.HomeCall) interceptor.HomeReply {
		if diff := cmp.Diff(sent, c); diff != "" {
			t.Errorf("call at the home differs (-sent +got):\n%s", diff)
		}
		return want
	}
	got, err := m.client.Settle(t.Context(), sent)
	if diff := cmp.Diff(want, got); err != nil || diff != "" {
		t.Errorf("Settle = %v (-want +got):\n%s", err, diff)
	}
	sent.Home = ownerB
	if _, err := m.client.Settle(t.Context(), sent); !errors.Is(err, ErrMisdirected) {
		t.Errorf("Settle at another home = %v, want ErrMisdirected", err)
	}
}

func TestStatusTellsPhases(t *testing.T) {
	m := newMesh(t)
	m.begin(ownerA + ".1")
	m.begin(ownerA + ".2")
	if _, err := m.engine.Do(t.Context(), ownerA+".2", txn.Decide{}); err != nil {
		t.Fatal(err)
	}
	got, err := m.client.Status(t.Context(), ownerA, []txn.ID{ownerA + ".1", ownerA + ".2", ownerA + ".3"})
	want := map[txn.ID]string{ownerA + ".1": "open", ownerA + ".2": "aborted", ownerA + ".3": PhaseUnknown}
	if diff := cmp.Diff(want, got); err != nil || diff != "" {
		t.Errorf("Status = %v (-want +got):\n%s", err, diff)
	}
	if _, err := m.client.Status(t.Context(), ownerA, make([]txn.ID, StatusMax+1)); err == nil {
		t.Error("Status with too many ids was answered")
	}
}

// exchange sends one signed request after a change and returns the whole answer.
func (m *mesh) exchange(change func(*http.Request)) (int, string) {
	m.t.Helper()
	body := []byte(`{"ids":[]}`)
	req, err := http.NewRequest("POST", m.http.URL+"/v1/status", bytes.NewReader(body))
	if err != nil {
		m.t.Fatal(err)
	}
	newTestAuth(m.t, secret, m.clock).Sign(req.Header, "POST", "/v1/status", body)
	change(req)
	res, err := http.DefaultClient.Do(req)
	if err != nil {
		m.t.Fatal(err)
	}
	defer res.Body.Close()
	text, err := io.ReadAll(res.Body)
	if err != nil {
		m.t.Fatal(err)
	}
	return res.StatusCode, string(text)
}

func TestStrangersAreRefusedAndCounted(t *testing.T) {
	m := newMesh(t)
	want := func(name string, status int, text string, wantStatus int, wantText string) {
		t.Helper()
		if status != wantStatus || text != wantText {
			t.Errorf("%s = %d %s, want %d %s", name, status, text, wantStatus, wantText)
		}
	}
	var kept http.Header
	status, text := m.exchange(func(r *http.Request) { kept = r.Header.Clone() })
	want("signed", status, text, 200, `{"phases":{}}`)
	status, text = m.exchange(func(r *http.Request) { r.Header = kept })
	want("replayed", status, text, 401, `{"code":"unauthorized","text":"peer: seen before"}`)
	status, text = m.exchange(func(r *http.Request) { r.Header.Set(headerMAC, "x") })
	want("forged", status, text, 401, `{"code":"unauthorized","text":"peer: not signed with the secret of this mesh"}`)
	m.clock.at = m.clock.at.Add(-time.Minute)
	status, text = m.exchange(func(*http.Request) { m.clock.at = m.clock.at.Add(time.Minute) })
	want("stale", status, text, 401, `{"code":"unauthorized","text":"peer: signed too long ago, or the clocks differ: signed 1m0s before this sidecar's clock"}`)
	if diff := cmp.Diff([]string{"replayed", "forged", "stale"}, m.refused); diff != "" {
		t.Errorf("counted refusals differ (-want +got):\n%s", diff)
	}
}

// Whoever answers without the secret is no peer, whatever he says.
func TestAnswerOfAStrangerIsNotBelieved(t *testing.T) {
	s := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
		fmt.Fprintf(w, `{"owner":%q}`, ownerA)
	}))
	defer s.Close()
	c := NewClient(newTestAuth(t, secret, &clock{time.Now()}), time.Second, nil)
	defer c.Close()
	_, err := c.Identity(t.Context(), s.Listener.Addr().String())
	if !errors.Is(err, ErrUnreachable) || !errors.Is(err, ErrForged) {
		t.Errorf("Identity = %v, want ErrUnreachable because forged", err)
	}
}

// breaking is a transport whose first tries break.
type breaking struct {
	fails, tries int
	err          error
}

func (b *breaking) try() error {
	if b.tries++; b.tries <= b.fails {
		return b.err
	}
	return nil
}

func (b *breaking) Enlist(context.Context, string, txn.ID, txn.Enlist, *Document) (interceptor.Placed, error) {
	return interceptor.Placed{Branch: "0"}, b.try()
}

func (b *breaking) Returned(context.Context, string, txn.ID, txn.Returned, bool) error {
	return b.try()
}

func TestOnlyBrokenConnectionsAreTriedAgainOnce(t *testing.T) {
	for _, tt := range []struct {
		name  string
		fails int
		err   error
		tries int
		ok    bool
	}{
		{"none", 0, nil, 1, true},
		{"once", 1, ErrUnreachable, 2, true},
		{"twice", 2, ErrUnreachable, 2, false},
		{"refusal", 1, txn.ErrDecided, 1, false},
	} {
		for _, kind := range []string{"Enlist", "Returned"} {
			b := &breaking{fails: tt.fails, err: tt.err}
			r := NewRelay(held{owner: ownerB}, b, &documents{})
			var err error
			if kind == "Enlist" {
				_, err = r.Enlist(t.Context(), ownerA+".1", txn.Enlist{Branch: txn.Branch{Key: "k"}})
			} else {
				err = r.Returned(t.Context(), ownerA+".1", txn.Returned{}, true)
			}
			if (err == nil) != tt.ok || b.tries != tt.tries {
				t.Errorf("%s of %s = %v after %d tries, want ok %v after %d", tt.name, kind, err, b.tries, tt.ok, tt.tries)
			}
		}
	}
}

// Every field of a branch is on the wire: one that was forgotten would be lost without an error.
func TestBranchTravelsWhole(t *testing.T) {
	var b txn.Branch
	fill(reflect.ValueOf(&b).Elem())
	m := newMesh(t)
	var got wireBranch
	b.After = nil // names branches that must exist
	hash, doc := document(t)
	b.Note = note(hash)
	m.begin(ownerA + ".1")
	if _, err := m.client.Enlist(t.Context(), ownerA, ownerA+".1", txn.Enlist{Branch: b}, &Document{hash, doc}); err != nil {
		t.Fatal(err)
	}
	s, err := m.engine.State(t.Context(), ownerA+".1")
	if err != nil {
		t.Fatal(err)
	}
	got = wireBranch(s.Branches[0].Branch)
	if diff := cmp.Diff(wireBranch(b), got); diff != "" {
		t.Errorf("branch differs (-sent +got):\n%s", diff)
	}
}

// fill gives every field a value that is not zero.
func fill(v reflect.Value) {
	switch v.Kind() {
	case reflect.Struct:
		for i := range v.NumField() {
			fill(v.Field(i))
		}
	case reflect.Array:
		for i := range v.Len() {
			fill(v.Index(i))
		}
	case reflect.Slice:
		v.Set(reflect.MakeSlice(v.Type(), 1, 1))
		fill(v.Index(0))
	case reflect.String:
		v.SetString("x")
	case reflect.Bool:
		v.SetBool(true)
	case reflect.Int64:
		v.SetInt(7)
	case reflect.Uint8:
		v.SetUint(1)
	default:
		panic("fill: " + v.Kind().String())
	}
}
