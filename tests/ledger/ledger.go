// Package ledger is a bank that speaks gRPC, for tests: a server of grpc-go whose messages are made at run time from the
// descriptors of ledger.proto. It knows nothing of transactions. Start at New.
package ledger

import (
	"context"
	_ "embed"
	"errors"
	"fmt"
	"net"
	"slices"
	"strings"
	"sync"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/metadata"
	"google.golang.org/grpc/reflection"
	v1 "google.golang.org/grpc/reflection/grpc_reflection_v1"
	"google.golang.org/grpc/reflection/grpc_reflection_v1alpha"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/encoding/protojson"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/reflect/protodesc"
	"google.golang.org/protobuf/reflect/protoreflect"
	"google.golang.org/protobuf/reflect/protoregistry"
	"google.golang.org/protobuf/types/descriptorpb"
	"google.golang.org/protobuf/types/dynamicpb"
)

//go:embed ledger.binpb
var descriptorSet []byte

// Descriptors is the descriptor set of the services.
func Descriptors() *descriptorpb.FileDescriptorSet {
	var set descriptorpb.FileDescriptorSet
	if err := proto.Unmarshal(descriptorSet, &set); err != nil {
		panic(err) // it was embedded
	}
	return &set
}

// Reflection is the version of reflection that a ledger serves.
type Reflection uint8

// The versions.
const (
	NoReflection Reflection = iota
	V1
	V1Alpha
)

// Options say what a ledger does beside booking.
type Options struct {
	Address    string // host:port; empty: any
	Reflection Reflection
	Ledger     string // host:port where Transfers calls the Ledger; empty: there are no Transfers
}

// Ledger is a running server. It is safe for many goroutines.
type Ledger struct {
	Address string // where it listens

	files  *protoregistry.Files
	server *grpc.Server
	client *grpc.ClientConn // of Transfers; nil: there are none
	served chan struct{}

	mu      sync.Mutex // guards the fields below
	entries []*Entry
	calls   []Call
	behave  func(ctx context.Context, method string) error
}

// Entry is one booking.
type Entry struct {
	ID, Account, Reference string
	Amount                 int64
	Undone                 bool
}

// Call is a request that came: its method without the package, its message as JSON, tx-op and idempotency-key.
type Call struct{ Method, Message, Op, Key string }

// New starts a ledger.
func New(o Options) (*Ledger, error) {
	files, err := protodesc.NewFiles(Descriptors())
	if err != nil {
		return nil, err
	}
	if o.Address == "" {
		o.Address = "127.0.0.1:0"
	}
	l := &Ledger{files: files, served: make(chan struct{}), server: grpc.NewServer(),
		behave: func(context.Context, string) error { return nil }}
	if o.Ledger != "" {
		if l.client, err = Dial(o.Ledger); err != nil {
			return nil, err
		}
	}
	for _, name := range []string{"Ledger", "Mail", "Transfers"} {
		l.register(name)
	}
	served := reflection.ServerOptions{Services: l.server, DescriptorResolver: files}
	switch o.Reflection {
	case V1:
		v1.RegisterServerReflectionServer(l.server, reflection.NewServerV1(served))
	case V1Alpha:
		grpc_reflection_v1alpha.RegisterServerReflectionServer(l.server, reflection.NewServer(served))
	case NoReflection:
	}
	listener, err := net.Listen("tcp", o.Address)
	if err != nil {
		return nil, err
	}
	l.Address = listener.Addr().String()
	go func() {
		defer close(l.served)
		_ = l.server.Serve(listener) // ends with Stop
	}()
	return l, nil
}

// Stop ends the server and its calls at once.
func (l *Ledger) Stop() {
	l.server.Stop()
	<-l.served
	if l.client != nil {
		_ = l.client.Close() // nobody uses it any more
	}
}

// Behave sets what is done before a call is carried out: an error is its answer.
func (l *Ledger) Behave(f func(ctx context.Context, method string) error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.behave = f
}

// Entries are all bookings, in order.
func (l *Ledger) Entries() []Entry {
	l.mu.Lock()
	defer l.mu.Unlock()
	var out []Entry
	for _, e := range l.entries {
		out = append(out, *e)
	}
	return out
}

// Calls are all requests that came, in order.
func (l *Ledger) Calls() []Call {
	l.mu.Lock()
	defer l.mu.Unlock()
	return slices.Clone(l.calls)
}

// Net is what the bookings that stand amount to.
func (l *Ledger) Net() int64 {
	var sum int64
	for _, e := range l.Entries() {
		if !e.Undone {
			sum += e.Amount
		}
	}
	return sum
}

// Dial opens a connection in clear text.
func Dial(address string) (*grpc.ClientConn, error) {
	return grpc.NewClient("passthrough:///"+address, grpc.WithTransportCredentials(insecure.NewCredentials()), grpc.WithDisableRetry())
}

// Method returns a method of package bank.v1 by its name, such as Ledger/Debit.
func Method(files *protoregistry.Files, name string) protoreflect.MethodDescriptor {
	service, method, _ := strings.Cut(name, "/")
	d, err := files.FindDescriptorByName(protoreflect.FullName("bank.v1." + service))
	if err != nil {
		panic(err) // a fault of the test
	}
	return d.(protoreflect.ServiceDescriptor).Methods().ByName(protoreflect.Name(method))
}

