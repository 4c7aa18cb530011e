package outbound

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/jhump/protoreflect/v2/grpcreflect"
	"google.golang.org/grpc"
	"google.golang.org/protobuf/reflect/protodesc"
	"google.golang.org/protobuf/reflect/protoreflect"
	"google.golang.org/protobuf/types/descriptorpb"

	"txmesh/interceptor"
	"txmesh/policies"
)

// How long what a service said about its types is used without asking again, how soon a service that did not answer is
// asked again, and how long it may take.
const (
	describedFor   = time.Minute
	describedAgain = 5 * time.Second
	reflectMax     = 5 * time.Second
)

// Reflection asks services for the types of their messages, by gRPC's own reflection. It implements interceptor.Types and
// keeps what it was told; a service that has answered once may be away later. It is safe for many goroutines.
type Reflection struct {
	services grpcConns
	app      *App
	now      func() time.Time

	mu    sync.Mutex // guards known
	known map[string]*description
}

var _ interceptor.Types = (*Reflection)(nil)

// description is a rule with its types. mu is held while the service is asked.
type description struct {
	mu    sync.Mutex // guards the fields below
	until time.Time
	call  *policies.Call
	start *policies.Start
}

// NewReflection asks services over the connections of the caller, and the application over those of the app.
func NewReflection(c *Caller, a *App) *Reflection {
	return &Reflection{services: c.grpc, app: a, now: c.opt.Now, known: map[string]*description{}}
}

// Call implements interceptor.Types.
func (r *Reflection) Call(ctx context.Context, endpoint string, rule *policies.Call) (*policies.Call, error) {
	d := r.description("call " + endpoint + " " + rule.Policy + "/" + rule.Name + "@" + rule.Document)
	d.mu.Lock()
	defer d.mu.Unlock()
	if r.now().Before(d.until) {
		return d.call, nil
	}
	set, err := describe(ctx, r.services, endpoint, rule.Undescribed())
	switch {
	case err != nil && d.call != nil:
		d.until = r.now().Add(describedAgain)
		return d.call, nil
	case err != nil:
		return nil, err
	}
	call, err := rule.Describe(set)
	if err != nil {
		return nil, err
	}
	d.call, d.until = call, r.now().Add(describedFor)
	return call, nil
}

// Start implements interceptor.Types.
func (r *Reflection) Start(ctx context.Context, rule *policies.Start) (*policies.Start, error) {
	d := r.description("start " + rule.Policy + "/" + rule.Name + "@" + rule.Document)
	d.mu.Lock()
	defer d.mu.Unlock()
	if r.now().Before(d.until) {
		return d.start, nil
	}
	set, err := describe(ctx, r.app.grpc, r.app.address, rule.Undescribed())
	switch {
	case err != nil && d.start != nil:
		d.until = r.now().Add(describedAgain)
		return d.start, nil
	case err != nil:
		return nil, err
	}
	start, err := rule.Describe(set)
	if err != nil {
		return nil, err
	}
	d.start, d.until = start, r.now().Add(describedFor)
	return start, nil
}

func (r *Reflection) description(key string) *description {
	r.mu.Lock()
	defer r.mu.Unlock()
	d := r.known[key]
	if d == nil {
		if len(r.known) >= rulesMax {
			clear(r.known)
		}
		d = &description{}
		r.known[key] = d
	}
	return d
}

// describe asks an endpoint for the files that define services, and for all that those import.
func describe(ctx context.Context, conns grpcConns, endpoint string, services []string) (*descriptorpb.FileDescriptorSet, error) {
	conn, err := conns.conn("http", endpoint)
	if err != nil {
		return nil, fmt.Errorf("ask %s for its types: %w", endpoint, err)
	}
	ctx, cancel := context.WithTimeout(ctx, reflectMax)
	defer cancel()
	files, err := filesOf(ctx, roomy{conn}, services)
	if err != nil {
		return nil, fmt.Errorf("ask %s for the types of %s: %w", endpoint, strings.Join(services, " and "), err)
	}
	return files, nil
}

// roomy takes descriptors that are larger than the answers of calls may be.
type roomy struct{ *grpc.ClientConn }

const reflectBytesMax = 4 << 20

// NewStream implements grpc.ClientConnInterface; reflection is a stream.
func (r roomy) NewStream(ctx context.Context, desc *grpc.StreamDesc, method string, opts ...grpc.CallOption) (grpc.ClientStream, error) {
	return r.ClientConn.NewStream(ctx, desc, method, append(opts, grpc.MaxCallRecvMsgSize(reflectBytesMax))...)
}

func filesOf(ctx context.Context, conn grpc.ClientConnInterface, services []string) (*descriptorpb.FileDescriptorSet, error) {
	client := grpcreflect.NewClientAuto(ctx, conn)
	defer client.Reset()
	found := map[string]*descriptorpb.FileDescriptorProto{}
	var add func(f protoreflect.FileDescriptor) error
	add = func(f protoreflect.FileDescriptor) error {
		if f.IsPlaceholder() {
			return errors.New("it does not give " + f.Path())
		}
		if found[f.Path()] != nil {
			return nil
		}
		found[f.Path()] = protodesc.ToFileDescriptorProto(f)
		for i := range f.Imports().Len() {
			if err := add(f.Imports().Get(i).FileDescriptor); err != nil {
				return err
			}
		}
		return nil
	}
	for _, s := range services {
		f, err := client.FileContainingSymbol(protoreflect.FullName(s))
		if err != nil {
			return nil, err
		}
		if err := add(f); err != nil {
			return nil, err
		}
	}
	set := &descriptorpb.FileDescriptorSet{}
	for _, f := range found {
		set.File = append(set.File, f)
	}
	// In this order equal answers make equal documents.
	slices.SortFunc(set.File, func(a, b *descriptorpb.FileDescriptorProto) int { return strings.Compare(a.GetName(), b.GetName()) })
	return set, nil
}
