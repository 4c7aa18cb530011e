package policies

import (
	"bytes"
	"compress/gzip"
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"regexp"
	"slices"
	"strings"

	"google.golang.org/protobuf/encoding/protojson"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/reflect/protodesc"
	"google.golang.org/protobuf/reflect/protoreflect"
	"google.golang.org/protobuf/reflect/protoregistry"
	"google.golang.org/protobuf/types/descriptorpb"
	"google.golang.org/protobuf/types/dynamicpb"
	"google.golang.org/protobuf/types/known/anypb"
	"google.golang.org/protobuf/types/known/durationpb"
	"google.golang.org/protobuf/types/known/emptypb"
	"google.golang.org/protobuf/types/known/fieldmaskpb"
	"google.golang.org/protobuf/types/known/structpb"
	"google.golang.org/protobuf/types/known/timestamppb"
	"google.golang.org/protobuf/types/known/wrapperspb"
)

// A message of protobuf is a value as JSON has it: fields by the names of the .proto file, whole numbers of every size
// as numbers, enums by name, bytes in base64, the well-known types as protojson writes them. Fields without presence are
// there with their default.

// schema is the services and messages that a descriptor set describes. It never changes.
type schema struct {
	files    *protoregistry.Files
	resolver *dynamicpb.Types
}

// method is a method of gRPC that a rule names.
type method struct {
	name string // pkg.Service/Method, or pkg.Service/*
	desc protoreflect.MethodDescriptor
	from *schema // nil, as desc: its messages are not described
}

// messageType is the type of a message, and what it needs to be read.
type messageType struct {
	desc protoreflect.MessageDescriptor
	from *schema
}

var (
	grpcMethodForm  = regexp.MustCompile(`^[A-Za-z_][A-Za-z0-9_]*(\.[A-Za-z_][A-Za-z0-9_]*)*/[A-Za-z_][A-Za-z0-9_]*$`)
	grpcServiceForm = regexp.MustCompile(`^[A-Za-z_][A-Za-z0-9_]*(\.[A-Za-z_][A-Za-z0-9_]*)*/\*$`)
)

// pattern matches the path of the method, or of every method of its service as path.method.
func (m *method) pattern() *pattern {
	p := &pattern{text: m.path(), segments: []segment{{literal: m.service()}, {name: "method"}}}
	if !m.isAny() {
		_, last, _ := strings.Cut(m.name, "/")
		p.segments[1] = segment{literal: last}
	}
	return p
}

func (m *method) path() string { return "/" + m.name }

// isAny says that every method of the service is meant.
func (m *method) isAny() bool { return strings.HasSuffix(m.name, "/*") }

func (m *method) service() string {
	service, _, _ := strings.Cut(m.name, "/")
	return service
}

// input is the type of the request; nil: not known.
func (m *method) input() *messageType {
	if m == nil || m.desc == nil {
		return nil
	}
	return &messageType{m.desc.Input(), m.from}
}

// output is the type of the answer; nil: not known.
func (m *method) output() *messageType {
	if m == nil || m.desc == nil {
		return nil
	}
	return &messageType{m.desc.Output(), m.from}
}

// readTypes reads a descriptor set in base64, with or without gzip.
func readTypes(text string) (*schema, error) {
	data, err := base64.StdEncoding.DecodeString(strings.Join(strings.Fields(text), ""))
	if err != nil {
		return nil, fmt.Errorf("not base64: %w", err)
	}
	if bytes.HasPrefix(data, []byte{0x1f, 0x8b}) {
		z, err := gzip.NewReader(bytes.NewReader(data))
		if err != nil {
			return nil, fmt.Errorf("gunzip: %w", err)
		}
		if data, err = readInflated(z); err != nil {
			return nil, err
		}
	}
	var set descriptorpb.FileDescriptorSet
	if err := proto.Unmarshal(data, &set); err != nil {
		return nil, fmt.Errorf("not a FileDescriptorSet: %s", plainProto(err))
	}
	if len(set.GetFile()) == 0 {
		return nil, errors.New("the descriptor set is empty")
	}
	return newTypes(&set)
}

