package e2e

import (
	"context"
	"strings"
	"testing"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/metadata"
	"google.golang.org/grpc/status"

	"txmesh/tests/ledger"
)

// unaryPolicy makes a transfer of gRPC a root, and its debits branches, which are undone in the way that the test says.
const unaryPolicy = `
apiVersion: txmesh.io/v1beta1
kind: TransactionPolicy
metadata: {name: transfers, namespace: bank}
spec:
  start:
  - name: transfer
    match: {service: transfers, grpc: bank.v1.Transfers/Transfer}
    timeout: 30s
  calls:
  - name: debit
    match: {service: ledger, grpc: bank.v1.Ledger/Debit}
    UNDO
`

const (
	undoByBytes      = `undo: {grpc: bank.v1.Ledger/Undebit, body: "{request.message}"}`
	undoByReflection = `undo: {grpc: bank.v1.Ledger/Credit, body: {entry_id: "{response.body.entry_id}", amount: "{response.body.amount}"}}`
)

// unary is two services of gRPC, each behind a sidecar.
type unary struct {
	*mesh
	transfers, ledger *node
	book              *ledger.Ledger
	client            *grpc.ClientConn
}

func newUnary(t *testing.T, undo string) *unary {
	t.Helper()
	u := &unary{}
	serve := func(n *node, o ledger.Options) *ledger.Ledger {
		o.Address = n.listen
		l, err := ledger.New(o)
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(l.Stop)
		return l
	}
	u.mesh = newMesh(t, strings.Replace(unaryPolicy, "UNDO", undo, 1),
		member{name: "ledger", inside: func(n *node) { u.book = serve(n, ledger.Options{Reflection: ledger.V1}) }},
		member{name: "transfers", calls: []string{"ledger"}, inside: func(n *node) { serve(n, ledger.Options{Ledger: n.to["ledger"]}) }}).start()
	u.transfers, u.ledger = u.nodes["transfers"], u.nodes["ledger"]
	var err error
	if u.client, err = ledger.Dial(u.transfers.inbound); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = u.client.Close() }) // the test is over
	return u
}

// transfer debits two accounts and returns the answer, its metadata, and its status.
func (u *unary) transfer(fail, key string) (string, metadata.MD, error) {
	ctx, cancel := context.WithTimeout(u.t.Context(), 20*time.Second)
	defer cancel()
	var head, tail metadata.MD
	ctx = metadata.AppendToOutgoingContext(ctx, "idempotency-key", key)
	out, err := ledger.Invoke(ctx, u.client, "Transfers/Transfer", `{"debits":[{"account":"alice","amount":30,"reference":"`+key+`-1"},
		{"account":"bob","amount":-30,"reference":"`+key+`-2"}],"fail":`+fail+`}`, grpc.Header(&head), grpc.Trailer(&tail))
	return out, metadata.Join(head, tail), err
}

func first(md metadata.MD, name string) string { return strings.Join(md.Get(name), ",") }

func TestTransferOverGRPCCommits(t *testing.T) {
	t.Parallel()
	u := newUnary(t, undoByBytes)
	out, md, err := u.transfer("false", "k-1")
	if err != nil || out != `{"entry_id":"e-2","amount":"-30","kind":"KIND_DEBIT"}` || first(md, "tx-status") != "committed" {
		t.Fatalf("transfer = %s, %v, %v", out, err, md)
	}
	again, md, err := u.transfer("false", "k-1")
	if err != nil || again != out || first(md, "tx-replayed") != "true" {
		t.Errorf("repeat = %s, %v, %v, want the recorded answer", again, err, md)
	}
	if got := u.book.Entries(); len(got) != 2 || got[0].Undone || got[1].Undone {
		t.Errorf("entries = %+v, want two that stand", got)
	}
	x := u.transfers.reaches(first(md, "tx-id"), "committed")
	if len(x.Branches) != 2 || x.Branches[0].Home != u.ledger.owner {
		t.Errorf("branches = %+v, want two at the ledger's sidecar", x.Branches)
	}
}

