package outbound

import (
	"context"
	"encoding/base64"
	"errors"
	"fmt"
	"maps"
	"net"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/metadata"
	grpcstatus "google.golang.org/grpc/status"
	"google.golang.org/protobuf/proto"

	"txmesh/interceptor"
	"txmesh/policies"
	"txmesh/tests/ledger"
	"txmesh/txn"
)

// grpcRules are the ways to undo the same call.
const grpcRules = `
apiVersion: txmesh.io/v1beta1
kind: TransactionPolicy
metadata: {name: ledger, namespace: bank}
spec:
  DESCRIPTORS
  calls:
  - name: debit
    match: {service: ledger, grpc: bank.v1.Ledger/Debit}
    UNDO
    query: {grpc: bank.v1.Ledger/Find, body: {reference: "{request.body.reference}"}}
`

const (
	byRequest  = `undo: {grpc: bank.v1.Ledger/Undebit, body: "{request.message}"}`
	byResponse = `undo: {grpc: bank.v1.Ledger/Return, body: "{response.message}"}`
	byMessage  = `undo: {grpc: bank.v1.Ledger/Credit, headers: {x-why: "undo of {request.body.reference}"}, body: {entry_id: "{response.body.entry_id}", amount: "{response.body.amount}", kind: KIND_CREDIT}}`
)

func startLedger(t *testing.T, o ledger.Options) *ledger.Ledger {
	t.Helper()
	l, err := ledger.New(o)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(l.Stop)
	return l
}

// grpcWorld is a Caller, the ledger that it calls, and what is journaled.
type grpcWorld struct {
	t      *testing.T
	ledger *ledger.Ledger
	caller *Caller
	app    *App
	kept   map[string]policies.Source
	rule   *policies.Call
}

func (w *grpcWorld) Get(_ context.Context, hash string) (policies.Source, error) {
	src, ok := w.kept[hash]
	if !ok {
		return src, ErrDocument
	}
	return src, nil
}

func (w *grpcWorld) Endpoints(string) []string       { return []string{w.ledger.Address} }
func (w *grpcWorld) EndpointsOfHost(string) []string { return nil }

func newGRPCWorld(t *testing.T, l *ledger.Ledger, undo string, described bool, change ...func(*Options)) *grpcWorld {
	t.Helper()
	descriptors := ""
	if described {
		data, err := proto.Marshal(ledger.Descriptors())
		if err != nil {
			t.Fatal(err)
		}
		descriptors = "descriptors: " + base64.StdEncoding.EncodeToString(data)
	}
	text := strings.NewReplacer("DESCRIPTORS", descriptors, "UNDO", undo).Replace(grpcRules)
	if !described && undo != byMessage {
		text = strings.ReplaceAll(text, `{reference: "{request.body.reference}"}`, `"{request.message}"`)
	}
	set, err := policies.Compile(policies.Source{Name: "p.yaml", Data: []byte(text)})
	if err != nil {
		t.Fatal(err)
	}
	keys, err := interceptor.NewKeys([]byte("0123456789abcdef"))
	if err != nil {
		t.Fatal(err)
	}
	w := &grpcWorld{t: t, ledger: l, kept: map[string]policies.Source{}, rule: set.Calls()[0], app: NewApp(l.Address, 1000, nil)}
	opt := Options{Documents: w, Places: w, Keys: keys, BodyMax: 1000, Now: func() time.Time { return now }}
	for _, f := range change {
		f(&opt)
	}
	w.caller = New(opt)
	t.Cleanup(func() {
		w.caller.Close()
		w.app.Close()
	})
	return w
}

