package interceptor

import (
	"context"
	"errors"
	"net/http"
	"strings"
	"testing"
	"time"

	"github.com/fxamacker/cbor/v2"
	"github.com/google/go-cmp/cmp"

	"txmesh/policies"
	"txmesh/txn"
	"txmesh/txn/barrier"
)

const grpcPolicy = `
apiVersion: txmesh.io/v1beta1
kind: TransactionPolicy
metadata: {name: rpc, namespace: bank}
spec:
  start:
  - name: transfer
    match: {service: transfers, grpc: bank.v1.Transfers/Transfer}
    timeout: 30s
  calls:
  - name: debit
    match: {service: accounts, grpc: bank.v1.Ledger/Debit}
    undo: {grpc: bank.v1.Ledger/Undebit, body: "{request.message}"}
  - name: letter
    match: {service: mail, grpc: bank.v1.Mail/Send}
    hold: {}
  - name: typed
    match: {service: accounts, grpc: bank.v1.Ledger/Typed}
    undo: {grpc: bank.v1.Ledger/Untyped, body: {id: "{request.body.id}"}}
`

func newGRPCWorld(t *testing.T, service string) *world {
	t.Helper()
	w := newWorld(t, service)
	set, err := policies.Compile(policies.Source{Name: "rpc.yaml", Data: []byte(grpcPolicy)})
	if err != nil {
		t.Fatal(err)
	}
	w.gate.Policies = fixed{set}
	return w
}

func grpcRequest(target, message string, header ...string) *request {
	r := newRequest("POST", target, append([]string{"content-type", "application/grpc", "te", "trailers"}, header...)...)
	r.body = policies.UnaryBody([]byte(message))
	return r
}

func grpcResponse(status, message string) *response {
	r := newResponse(200, string(policies.UnaryBody([]byte(message))), "content-type", "application/grpc")
	if status != "0" {
		r.body = nil
	}
	r.trailer = http.Header{"Grpc-Status": {status}}
	return r
}

const transferURL, debitURL = "http://transfers/bank.v1.Transfers/Transfer", "http://accounts/bank.v1.Ledger/Debit"

func (w *world) grpcRoot(header ...string) (Verdict, *request) {
	w.t.Helper()
	r := grpcRequest(transferURL, "m", header...)
	v := w.in(r)
	if v.Ticket == nil {
		w.t.Fatalf("the root request was answered %s", show(v.Answer))
	}
	return v, r
}

// What is no unary call is refused before anything is journaled.
func TestStreamsAreRefusedBeforeTheyLeave(t *testing.T) {
	for _, tt := range []struct{ name, body, want string }{
		{"two messages", string(policies.UnaryBody(nil)) + string(policies.UnaryBody(nil)), "not a unary call: the body has more than one message"},
		{"no message", "", "not a unary call: the body has no message"},
		{"half a message", "\x00\x00\x00\x00\x05a", "the gRPC body ends within a message of 5 bytes"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			w := newGRPCWorld(t, "bank/transfers")
			r := grpcRequest(transferURL, "")
			r.body = []byte(tt.body)
			a := w.in(r).Answer
			if a == nil || code(a) != string(CodeUnary) || !strings.Contains(string(a.Body), "bank.v1.Transfers/Transfer: "+tt.want) {
				t.Errorf("root: %s", show(a))
			}
			if len(w.events) != 0 {
				t.Errorf("events of a refused root: %v", w.events)
			}
			_, root := w.grpcRoot()
			call := grpcRequest(debitURL, "", "baggage", root.Header("baggage"))
			call.body = []byte(tt.body)
			if a := w.out("bank/accounts", call).Answer; a == nil || code(a) != string(CodeUnary) {
				t.Errorf("call: %s", show(a))
			}
			if diff := cmp.Diff(w.events, []string{"Begin"}); diff != "" {
				t.Errorf("events (got, want):\n%s", diff)
			}
		})
	}
}

func TestStatusOfGRPCDecides(t *testing.T) {
	for _, tt := range []struct {
		status string
		phase  string
	}{{"0", "committed"}, {"9", "aborted"}, {"14", "aborted"}, {"", "aborted"}} {
		w := newGRPCWorld(t, "bank/transfers")
		v, _ := w.grpcRoot()
		res := grpcResponse(tt.status, "m")
		if a := w.after(v, res, nil); a != nil || res.Header(HeaderStatus) != tt.phase {
			t.Errorf("status %q: %s, %s, want %s", tt.status, res.Header(HeaderStatus), show(a), tt.phase)
		}
	}
}