func TestFailedTransferOverGRPCIsUndone(t *testing.T) {
	t.Parallel()
	for name, undo := range map[string]string{"by recorded bytes": undoByBytes, "by reflection": undoByReflection} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			u := newUnary(t, undo)
			_, md, err := u.transfer("true", "k-2")
			if status.Code(err) != codes.FailedPrecondition || first(md, "tx-status") != "aborted" {
				t.Fatalf("transfer = %v, %v, want its own refusal", err, md)
			}
			if got := u.book.Entries(); len(got) != 2 || !got[0].Undone || !got[1].Undone {
				t.Errorf("entries = %+v, want two that are undone", got)
			}
			again, md, err := u.transfer("true", "k-2")
			if status.Code(err) != codes.FailedPrecondition || first(md, "tx-replayed") != "true" {
				t.Errorf("repeat = %s, %v, %v, want the recorded refusal", again, err, md)
			}
		})
	}
}

// The owner dies with -9 while the second debit is served, and the ledger with its reflection is away: after the restart
// both debits are undone as soon as the ledger is back.
func TestKilledOwnerUndoesOverGRPC(t *testing.T) {
	t.Parallel()
	u := newUnary(t, undoByReflection)
	release := make(chan struct{})
	second := make(chan struct{})
	debits := 0
	u.book.Behave(func(_ context.Context, method string) error {
		if method != "Ledger/Debit" {
			return nil
		}
		if debits++; debits == 2 {
			close(second)
			<-release
		}
		return nil
	})
	done := make(chan error, 1)
	go func() {
		_, _, err := u.transfer("false", "k-3")
		done <- err
	}()
	select {
	case <-second:
	case err := <-done:
		t.Fatalf("the transfer ended early: %v", err)
	}
	x := u.transfers.only()
	u.transfers.crash()
	if err := <-done; err == nil {
		t.Error("the client was answered by a killed sidecar")
	}
	close(release)
	x = u.transfers.reaches(x.ID, "aborted")
	got := u.book.Entries()
	if len(got) != 2 || !got[0].Undone || !got[1].Undone {
		t.Errorf("entries = %+v, want two that are undone\n%s", got, x.events())
	}
}

// A stream under a rule is refused before it leaves; beside every rule it passes.
func TestStreamsAreNoBranches(t *testing.T) {
	t.Parallel()
	u := newUnary(t, undoByBytes)
	conn, err := ledger.Dial(u.ledger.inbound)
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = conn.Close() }() // the test is over
	ctx, cancel := context.WithTimeout(t.Context(), 20*time.Second)
	defer cancel()
	stream, err := conn.NewStream(ctx, &grpc.StreamDesc{ServerStreams: true}, "/bank.v1.Ledger/Follow", grpc.ForceCodec(bytesCodec{}))
	if err != nil {
		t.Fatal(err)
	}
	message := []byte{}
	if err := stream.SendMsg(&message); err != nil {
		t.Fatal(err)
	}
	if err := stream.CloseSend(); err != nil {
		t.Fatal(err)
	}
	for range 2 {
		if err := stream.RecvMsg(&message); err != nil {
			t.Fatalf("a stream beside the rules: %v", err)
		}
	}
	root, err := u.client.NewStream(ctx, &grpc.StreamDesc{ClientStreams: true}, "/bank.v1.Transfers/Transfer", grpc.ForceCodec(bytesCodec{}))
	if err != nil {
		t.Fatal(err)
	}
	for range 2 {
		if err := root.SendMsg(&message); err != nil {
			t.Fatal(err)
		}
	}
	if err := root.CloseSend(); err != nil {
		t.Fatal(err)
	}
	err = root.RecvMsg(&message)
	if status.Code(err) != codes.InvalidArgument || !strings.Contains(err.Error(), "more than one message") || first(root.Trailer(), "tx-error") != "TXM0129" {
		t.Errorf("a stream under a start rule: %v, %v", err, root.Trailer())
	}
}
