package policies

import (
	"bytes"
	"compress/gzip"
	"encoding/base64"
	"encoding/hex"
	"errors"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/descriptorpb"

	"txmesh/txn"
)

func TestContentTypesOfGRPC(t *testing.T) {
	for _, tt := range []struct {
		text string
		want bool
	}{
		{"application/grpc", true},
		{"application/grpc+proto", true},
		{"Application/GRPC;charset=utf-8", true},
		{"application/grpc-web", false},
		{"application/grpc-web+proto", false},
		{"application/json", false},
		{"", false},
	} {
		if got := IsGRPC(tt.text); got != tt.want {
			t.Errorf("IsGRPC(%q) = %v, want %v", tt.text, got, tt.want)
		}
	}
}

func zipped(t *testing.T, data []byte) []byte {
	t.Helper()
	var b bytes.Buffer
	z := gzip.NewWriter(&b)
	if _, err := z.Write(data); err != nil {
		t.Fatal(err)
	}
	if err := z.Close(); err != nil {
		t.Fatal(err)
	}
	return b.Bytes()
}

func TestUnaryMessages(t *testing.T) {
	packed := UnaryBody(zipped(t, []byte("abc")))
	packed[0] = 1
	bomb := UnaryBody(zipped(t, make([]byte, inflatedMax+1)))
	bomb[0] = 1
	for _, tt := range []struct {
		name, encoding string
		body           []byte
		want, err      string
	}{
		{"one", "", UnaryBody([]byte("abc")), "abc", ""},
		{"an empty one", "", UnaryBody(nil), "", ""},
		{"packed", "gzip", packed, "abc", ""},
		{"packed otherwise", "snappy", packed, "", `grpc-encoding "snappy" cannot be read; only gzip can`},
		{"not packed at all", "gzip", append([]byte{1, 0, 0, 0, 1}, 'x'), "", "gunzip: unexpected EOF"},
		{"packed too well", "gzip", bomb, "", "gunzip: longer than 16777216 bytes"},
		{"none", "", nil, "", "not a unary call: the body has no message"},
		{"two", "", append(UnaryBody([]byte("a")), UnaryBody(nil)...), "", "not a unary call: the body has more than one message"},
		{"half a head", "", []byte{0, 0, 0}, "", "the gRPC body ends within the head of a message"},
		{"half a message", "", []byte{0, 0, 0, 0, 9, 1}, "", "the gRPC body ends within a message of 9 bytes"},
		{"an odd flag", "", []byte{2, 0, 0, 0, 0}, "", "a gRPC message begins with flag 2, neither 0 nor 1"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			got, err := UnaryMessage(tt.body, tt.encoding)
			text := ""
			if err != nil {
				text = err.Error()
			}
			if string(got) != tt.want || text != tt.err {
				t.Errorf("UnaryMessage = %q, %q, want %q, %q", got, text, tt.want, tt.err)
			}
			if strings.HasPrefix(text, "not a unary") != errors.Is(err, ErrNotUnary) {
				t.Errorf("%v is ErrNotUnary: %v", err, errors.Is(err, ErrNotUnary))
			}
		})
	}
}

func grpcAnswer(status string, trailersOnly bool) *Message {
	m := &Message{Status: 200, Header: header("content-type", "application/grpc"), Trailer: header("grpc-status", status)}
	if trailersOnly {
		m.Header, m.Trailer = header("content-type", "application/grpc", "grpc-status", status), nil
	}
	return m
}

// The whole table: what could have taken effect is never refused.
func TestStatusesOfGRPC(t *testing.T) {
	const all = "OK Unknown Unknown Refused Unknown Refused Refused Refused Unknown Refused Refused Refused Refused Unknown Unknown Unknown Refused Unknown"
	for code, want := range strings.Fields(all) {
		for _, o := range []txn.Op{txn.Forward, txn.Undo, txn.Commit} {
			for _, bare := range []bool{false, true} {
				if got, _ := BuiltinOutcome(o, grpcAnswer(strconv.Itoa(code), bare)); outcomeWord(got) != want {
					t.Errorf("%v answered %d (trailers only: %v) is %v, want %s", o, code, bare, got, want)
				}
			}
		}
		asked := map[int]string{0: "OK", 5: "Refused"}[code]
		if got, _ := BuiltinOutcome(txn.Ask, grpcAnswer(strconv.Itoa(code), false)); outcomeWord(got) != orElse(asked, "Unknown") {
			t.Errorf("query answered %d is %v", code, got)
		}
	}
	for _, text := range []string{"", "x", "-1", "99999999999"} {
		if got, cause := BuiltinOutcome(txn.Forward, grpcAnswer(text, false)); got != txn.Unknown || cause != "answered UNKNOWN" {
			t.Errorf("status %q is %v, %q", text, got, cause)
		}
	}
}

