package xds

import (
	"fmt"

	"google.golang.org/grpc/encoding/proto"
	"google.golang.org/grpc/mem"
	pb "google.golang.org/protobuf/proto"
)

// codec is that of gRPC, but what it encodes is as large as it is. gRPC's own takes 1 MiB for each response above 32 KiB,
// and hundreds are under way when a whole mesh comes back.
type codec struct{}

// Marshal implements encoding.CodecV2.
func (codec) Marshal(v any) (mem.BufferSlice, error) {
	m, ok := v.(pb.Message)
	if !ok {
		return nil, fmt.Errorf("encode %T: not a message", v)
	}
	b, err := pb.Marshal(m)
	if err != nil {
		return nil, fmt.Errorf("encode %T: %w", v, err)
	}
	return mem.BufferSlice{mem.SliceBuffer(b)}, nil
}

// Unmarshal implements encoding.CodecV2.
func (codec) Unmarshal(data mem.BufferSlice, v any) error {
	m, ok := v.(pb.Message)
	if !ok {
		return fmt.Errorf("decode %T: not a message", v)
	}
	b := data.MaterializeToBuffer(mem.DefaultBufferPool())
	defer b.Free()
	return pb.Unmarshal(b.ReadOnlyData(), m)
}

// Name implements encoding.CodecV2.
func (codec) Name() string { return proto.Name }