// forward makes the call as the application does, and returns what the engine asks for later.
func (w *grpcWorld) forward(op txn.Op) txn.Call {
	w.t.Helper()
	w.kept[w.rule.Document] = w.rule.Source()
	header := func(name string) string { return map[string]string{"content-type": "application/grpc"}[name] }
	message := []byte("\x0a\x05alice\x10\x81\x80\x80\x80\x80\x80\x80\x10\x1a\x03r-1") // alice, 9007199254740993, r-1
	req := &interceptor.Outgoing{Method: "POST", Path: "/bank.v1.Ledger/Debit", Header: map[string][]string{"Content-Type": {"application/grpc"}}, Body: policies.UnaryBody(message)}
	reply, err := w.app.Send(w.t.Context(), req)
	if err != nil {
		w.t.Fatal(err)
	}
	values, err := w.rule.Record(&policies.Message{Method: "POST", Path: req.Path, Header: header, Body: req.Body})
	if err != nil {
		w.t.Fatal(err)
	}
	note := interceptor.BranchNote{Document: w.rule.Document, Rule: "debit", Service: "bank/ledger", Values: values, Deadline: now.Add(time.Minute)}
	c := txn.Call{Tx: "OWNER.1", Branch: "2", Op: op, Note: note.Encode(), Outcome: txn.OK, Attempt: 1}
	if c.Answer, err = w.rule.RecordAnswer(reply.Message()); err != nil {
		w.t.Fatal(err)
	}
	return c
}

func (w *grpcWorld) said(c txn.Call) string {
	ctx, cancel := context.WithTimeout(w.t.Context(), 10*time.Second)
	defer cancel()
	out, result, cause := w.caller.Call(ctx, c)
	s := out.String()
	if result != nil {
		s += " " + string(result)
	}
	if cause != "" {
		s += ": " + cause
	}
	return strings.ReplaceAll(s, w.ledger.Address, "LEDGER")
}

// One booking is taken back in each of the ways, to the last digit.
func TestDebitIsUndoneOverGRPC(t *testing.T) {
	const debit = `{"account":"alice","amount":"9007199254740993","reference":"r-1"}`
	const entry = `{"entry_id":"e-1","amount":"9007199254740993","kind":"KIND_DEBIT"}`
	for _, tt := range []struct {
		name       string
		undo       string
		described  bool
		reflection ledger.Reflection
		want       ledger.Call
	}{
		{"by the recorded request", byRequest, false, ledger.NoReflection, ledger.Call{Method: "Ledger/Undebit", Message: debit}},
		{"by the recorded answer", byResponse, false, ledger.NoReflection, ledger.Call{Method: "Ledger/Return", Message: entry}},
		{"by descriptors", byMessage, true, ledger.NoReflection, ledger.Call{Method: "Ledger/Credit", Message: strings.Replace(entry, "DEBIT", "CREDIT", 1)}},
		{"by reflection", byMessage, false, ledger.V1, ledger.Call{Method: "Ledger/Credit", Message: strings.Replace(entry, "DEBIT", "CREDIT", 1)}},
		{"by reflection of old", byMessage, false, ledger.V1Alpha, ledger.Call{Method: "Ledger/Credit", Message: strings.Replace(entry, "DEBIT", "CREDIT", 1)}},
	} {
		t.Run(tt.name, func(t *testing.T) {
			l := startLedger(t, ledger.Options{Reflection: tt.reflection})
			w := newGRPCWorld(t, l, tt.undo, tt.described)
			if len(w.rule.Undescribed()) > 0 {
				var err error
				if w.rule, err = NewReflection(w.caller, w.app).Call(t.Context(), l.Address, w.rule); err != nil {
					t.Fatal(err)
				}
			}
			c := w.forward(txn.Undo)
			if got := w.said(c); got != "ok" {
				t.Fatalf("undo = %s", got)
			}
			calls := l.Calls()
			tt.want.Op, tt.want.Key = "undo", `"OWNER.1-2-undo"`
			if diff := cmp.Diff(tt.want, calls[len(calls)-1]); diff != "" {
				t.Errorf("the ledger saw (-want +got):\n%s", diff)
			}
			if l.Net() != 0 {
				t.Errorf("entries = %+v, want none that stands", l.Entries())
			}
		})
	}
}

