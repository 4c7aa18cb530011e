// Package ledger is a bank that speaks gRPC, for tests: a server of grpc-go whose messages are made at run time from the
// descriptors of ledger.proto. It knows nothing of transactions. Start at New.
package ledger

import (
	"context"
	_ "embed"
	"fmt"
	"net"
	"strings"
	"sync"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/metadata"
	"google.golang.org/grpc/reflection"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/reflect/protodesc"
	"google.golang.org/protobuf/reflect/protoreflect"
	"google.golang.org/protobuf/reflect/protoregistry"
	"google.golang.org/protobuf/types/descriptorpb"
	"google.golang.org/protobuf/types/dynamicpb"
)

//go:embed ledger.binpb
var descriptorSet []byte

// Descriptors is the descriptor set of the services, to be changed by the caller alone.
func Descriptors() *descriptorpb.FileDescriptorSet {
	var set descriptorpb.FileDescriptorSet
	if err := proto.Unmarshal(descriptorSet, &set); err != nil {
		panic(err) // it was embedded
	}
	return &set
}

// Options say what a ledger does beside booking.
type Options struct {
	Address    string // host:port; empty: any
	Reflection bool   // serve it
	Ledger     string // host:port where Transfers calls the Ledger; empty: there are no Transfers
}

// Ledger is a running server. It is safe for many goroutines.
type Ledger struct {
	Address string // where it listens

	files  *protoregistry.Files
	server *grpc.Server
	client *grpc.ClientConn // of Transfers
	served chan struct{}

	mu       sync.Mutex // guards the fields below
	entries  []*Entry
	calls    []Call
	behave   func(ctx context.Context, method string) error
	received []protoreflect.Message
}

// Entry is one booking.
type Entry struct {
	ID, Account, Reference string
	Amount                 int64
	Undone                 bool
}

// Call is a request that came, in order: its method without the package, tx-op and idempotency-key.
type Call struct{ Method, Op, Key string }

// New starts a ledger.
func New(o Options) (*Ledger, error) {
	files, err := protodesc.NewFiles(Descriptors())
	if err != nil {
		return nil, err
	}
	if o.Address == "" {
		o.Address = "127.0.0.1:0"
	}
	listener, err := net.Listen("tcp", o.Address)
	if err != nil {
		return nil, err
	}
	l := &Ledger{Address: listener.Addr().String(), files: files, served: make(chan struct{}),
		behave: func(context.Context, string) error { return nil }}
	l.server = grpc.NewServer(grpc.UnknownServiceHandler(l.handle))
	if o.Reflection {
		reflection.RegisterV1(l.server) // it says that there are no services
		l.server = l.reflecting()
	}
	if o.Ledger != "" {
		if l.client, err = Dial(o.Ledger); err != nil {
			return nil, err
		}
	}
	go func() {
		defer close(l.served)
		_ = l.server.Serve(listener) // ends with Stop
	}()
	return l, nil
}
