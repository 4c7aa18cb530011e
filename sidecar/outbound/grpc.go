package outbound

import (
	"context"
	"errors"
	"fmt"
	"net"
	"strings"
	"sync"

	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/metadata"
	grpcstatus "google.golang.org/grpc/status"

	"txmesh/interceptor"
)

// grpcConns keeps one connection to each server of gRPC.
type grpcConns struct {
	dial    *net.Dialer
	bodyMax int

	mu     *sync.Mutex // guards byHost
	byHost map[string]*grpc.ClientConn
}

func newGRPCConns(dial *net.Dialer, bodyMax int) grpcConns {
	return grpcConns{dial: dial, bodyMax: bodyMax, mu: new(sync.Mutex), byHost: map[string]*grpc.ClientConn{}}
}

// call makes one unary call whose bytes are nobody's business here.
func (g grpcConns) call(ctx context.Context, d *interceptor.Direct) interceptor.DirectAnswer {
	host, method, ok := strings.Cut(d.URL, "/")
	if !ok || host == "" || !strings.Contains(method, "/") {
		return interceptor.DirectAnswer{Err: fmt.Errorf("%w: url %q: want host:port/package.Service/Method", errForbidden, d.URL)}
	}
	conn, err := g.conn(host)
	if err != nil {
		return interceptor.DirectAnswer{Err: fmt.Errorf("%w: url %q: %w", errForbidden, d.URL, err)}
	}
	md := metadata.MD{}
	for name, values := range d.Header {
		md.Append(name, values...)
	}
	var out []byte
	err = conn.Invoke(metadata.NewOutgoingContext(ctx, md), "/"+method, d.Body, &out, grpc.ForceCodec(rawBytes{}))
	s, isStatus := grpcstatus.FromError(err)
	if err != nil && !isStatus {
		return interceptor.DirectAnswer{Err: err}
	}
	return interceptor.DirectAnswer{Reply: &interceptor.Reply{Body: out}, Code: uint32(s.Code()), Message: s.Message()}
}

func (g grpcConns) conn(host string) (*grpc.ClientConn, error) {
	g.mu.Lock()
	defer g.mu.Unlock()
	if conn := g.byHost[host]; conn != nil {
		return conn, nil
	}
	if len(g.byHost) >= endpointsMax {
		g.closeAll()
	}
	conn, err := grpc.NewClient("passthrough:///"+host, grpc.WithTransportCredentials(insecure.NewCredentials()),
		grpc.WithDisableRetry(), grpc.WithDefaultCallOptions(grpc.MaxCallRecvMsgSize(g.bodyMax)),
		grpc.WithContextDialer(func(ctx context.Context, address string) (net.Conn, error) {
			return g.dial.DialContext(ctx, "tcp", address)
		}))
	if err != nil {
		return nil, err
	}
	g.byHost[host] = conn
	return conn, nil
}

func (g grpcConns) close() {
	g.mu.Lock()
	defer g.mu.Unlock()
	g.closeAll()
}

func (g grpcConns) closeAll() {
	for host, conn := range g.byHost {
		// What it carries ends as unknown, which the engine repeats.
		_ = conn.Close()
		delete(g.byHost, host)
	}
}

// rawBytes is a codec that knows no types. Without a name the content type is plain application/grpc.
type rawBytes struct{}

func (rawBytes) Name() string { return "" }

func (rawBytes) Marshal(v any) ([]byte, error) {
	b, ok := v.([]byte)
	if !ok {
		return nil, errors.New("not bytes")
	}
	return b, nil
}

func (rawBytes) Unmarshal(data []byte, v any) error {
	b, ok := v.(*[]byte)
	if !ok {
		return errors.New("not bytes")
	}
	*b = append([]byte(nil), data...)
	return nil
}