const describedCalls = `  - name: debit
    match: {service: ledger, grpc: bank.v1.Ledger/Debit}
    undo: {grpc: bank.v1.Ledger/Credit, body: {entry_id: "{response.body.entry_id}", amount: "{response.body.amount}"}}
  - name: other
    match: {service: other, grpc: other.v1.Other/Do}
    undo: {grpc: other.v1.Other/Undo, body: {x: y}}
`

func ledgerSet(t *testing.T) *descriptorpb.FileDescriptorSet {
	t.Helper()
	var set descriptorpb.FileDescriptorSet
	if err := proto.Unmarshal(descriptorSet(t).Data, &set); err != nil {
		t.Fatal(err)
	}
	return &set
}

// A rule that was described is whole: its document alone renders the undo, whatever the rest of the policy needs.
func TestDescribedRulesNeedNobody(t *testing.T) {
	rule := compiled(t, describedCalls).Calls()[0]
	if diff := cmp.Diff(rule.Undescribed(), []string{"bank.v1.Ledger"}); diff != "" {
		t.Fatal(diff)
	}
	described, err := rule.Describe(ledgerSet(t))
	if err != nil {
		t.Fatal(err)
	}
	if n := described.Undescribed(); len(n) != 0 || described.Document == rule.Document {
		t.Fatalf("still needs %v, document %s", n, described.Document)
	}
	again, err := Recompile(described.Source(), "debit")
	if err != nil || again.Document != described.Document {
		t.Fatalf("recompiled: %v, %s, want %s", err, again.Document, described.Document)
	}
	entry, err := again.match.grpc.output().build(map[string]any{"entry_id": "e", "amount": number(7)})
	if err != nil {
		t.Fatal(err)
	}
	res := grpcAnswer("0", false)
	res.Body = UnaryBody(entry)
	answer, err := described.RecordAnswer(res)
	if err != nil {
		t.Fatal(err)
	}
	undo, err := again.Render(txn.Undo, nil, answer)
	if err != nil {
		t.Fatal(err)
	}
	want := &Request{Service: "bank/ledger", Method: "POST", Path: "/bank.v1.Ledger/Credit",
		Header: [][2]string{{"content-type", "application/grpc"}, {"te", "trailers"}}, Body: []byte("\x00\x00\x00\x00\x05\x0a\x01e\x10\x07")}
	if diff := cmp.Diff(undo, want); diff != "" {
		t.Errorf("undo (got, want):\n%s", diff)
	}
}

func TestDescribedStartsKeepTheirOwnWrites(t *testing.T) {
	text := strings.Replace(policyOf(describedCalls), "  calls:\n", `  start:
  - name: root
    match: {service: front, grpc: bank.v1.Ledger/Debit}
    commitWhen: response.body.kind == "KIND_DEBIT"
    undo: {grpc: bank.v1.Ledger/Credit, body: {entry_id: "{response.body.entry_id}"}}
  calls:
`, 1)
	set, err := Compile(Source{Name: "p.yaml", Data: []byte(text)})
	if err != nil {
		t.Fatal(err)
	}
	described, err := set.Starts()[0].Describe(ledgerSet(t))
	if err != nil {
		t.Fatal(err)
	}
	if len(described.Undescribed()) != 0 || described.Own == nil || described.Own.Document != described.Document {
		t.Fatalf("described: %+v", described)
	}
	for kind, want := range map[string]bool{"KIND_DEBIT": true, "KIND_CREDIT": false} {
		body, err := described.match.grpc.output().build(map[string]any{"kind": kind})
		if err != nil {
			t.Fatal(err)
		}
		res := grpcAnswer("0", false)
		res.Body = UnaryBody(body)
		if got, err := described.Commits(&Message{}, res); got != want || err != nil {
			t.Errorf("%s commits: %v, %v", kind, got, err)
		}
	}
	if _, err := described.Commits(&Message{Header: header("content-type", "application/grpc")}, &Message{Status: 200}); err == nil {
		t.Error("commitWhen reads a body that is not there, and that is no error")
	}
}

// What does not fit its service is found before a call leaves.
func TestRulesThatTheServiceDoesNotFit(t *testing.T) {
	for _, tt := range []struct{ name, method, want string }{
		{"a stream", "Follow", "TXM0031: call.match.grpc: bank.v1.Ledger/Follow streams, and only a unary call can be part of a transaction"},
		{"no such method", "Debt", `TXM0031: call.match.grpc: service bank.v1.Ledger has no method "Debt"; did you mean "Debit"?`},
	} {
		rule := compiled(t, strings.ReplaceAll(describedCalls, "Ledger/Debit", "Ledger/"+tt.method)).Calls()[0]
		_, err := rule.Describe(ledgerSet(t))
		fs, ok := errors.AsType[Findings](err)
		if !ok || fs[0].Code+": "+fs[0].Text != tt.want {
			t.Errorf("%s: %v, want %s", tt.name, err, tt.want)
		}
	}
}