// What reflection gave is in the document that is journaled: after a restart, with the service down at first and without
// reflection later, the undo is rendered all the same.
func TestReflectionIsNotNeededAgain(t *testing.T) {
	l := startLedger(t, ledger.Options{Reflection: ledger.V1})
	w := newGRPCWorld(t, l, byMessage, false)
	var err error
	if w.rule, err = NewReflection(w.caller, w.app).Call(t.Context(), l.Address, w.rule); err != nil {
		t.Fatal(err)
	}
	c := w.forward(txn.Undo)
	l.Stop()
	restarted := newGRPCWorld(t, l, byMessage, false)
	restarted.kept = maps.Clone(w.kept)
	if got := restarted.said(c); !strings.HasPrefix(got, "unknown: gRPC bank.v1.Ledger/Credit at LEDGER: ") {
		t.Fatalf("undo while the service is down = %s", got)
	}
	again := startLedger(t, ledger.Options{Address: l.Address})
	again.Behave(func(_ context.Context, method string) error {
		if method == "Ledger/Credit" {
			return grpcstatus.Error(codes.AlreadyExists, "100% done")
		}
		return nil
	})
	deadline := time.Now().Add(10 * time.Second)
	for {
		got := restarted.said(c)
		if got == "refused: answered ALREADY_EXISTS" {
			break
		}
		if !strings.HasPrefix(got, "unknown: ") || time.Now().After(deadline) {
			t.Fatalf("undo after the restart = %s", got)
		}
	}
	calls := again.Calls()
	if got := calls[0].Message; got != `{"entry_id":"e-1","amount":"9007199254740993","kind":"KIND_CREDIT"}` {
		t.Errorf("undo = %s", got)
	}
}

func TestReflectionThatFails(t *testing.T) {
	silent := startLedger(t, ledger.Options{})
	w := newGRPCWorld(t, silent, byMessage, false)
	_, err := NewReflection(w.caller, w.app).Call(t.Context(), silent.Address, w.rule)
	if err == nil || !strings.Contains(err.Error(), "for the types of bank.v1.Ledger: ") || !strings.Contains(err.Error(), "Unimplemented") {
		t.Errorf("a service without reflection: %v", err)
	}
	l := startLedger(t, ledger.Options{Reflection: ledger.V1})
	w = newGRPCWorld(t, l, strings.ReplaceAll(byMessage, "Ledger/Credit", "Ledger/Follow"), false)
	_, err = NewReflection(w.caller, w.app).Call(t.Context(), l.Address, w.rule)
	fs, ok := errors.AsType[policies.Findings](err)
	if !ok || fs[0].Code != "TXM0031" {
		t.Errorf("a method that streams: %v", err)
	}
}

// A service that answered once may be away when it is asked again.
func TestTypesAreKeptWhileTheServiceIsAway(t *testing.T) {
	l := startLedger(t, ledger.Options{Reflection: ledger.V1})
	at := now
	w := newGRPCWorld(t, l, byMessage, false, func(o *Options) { o.Now = func() time.Time { return at } })
	r := NewReflection(w.caller, w.app)
	first, err := r.Call(t.Context(), l.Address, w.rule)
	if err != nil {
		t.Fatal(err)
	}
	l.Stop()
	at = at.Add(describedFor)
	later, err := r.Call(t.Context(), l.Address, w.rule)
	if err != nil || later != first {
		t.Errorf("later: %v, %v", later, err)
	}
}

func TestAnswersOverGRPCBecomeOutcomes(t *testing.T) {
	l := startLedger(t, ledger.Options{})
	w := newGRPCWorld(t, l, byMessage, true)
	undo, ask := w.forward(txn.Undo), w.forward(txn.Ask)
	ask.Since = now.Add(-time.Hour)
	for _, tt := range []struct {
		name string
		call txn.Call
		err  error
		want string
	}{
		{"not found", undo, grpcstatus.Error(codes.NotFound, "x"), "refused: answered NOT_FOUND"},
		{"unavailable", undo, grpcstatus.Error(codes.Unavailable, "x"), "unknown: answered UNAVAILABLE"},
		{"permission", undo, grpcstatus.Error(codes.PermissionDenied, "x"), "refused: answered PERMISSION_DENIED"},
		{"too much", undo, grpcstatus.Error(codes.ResourceExhausted, "x"), "unknown: answered RESOURCE_EXHAUSTED"},
		{"done", undo, nil, "ok"},
		{"found", ask, nil, `ok {"response":{"body":{"amount":9007199254740993,"entry_id":"e-1"}}}`},
		{"absent", ask, grpcstatus.Error(codes.NotFound, "x"), "refused: answered NOT_FOUND"},
		{"query turned away", ask, grpcstatus.Error(codes.Unauthenticated, "x"), "unknown: answered UNAUTHENTICATED"},
	} {
		l.Behave(func(context.Context, string) error { return tt.err })
		if got := w.said(tt.call); got != tt.want {
			t.Errorf("%s: %s, want %s", tt.name, got, tt.want)
		}
	}
}