func TestStatusOfABranchOverGRPC(t *testing.T) {
	for status, want := range map[string]txn.Outcome{"0": txn.OK, "5": txn.Refused, "14": txn.None, "8": txn.None} {
		w := newGRPCWorld(t, "bank/transfers")
		_, root := w.grpcRoot()
		c := w.out("bank/accounts", grpcRequest(debitURL, "m", "baggage", root.Header("baggage")))
		if a := w.after(c, grpcResponse(status, "m"), nil); a != nil {
			t.Errorf("status %s was replaced by %s", status, show(a))
		}
		if got := w.machines[w.lastID()].State().Branches[0].Known[txn.Forward].Outcome; got != want {
			t.Errorf("status %s: %v, want %v", status, got, want)
		}
	}
}

func TestTimeoutsOfGRPC(t *testing.T) {
	for _, tt := range []struct {
		text       string
		root, call time.Duration
	}{
		{"", 30 * time.Second, 30 * time.Second},
		{"5S", 5 * time.Second, 5 * time.Second},
		{"250m", 250 * time.Millisecond, 250 * time.Millisecond},
		{"1n", time.Millisecond, time.Millisecond},
		{"99999999H", 30 * time.Second, 30 * time.Second},
		{"5", 30 * time.Second, 30 * time.Second},
		{"5x", 30 * time.Second, 30 * time.Second},
		{"123456789S", 30 * time.Second, 30 * time.Second},
	} {
		w := newGRPCWorld(t, "bank/transfers")
		v, root := w.grpcRoot()
		bounded, _ := w.grpcRoot("grpc-timeout", tt.text)
		call := w.out("bank/accounts", grpcRequest(debitURL, "m", "baggage", root.Header("baggage"), "grpc-timeout", tt.text))
		if v.Ticket.Timeout != 30*time.Second || bounded.Ticket.Timeout != tt.root || call.Ticket.Timeout != tt.call {
			t.Errorf("grpc-timeout %q: root %v, call %v, want %v, %v", tt.text, bounded.Ticket.Timeout, call.Ticket.Timeout, tt.root, tt.call)
		}
		if got := w.machines[w.lastID()].State().Spec.Timeout; got != tt.root {
			t.Errorf("grpc-timeout %q: transaction of %v, want %v", tt.text, got, tt.root)
		}
	}
}

func TestHeldCallOverGRPCIsAnEmptyMessage(t *testing.T) {
	w := newGRPCWorld(t, "bank/transfers")
	_, root := w.grpcRoot()
	a := w.out("bank/mail", grpcRequest("http://mail/bank.v1.Mail/Send", "m", "baggage", root.Header("baggage"))).Answer
	want := &Answer{Status: 200, Header: [][2]string{{"content-type", "application/grpc"}, {HeaderID, string(w.lastID())},
		{HeaderBranch, string(w.lastID()) + "-0"}}, Body: []byte{0, 0, 0, 0, 0}, Trailer: [][2]string{{"grpc-status", "0"}}}
	if diff := cmp.Diff(a, want); diff != "" {
		t.Errorf("answer (got, want):\n%s", diff)
	}
}

// A repeated root gets the recorded answer with its status, whatever the order of the fields in its message.
func TestRepeatedRootOverGRPC(t *testing.T) {
	for _, tt := range []struct{ status, message string }{{"0", "m"}, {"9", ""}} {
		w := newGRPCWorld(t, "bank/transfers")
		r := grpcRequest(transferURL, "\x0a\x01a\x10\x05", "idempotency-key", "k")
		w.after(w.in(r), grpcResponse(tt.status, tt.message), nil)
		a := w.in(grpcRequest(transferURL, "\x10\x05\x0a\x01a", "idempotency-key", "k")).Answer
		body := []byte(nil)
		if tt.status == "0" {
			body = policies.UnaryBody([]byte(tt.message))
		}
		if a == nil || a.Status != 200 || string(a.Body) != string(body) {
			t.Fatalf("repeat: %s", show(a))
		}
		if diff := cmp.Diff(a.Trailer, [][2]string{{"grpc-status", tt.status}}); diff != "" {
			t.Errorf("trailer (got, want):\n%s", diff)
		}
		for _, h := range a.Header {
			if h[0] == "content-length" {
				t.Error("an answer with trailers has a content-length")
			}
		}
		if a := w.in(grpcRequest(transferURL, "\x10\x06\x0a\x01a", "idempotency-key", "k")).Answer; code(a) != string(CodeOtherInput) {
			t.Errorf("another request under the key: %s", show(a))
		}
	}
}