// A set beside the policy becomes part of the document: what is journaled and what is handed on need no other file.
func TestSetsBesideThePolicy(t *testing.T) {
	dir := t.TempDir()
	text := strings.Replace(policyOf(strings.Split(describedCalls, "  - name: other")[0]), "spec:\n", "spec:\n  descriptors: {file: ledger.binpb}\n", 1)
	text = strings.Replace(text, "namespace: bank", `namespace: bank, creationTimestamp: "2026-01-02T03:04:05Z"`, 1)
	for name, data := range map[string][]byte{"p.yaml": []byte(text), "ledger.binpb": descriptorSet(t).Data} {
		if err := os.WriteFile(filepath.Join(dir, name), data, 0o600); err != nil {
			t.Fatal(err)
		}
	}
	set, err := Load(dir)
	if err != nil {
		t.Fatal(err)
	}
	rule := set.Calls()[0]
	pasted, err := Compile(Source{Name: "handed on", Data: set.Documents()[0].Text})
	if err != nil {
		t.Fatal(err)
	}
	inline := strings.Replace(text, "{file: ledger.binpb}", base64.StdEncoding.EncodeToString(descriptorSet(t).Data), 1)
	typed, err := Compile(Source{Name: "pasted", Data: []byte(inline)})
	if err != nil {
		t.Fatal(err)
	}
	for _, other := range []*Set{pasted, typed} {
		if got := other.Calls()[0]; got.Document != rule.Document || len(got.Undescribed()) != 0 {
			t.Errorf("document %s needs %v, want %s", got.Document, got.Undescribed(), rule.Document)
		}
	}
	if got := pasted.calls.services["bank/ledger"]; got == nil || !strings.Contains(string(set.Documents()[0].Text), "2026-01-02T03:04:05Z") {
		t.Error("the text that is handed on has lost the age of the policy")
	}
}

// Recorded bytes are sent as they came, unknown fields included.
func TestRecordedBytesStayAsTheyAre(t *testing.T) {
	rule := compiled(t, `  - name: debit
    match: {service: ledger, grpc: bank.v1.Ledger/Debit}
    undo: {grpc: bank.v1.Ledger/Undebit, body: "{request.message}"}
`).Calls()[0]
	message, err := hex.DecodeString("9a9c3103616263") // field 100,000 of nobody's type
	if err != nil {
		t.Fatal(err)
	}
	packed := UnaryBody(zipped(t, message))
	packed[0] = 1
	req := &Message{Method: "POST", Path: "/bank.v1.Ledger/Debit", Body: packed,
		Header: header("content-type", "application/grpc+proto", "grpc-encoding", "gzip")}
	record, err := rule.Record(req)
	if err != nil {
		t.Fatal(err)
	}
	undo, err := rule.Render(txn.Undo, record, nil)
	if err != nil {
		t.Fatal(err)
	}
	if !bytes.Equal(undo.Body, UnaryBody(message)) {
		t.Errorf("undo sends %x, want %x", undo.Body, UnaryBody(message))
	}
}

// A rule for every protocol cannot read messages of gRPC, and says so before the call leaves.
func TestBodiesOfGRPCNeedTheirMethod(t *testing.T) {
	rule := compiled(t, `  - name: all
    match: {service: ledger}
    undo: {path: "/undo/{response.body.id}"}
`).Calls()[0]
	req := &Message{Method: "POST", Path: "/bank.v1.Ledger/Debit", Header: header("content-type", "application/grpc"), Body: UnaryBody(nil)}
	_, err := rule.Record(req)
	want := "record the request of all: read response.body: " + errUndescribed.Error()
	if err == nil || err.Error() != want {
		t.Errorf("Record: %v, want %s", err, want)
	}
	if out, cause := rule.Outcome(txn.Forward, req, &Message{Status: 200}); out != txn.Unknown {
		t.Errorf("an answer that is not gRPC is %v, %s", out, cause)
	}
}

// Equal messages are written in any order, above all those with maps: a repeat must be known as one.
func TestCanonicalBodies(t *testing.T) {
	a := "\x0a\x05alice\x10\x05\x22\x06\x0a\x01a\x12\x01x\x22\x06\x0a\x01b\x12\x01y"
	for _, tt := range []struct {
		name, other string
		same        bool
	}{
		{"fields in another order", "\x10\x05\x22\x06\x0a\x01b\x12\x01y\x0a\x05alice\x22\x06\x12\x01x\x0a\x01a", true},
		{"another amount", strings.Replace(a, "\x10\x05", "\x10\x06", 1), false},
		{"another name", strings.Replace(a, "alice", "celia", 1), false},
		{"values of the map exchanged", strings.NewReplacer("x", "y", "y", "x").Replace(a), false},
	} {
		packed := UnaryBody(zipped(t, []byte(tt.other)))
		packed[0] = 1
		same := bytes.Equal(CanonicalBody(UnaryBody([]byte(a)), ""), CanonicalBody(packed, "gzip"))
		if same != tt.same {
			t.Errorf("%s: counts as the same: %v", tt.name, same)
		}
	}
	if got := CanonicalBody([]byte("odd"), ""); string(got) != "odd" {
		t.Errorf("what is no message became %q", got)
	}
}
