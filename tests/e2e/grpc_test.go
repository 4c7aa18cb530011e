package e2e

import (
	"encoding/base64"
	"errors"
	"fmt"
	"net"
	"strings"
	"sync"
	"testing"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/metadata"
	"google.golang.org/grpc/status"
)

// bytesCodec carries messages as they are: the participant below knows no types.
type bytesCodec struct{}

func (bytesCodec) Name() string { return "bytes" }

func (bytesCodec) Marshal(v any) ([]byte, error) { return *v.(*[]byte), nil }

func (bytesCodec) Unmarshal(data []byte, v any) error {
	p, ok := v.(*[]byte)
	if !ok {
		return errors.New("not bytes")
	}
	*p = append([]byte(nil), data...)
	return nil
}

// grpcService answers every method; Refuse and, the first time, Lose are errors.
type grpcService struct {
	address string

	mu   sync.Mutex // guards seen
	seen []string   // "method tx-op attempt message"
}

func newGRPCService(t *testing.T) *grpcService {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	s := &grpcService{address: l.Addr().String()}
	server := grpc.NewServer(grpc.ForceServerCodec(bytesCodec{}), grpc.UnknownServiceHandler(s.handle))
	go func() { _ = server.Serve(l) }() // ends with Stop
	t.Cleanup(server.Stop)
	return s
}

func (s *grpcService) handle(_ any, stream grpc.ServerStream) error {
	method, _ := grpc.MethodFromServerStream(stream)
	var message []byte
	if err := stream.RecvMsg(&message); err != nil {
		return err
	}
	md, _ := metadata.FromIncomingContext(stream.Context())
	value := func(name string) string { return strings.Join(md.Get(name), ",") }
	s.mu.Lock()
	s.seen = append(s.seen, fmt.Sprintf("%s %s %s %s", method, value("tx-op"), value("tx-attempt"), message))
	lost := strings.HasSuffix(method, "Lose") && value("tx-attempt") == "1"
	s.mu.Unlock()
	switch {
	case lost:
		return status.Error(codes.Unavailable, "lost")
	case strings.HasSuffix(method, "Refuse"):
		return status.Error(codes.Aborted, "no money")
	}
	return stream.SendMsg(&message)
}

// A saga over gRPC: an answer that is lost is asked for again, a refusal is compensated.
func TestSagaOverGRPC(t *testing.T) {
	t.Parallel()
	m, s := newModes(t), newGRPCService(t)
	call := func(method, message string) string {
		return fmt.Sprintf(`{"grpc":"%s/bank.Ledger/%s","body":%q}`, s.address, method, base64.StdEncoding.EncodeToString([]byte(message)))
	}
	id := m.begin(fmt.Sprintf(`{"mode":"saga","timeout":"60s","branches":[{"action":%s,"compensate":%s},{"action":%s}]}`,
		call("Lose", "10"), call("Credit", "10"), call("Refuse", "x")))
	x := m.home.reaches(id, "aborted")
	if got := x.outcome("", "forward"); got != "ok" {
		t.Errorf("first forward = %s, want ok", got)
	}
	want := []string{"/bank.Ledger/Lose forward 1 10", "/bank.Ledger/Lose forward 2 10", "/bank.Ledger/Refuse forward 1 x", "/bank.Ledger/Credit undo 1 10"}
	s.mu.Lock()
	defer s.mu.Unlock()
	if fmt.Sprint(s.seen) != fmt.Sprint(want) {
		t.Errorf("the service saw %q, want %q", s.seen, want)
	}
}