func newTypes(set *descriptorpb.FileDescriptorSet) (*schema, error) {
	there := map[string]bool{}
	for _, f := range set.GetFile() {
		there[f.GetName()] = true
	}
	for _, f := range wellKnown() {
		if !there[f.Path()] {
			set.File = append(set.File, protodesc.ToFileDescriptorProto(f))
		}
	}
	files, err := protodesc.NewFiles(set)
	if err != nil {
		return nil, fmt.Errorf("%s; a set must have all that it imports (protoc --include_imports)", plainProto(err))
	}
	return &schema{files: files, resolver: dynamicpb.NewTypes(files)}, nil
}

// wellKnown are the files that compilers of descriptor sets may leave out.
func wellKnown() []protoreflect.FileDescriptor {
	return []protoreflect.FileDescriptor{
		anypb.File_google_protobuf_any_proto, durationpb.File_google_protobuf_duration_proto,
		emptypb.File_google_protobuf_empty_proto, fieldmaskpb.File_google_protobuf_field_mask_proto,
		structpb.File_google_protobuf_struct_proto, timestamppb.File_google_protobuf_timestamp_proto,
		wrapperspb.File_google_protobuf_wrappers_proto,
	}
}

// plainProto is the error without the blanks by which protobuf keeps people from comparing its texts.
func plainProto(err error) string {
	return strings.TrimPrefix(strings.ReplaceAll(err.Error(), "\u00a0", " "), "proto: ")
}

// method finds a method, which must be unary. pkg.Service/* stands for all of a service.
func (t *schema) method(name string) (*method, error) {
	m := &method{name: name, from: t}
	_, last, _ := strings.Cut(name, "/")
	d, err := t.files.FindDescriptorByName(protoreflect.FullName(m.service()))
	service, ok := d.(protoreflect.ServiceDescriptor)
	if err != nil || !ok {
		return nil, fmt.Errorf("the descriptors have no service %s", m.service())
	}
	methods := service.Methods()
	if !m.isAny() {
		m.desc = methods.ByName(protoreflect.Name(last))
		if m.desc == nil {
			return nil, fmt.Errorf("service %s has no method %q%s", m.service(), last, didYouMean(last, methodNames(methods)))
		}
		if streams(m.desc) {
			return nil, fmt.Errorf("%s streams, and only a unary call can be part of a transaction", name)
		}
		return m, nil
	}
	for i := range methods.Len() {
		if streams(methods.Get(i)) {
			return nil, fmt.Errorf("%s means %s too, which streams; name the methods one by one", name, methods.Get(i).Name())
		}
	}
	return m, nil
}

func streams(m protoreflect.MethodDescriptor) bool {
	return m.IsStreamingClient() || m.IsStreamingServer()
}

func methodNames(ms protoreflect.MethodDescriptors) []string {
	var out []string
	for i := range ms.Len() {
		out = append(out, string(ms.Get(i).Name()))
	}
	return out
}

// fieldOf finds a field by its name in the .proto file, or an error that says what is there.
func fieldOf(d protoreflect.MessageDescriptor, name string) (protoreflect.FieldDescriptor, error) {
	if f := d.Fields().ByName(protoreflect.Name(name)); f != nil {
		return f, nil
	}
	var known []string
	for i := range d.Fields().Len() {
		known = append(known, string(d.Fields().Get(i).Name()))
	}
	if len(known) == 0 {
		return nil, fmt.Errorf("message %s has no fields", d.FullName())
	}
	return nil, fmt.Errorf("message %s has no field %q%s", d.FullName(), name, didYouMean(name, known))
}

// isSpecial says that JSON has a form of its own for the message.
func isSpecial(d protoreflect.MessageDescriptor) bool {
	return d.ParentFile().Package() == "google.protobuf"
}