// Invoke makes a unary call of package bank.v1 with messages in JSON.
func Invoke(ctx context.Context, conn grpc.ClientConnInterface, method, message string, opts ...grpc.CallOption) (string, error) {
	files, err := protodesc.NewFiles(Descriptors())
	if err != nil {
		return "", err
	}
	m := Method(files, method)
	in, out := dynamicpb.NewMessage(m.Input()), dynamicpb.NewMessage(m.Output())
	if err := protojson.Unmarshal([]byte(message), in); err != nil {
		return "", err
	}
	if err := conn.Invoke(ctx, "/bank.v1."+method, in, out, opts...); err != nil {
		return "", err
	}
	return text(out), nil
}

// text is the message as JSON without the blanks that protojson strews.
func text(m proto.Message) string {
	data, err := protojson.MarshalOptions{UseProtoNames: true}.Marshal(m)
	if err != nil {
		return err.Error()
	}
	return strings.ReplaceAll(strings.ReplaceAll(string(data), ", ", ","), `": `, `":`)
}

func (l *Ledger) register(name string) {
	d, err := l.files.FindDescriptorByName(protoreflect.FullName("bank.v1." + name))
	if err != nil {
		panic(err) // the set has it
	}
	desc := &grpc.ServiceDesc{ServiceName: "bank.v1." + name, Metadata: "ledger.proto"}
	methods := d.(protoreflect.ServiceDescriptor).Methods()
	for i := range methods.Len() {
		m := methods.Get(i)
		if m.IsStreamingServer() {
			desc.Streams = append(desc.Streams, grpc.StreamDesc{StreamName: string(m.Name()), ServerStreams: true, Handler: l.follow})
			continue
		}
		desc.Methods = append(desc.Methods, grpc.MethodDesc{MethodName: string(m.Name()),
			Handler: func(_ any, ctx context.Context, decode func(any) error, _ grpc.UnaryServerInterceptor) (any, error) {
				in := dynamicpb.NewMessage(m.Input())
				if err := decode(in); err != nil {
					return nil, err
				}
				return l.serve(ctx, name+"/"+string(m.Name()), in, dynamicpb.NewMessage(m.Output()))
			}})
	}
	l.server.RegisterService(desc, nil)
}

func (l *Ledger) follow(_ any, stream grpc.ServerStream) error {
	m := Method(l.files, "Ledger/Follow")
	if err := stream.RecvMsg(dynamicpb.NewMessage(m.Input())); err != nil {
		return err
	}
	return errors.Join(stream.SendMsg(dynamicpb.NewMessage(m.Output())), stream.SendMsg(dynamicpb.NewMessage(m.Output())))
}

func value(m *dynamicpb.Message, field string) protoreflect.Value {
	return m.Get(m.Descriptor().Fields().ByName(protoreflect.Name(field)))
}

func (l *Ledger) serve(ctx context.Context, method string, in, out *dynamicpb.Message) (any, error) {
	md, _ := metadata.FromIncomingContext(ctx)
	first := func(name string) string { return strings.Join(md.Get(name), ",") }
	l.mu.Lock()
	l.calls = append(l.calls, Call{Method: method, Message: text(in), Op: first("tx-op"), Key: first("idempotency-key")})
	behave := l.behave
	l.mu.Unlock()
	if err := behave(ctx, method); err != nil {
		return nil, err
	}
	switch method {
	case "Transfers/Transfer":
		return l.transfer(ctx, md, in, out)
	case "Mail/Send":
		proto.Merge(out, in)
		return out, nil
	}
	return l.book(method, in, out)
}

func (l *Ledger) book(method string, in, out *dynamicpb.Message) (any, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	var e *Entry
	switch method {
	case "Ledger/Debit":
		e = &Entry{ID: fmt.Sprintf("e-%d", len(l.entries)+1), Account: value(in, "account").String(),
			Reference: value(in, "reference").String(), Amount: value(in, "amount").Int()}
		l.entries = append(l.entries, e)
	case "Ledger/Undebit", "Ledger/Find":
		e = l.find(func(e *Entry) bool { return e.Reference == value(in, "reference").String() })
	default: // Return and Credit
		e = l.find(func(e *Entry) bool { return e.ID == value(in, "entry_id").String() })
	}
	if e == nil {
		return nil, status.Errorf(codes.NotFound, "%s knows no such entry", method)
	}
	if method != "Ledger/Debit" && method != "Ledger/Find" {
		e.Undone = true
	}
	fields := out.Descriptor().Fields()
	out.Set(fields.ByName("entry_id"), protoreflect.ValueOfString(e.ID))
	out.Set(fields.ByName("amount"), protoreflect.ValueOfInt64(e.Amount))
	out.Set(fields.ByName("kind"), protoreflect.ValueOfEnum(1))
	return out, nil
}

func (l *Ledger) find(is func(*Entry) bool) *Entry {
	for _, e := range l.entries {
		if is(e) {
			return e
		}
	}
	return nil
}

// transfer makes the debits one after the other, and passes baggage on as an instrumented service does.
func (l *Ledger) transfer(ctx context.Context, md metadata.MD, in, out *dynamicpb.Message) (any, error) {
	if l.client == nil {
		return nil, status.Error(codes.Unimplemented, "no ledger is configured")
	}
	for _, name := range []string{"baggage", "traceparent"} {
		for _, v := range md.Get(name) {
			ctx = metadata.AppendToOutgoingContext(ctx, name, v)
		}
	}
	debits := value(in, "debits").List()
	for i := range debits.Len() {
		if err := l.client.Invoke(ctx, "/bank.v1.Ledger/Debit", debits.Get(i).Message().Interface(), out); err != nil {
			return nil, err
		}
	}
	if value(in, "fail").Bool() {
		return nil, status.Error(codes.FailedPrecondition, "the transfer was asked to fail")
	}
	return out, nil
}