// A proxy that knows no gRPC answers in its own words. A client of gRPC makes statuses of them, some of which would be
// refusals: of what no server said nothing is known.
func TestWhatNoServerOfGRPCSaid(t *testing.T) {
	l := startLedger(t, ledger.Options{})
	w := newGRPCWorld(t, l, byMessage, true)
	c := w.forward(txn.Undo)
	for _, status := range []int{401, 403, 404, 502} {
		proxy := httptest.NewUnstartedServer(http.HandlerFunc(func(rw http.ResponseWriter, _ *http.Request) {
			rw.WriteHeader(status)
			fmt.Fprintln(rw, "<html>")
		}))
		proxy.Config.Protocols = new(http.Protocols)
		proxy.Config.Protocols.SetUnencryptedHTTP2(true)
		proxy.Start()
		t.Cleanup(proxy.Close)
		w.ledger = &ledger.Ledger{Address: proxy.Listener.Addr().String()}
		want := fmt.Sprintf("unknown: gRPC bank.v1.Ledger/Credit at LEDGER: unexpected HTTP status code received from server: %d ", status)
		if got := w.said(c); !strings.HasPrefix(got, want) {
			t.Errorf("a proxy's %d is %s, want %s...", status, got, want)
		}
	}
}

// A sidecar on the way says nothing about effects, wherever its code stands.
func TestSidecarsAnswerOverGRPC(t *testing.T) {
	l := startLedger(t, ledger.Options{})
	w := newGRPCWorld(t, l, byMessage, true)
	c := w.forward(txn.Undo)
	for code, want := range map[string]string{"TXM0107": "unknown: a sidecar answered ABORTED TXM0107", "TXM0112": "pending: a sidecar answered ABORTED TXM0112"} {
		l.Behave(func(ctx context.Context, _ string) error {
			if err := grpc.SetTrailer(ctx, metadata.Pairs("tx-error", code)); err != nil {
				return err
			}
			return grpcstatus.Error(codes.Aborted, "x")
		})
		if got := w.said(c); got != want {
			t.Errorf("%s: %s, want %s", code, got, want)
		}
	}
}

// The engine's deadline travels, and a call that it ends is not known to have failed.
func TestDeadlineOfACallTravels(t *testing.T) {
	l := startLedger(t, ledger.Options{})
	w := newGRPCWorld(t, l, byMessage, true)
	c := w.forward(txn.Undo)
	l.Behave(func(ctx context.Context, _ string) error {
		if _, bounded := ctx.Deadline(); !bounded {
			t.Error("the call came without a deadline")
		}
		<-ctx.Done()
		return ctx.Err()
	})
	ctx, cancel := context.WithTimeout(t.Context(), 100*time.Millisecond)
	defer cancel()
	if out, _, cause := w.caller.Call(ctx, c); out != txn.Unknown {
		t.Errorf("outcome = %v, %s", out, cause)
	}
}

func TestConnectionsOfGRPCAreSecured(t *testing.T) {
	l := startLedger(t, ledger.Options{})
	secured := 0
	w := newGRPCWorld(t, l, byMessage, true, func(o *Options) {
		o.Secure = func(_ context.Context, conn net.Conn, endpoint string) (net.Conn, error) {
			if endpoint == l.Address {
				secured++
			}
			return conn, nil
		}
	})
	if got := w.said(w.forward(txn.Undo)); got != "ok" || secured != 1 {
		t.Errorf("undo = %s over %d secured connections", got, secured)
	}
	w.caller.BreakOff()
	if got := w.said(w.forward(txn.Undo)); got != "ok" || secured != 2 {
		t.Errorf("undo after BreakOff = %s over %d secured connections", got, secured)
	}
}