// check follows a path into a message as far as its types go.
func (t *messageType) check(p path) error {
	d := t.desc
	for i := 0; i < len(p) && !isSpecial(d); i++ {
		name, ok := p[i].(string)
		if !ok {
			return fmt.Errorf("message %s is no list", d.FullName())
		}
		f, err := fieldOf(d, name)
		if err != nil {
			return err
		}
		if f.IsMap() {
			return nil
		}
		if f.IsList() && i+1 < len(p) {
			i++
			if _, ok := p[i].(int); !ok {
				return fmt.Errorf("field %s of %s is a list; write %s[0]", name, d.FullName(), name)
			}
		}
		if f.Message() == nil {
			if i+1 < len(p) {
				return fmt.Errorf("field %s of %s is a single value", name, d.FullName())
			}
			return nil
		}
		d = f.Message()
	}
	return nil
}

// value reads a message.
func (t *messageType) value(data []byte) (any, error) {
	m := dynamicpb.NewMessage(t.desc)
	if err := (proto.UnmarshalOptions{Resolver: t.from.resolver}).Unmarshal(data, m); err != nil {
		return nil, fmt.Errorf("not a %s: %s", t.desc.FullName(), plainProto(err))
	}
	text, err := protojson.MarshalOptions{UseProtoNames: true, EmitDefaultValues: true, Resolver: t.from.resolver}.Marshal(m)
	if err != nil {
		return nil, fmt.Errorf("read %s: %s", t.desc.FullName(), plainProto(err))
	}
	v, err := decodeJSON(text)
	if err != nil {
		return nil, fmt.Errorf("read %s: %w", t.desc.FullName(), err)
	}
	return exact(v, t.desc), nil
}

// exact makes numbers of the whole numbers of 64 bits, which protojson writes as text.
func exact(v any, d protoreflect.MessageDescriptor) any {
	switch d.FullName() {
	case "google.protobuf.Int64Value", "google.protobuf.UInt64Value":
		return exactNumber(v)
	}
	fields, ok := v.(map[string]any)
	if !ok || isSpecial(d) {
		return v
	}
	for name, e := range fields {
		f := d.Fields().ByName(protoreflect.Name(name))
		switch {
		case f == nil: // an extension
		case f.IsMap():
			entries, _ := e.(map[string]any)
			for k, item := range entries {
				entries[k] = exactField(item, f.MapValue())
			}
		case f.IsList():
			items, _ := e.([]any)
			for i, item := range items {
				items[i] = exactField(item, f)
			}
		default:
			fields[name] = exactField(e, f)
		}
	}
	return fields
}

func exactField(v any, f protoreflect.FieldDescriptor) any {
	switch f.Kind() {
	case protoreflect.Int64Kind, protoreflect.Sint64Kind, protoreflect.Sfixed64Kind, protoreflect.Uint64Kind, protoreflect.Fixed64Kind:
		return exactNumber(v)
	case protoreflect.MessageKind, protoreflect.GroupKind:
		return exact(v, f.Message())
	default:
		return v
	}
}

func exactNumber(v any) any {
	if s, ok := v.(string); ok && wholeNumber.MatchString(s) {
		return json.Number(s)
	}
	return v
}

// build makes a message of a value. Equal values give equal bytes.
func (t *messageType) build(v any) ([]byte, error) {
	text, err := encodeJSON(v)
	if err != nil {
		return nil, err
	}
	m := dynamicpb.NewMessage(t.desc)
	if err := (protojson.UnmarshalOptions{Resolver: t.from.resolver}).Unmarshal(text, m); err != nil {
		return nil, fmt.Errorf("not a %s: %s", t.desc.FullName(), plainProto(err))
	}
	return proto.MarshalOptions{Deterministic: true}.Marshal(m)
}

// checkShape holds a body against the message that it becomes.
func (c *compiler) checkShape(n *node, d protoreflect.MessageDescriptor, what string) {
	if n.kind != mapping || isSpecial(d) {
		return
	}
	for _, e := range n.entries {
		f := d.Fields().ByJSONName(e.key)
		if f == nil {
			var err error
			if f, err = fieldOf(d, e.key); err != nil {
				c.fault(e.at, codeMessage, "%s: %v", what, err)
				continue
			}
		}
		if f.Message() == nil || f.IsMap() {
			continue
		}
		for _, item := range slices.Concat(e.value.items, []*node{e.value}) {
			c.checkShape(item, f.Message(), what+"."+e.key)
		}
	}
}