func TestHomeReplaysGRPC(t *testing.T) {
	for _, bare := range []bool{false, true} {
		w := newGRPCWorld(t, "bank/accounts")
		forward := func() *request {
			r := w.forward("/bank.v1.Ledger/Debit", "content-type", "application/grpc")
			r.body = policies.UnaryBody([]byte("m"))
			return r
		}
		res := grpcResponse("5", "")
		res.trailer.Set("Grpc-Message", "no%20such account")
		if bare { // a refusal without a body has its trailers in the header
			res.header.Set("Grpc-Status", "5")
			res.header.Set("Grpc-Message", "no%20such account")
			res.trailer = nil
		}
		w.after(w.in(forward()), res, nil)
		a := w.in(forward()).Answer
		want := &Answer{Status: 200, Header: [][2]string{{"content-type", "application/grpc"}, {HeaderReplayed, "true"}},
			Trailer: [][2]string{{"grpc-message", "no%20such account"}, {"grpc-status", "5"}}}
		if diff := cmp.Diff(a, want); diff != "" {
			t.Errorf("replayed, trailers only: %v (got, want):\n%s", bare, diff)
		}
		if got := w.settleOp(txn.Undo, txn.None); got.Outcome != txn.OK || len(w.sent) != 0 {
			t.Errorf("undo of a refused call: %+v, sent %v", got, w.sent)
		}
	}
}

// A row of an older release has no trailers, and is read as ever.
func TestRowsOfOlderReleases(t *testing.T) {
	type reply struct {
		Status int
		Header http.Header
		Body   []byte
	}
	old, err := cbor.Marshal(struct {
		State barrier.State `cbor:"1,keyasint"`
		Reply *reply        `cbor:"6,keyasint"`
	}{barrier.Done, &reply{201, http.Header{"Location": {"/w/1"}}, []byte("b")}})
	if err != nil {
		t.Fatal(err)
	}
	r, err := decodeRow(old)
	if err != nil {
		t.Fatal(err)
	}
	want := &Reply{Status: 201, Header: http.Header{"Location": {"/w/1"}}, Body: []byte("b")}
	if diff := cmp.Diff(r.Reply, want); diff != "" || r.State != barrier.Done {
		t.Errorf("row %+v (got, want):\n%s", r, diff)
	}
}

// types answers for reflection.
type noTypes struct{ err error }

func (n noTypes) Call(context.Context, string, *policies.Call) (*policies.Call, error) {
	return nil, n.err
}

func (n noTypes) Start(context.Context, *policies.Start) (*policies.Start, error) { return nil, n.err }

func TestTypesThatNobodyKnows(t *testing.T) {
	for _, tt := range []struct {
		name  string
		types Types
		want  Code
	}{
		{"nobody to ask", nil, CodeTypes},
		{"no answer", noTypes{errors.New("it is down")}, CodeTypes},
		{"a rule that does not fit", noTypes{policies.Findings{{Code: "TXM0031", Text: "it streams"}}}, CodeRule},
	} {
		w := newGRPCWorld(t, "bank/transfers")
		w.gate.Types = tt.types
		_, root := w.grpcRoot()
		a := w.out("bank/accounts", grpcRequest("http://accounts/bank.v1.Ledger/Typed", "m", "baggage", root.Header("baggage"))).Answer
		if a == nil || code(a) != string(tt.want) {
			t.Errorf("%s: %s, want %s", tt.name, show(a), tt.want)
		}
		if diff := cmp.Diff(w.events, []string{"Begin"}); diff != "" {
			t.Errorf("%s: events (got, want):\n%s", tt.name, diff)
		}
	}
}

// A sidecar on the way turns its refusals into statuses of gRPC, which have no word for "still running".
func TestRefusalsOfSidecarsOverGRPC(t *testing.T) {
	for code, want := range map[Code]txn.Outcome{CodeRunning: txn.Pending, CodeLate: txn.Refused, CodeInProgress: txn.Unknown} {
		res := grpcResponse("10", "")
		if got, _ := ofSidecar(code, res); got != want {
			t.Errorf("%s: %v, want %v", code, got, want)
		}
	}
}
