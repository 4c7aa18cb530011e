package outbound

import (
	"context"
	"crypto/tls"
	"encoding/base64"
	"errors"
	"fmt"
	"net"
	"net/http"
	"net/url"
	"strconv"
	"strings"
	"sync"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/backoff"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/metadata"
	grpcstatus "google.golang.org/grpc/status"

	"txmesh/interceptor"
	"txmesh/policies"
)

// redialMax bounds the pause between two tries to reach a server of gRPC. Until it is over calls fail at once, and the
// engine's own pace is the one that counts.
const redialMax = time.Second

// grpcConns keeps one connection to each server of gRPC.
type grpcConns struct {
	dial    func(ctx context.Context, scheme, endpoint string) (net.Conn, error)
	bodyMax int

	mu     *sync.Mutex // guards byHost
	byHost map[string]*grpc.ClientConn
}

func newGRPCConns(t *transport) grpcConns {
	return grpcConns{dial: t.openRaw, bodyMax: t.bodyMax, mu: new(sync.Mutex), byHost: map[string]*grpc.ClientConn{}}
}

// call makes one unary call whose bytes are nobody's business here.
func (g grpcConns) call(ctx context.Context, d *interceptor.Direct) interceptor.DirectAnswer {
	host, method, ok := strings.Cut(d.URL, "/")
	if !ok || host == "" || !strings.Contains(method, "/") {
		return interceptor.DirectAnswer{Err: fmt.Errorf("%w: url %q: want host:port/package.Service/Method", errForbidden, d.URL)}
	}
	conn, err := g.conn("http", host)
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

// isGRPC reports whether a request is one of gRPC.
func isGRPC(h http.Header) bool { return policies.IsGRPC(h.Get("Content-Type")) }

// send makes the call of a rule: its body is the one message, and the answer comes back as it was on the wire. An error
// means that the call may have arrived or not.
func (g grpcConns) send(ctx context.Context, scheme, endpoint string, o *interceptor.Outgoing) (*interceptor.Reply, error) {
	conn, err := g.conn(scheme, endpoint)
	if err != nil {
		return nil, fmt.Errorf("%w: %s: %w", errForbidden, endpoint, err)
	}
	message, err := policies.UnaryMessage(o.Body, o.Header.Get("Grpc-Encoding"))
	if err != nil {
		return nil, fmt.Errorf("%w: %s at %s: %w", errForbidden, o.Path, endpoint, err)
	}
	var out []byte
	var header, trailer metadata.MD
	opts := []grpc.CallOption{grpc.ForceCodec(rawBytes{}), grpc.Header(&header), grpc.Trailer(&trailer)}
	if o.Host != "" {
		opts = append(opts, grpc.CallAuthority(o.Host))
	}
	err = conn.Invoke(metadata.NewOutgoingContext(ctx, outgoingMetadata(o.Header)), o.Path, message, &out, opts...)
	s, isStatus := grpcstatus.FromError(err)
	if err != nil && (!isStatus || len(header) == 0 && len(trailer) == 0) {
		// No server has said this.
		return nil, fmt.Errorf("gRPC %s at %s: %s", strings.TrimPrefix(o.Path, "/"), endpoint, s.Message())
	}
	reply := &interceptor.Reply{Status: http.StatusOK, Header: headerOfMetadata(header), Trailer: headerOfMetadata(trailer)}
	reply.Header.Set("Content-Type", "application/grpc")
	reply.Trailer.Set("Grpc-Status", strconv.Itoa(int(s.Code())))
	if s.Message() != "" {
		reply.Trailer.Set("Grpc-Message", url.PathEscape(s.Message()))
	}
	if s.Code() == codes.OK {
		reply.Body = policies.UnaryBody(out)
	}
	return reply, nil
}

// outgoingMetadata leaves out what the client of gRPC says itself. Binary values travel in base64, and are bytes here.
func outgoingMetadata(h http.Header) metadata.MD {
	md := metadata.MD{}
	for name, values := range h {
		name = strings.ToLower(name)
		switch name {
		case "content-type", "content-length", "te", "grpc-encoding", "grpc-timeout", "user-agent":
			continue
		}
		for _, v := range values {
			if strings.HasSuffix(name, "-bin") {
				if raw, err := base64.RawStdEncoding.DecodeString(strings.TrimRight(v, "=")); err == nil {
					v = string(raw)
				}
			}
			md.Append(name, v)
		}
	}
	return md
}

func headerOfMetadata(md metadata.MD) http.Header {
	h := http.Header{}
	for name, values := range md {
		for _, v := range values {
			if strings.HasSuffix(name, "-bin") {
				v = base64.RawStdEncoding.EncodeToString([]byte(v))
			}
			h.Add(name, v)
		}
	}
	return h
}

func (g grpcConns) conn(scheme, host string) (*grpc.ClientConn, error) {
	g.mu.Lock()
	defer g.mu.Unlock()
	key := scheme + "://" + host
	if conn := g.byHost[key]; conn != nil {
		return conn, nil
	}
	if len(g.byHost) >= endpointsMax {
		g.closeAll()
	}
	creds := insecure.NewCredentials()
	if scheme == "https" {
		creds = credentials.NewTLS(&tls.Config{MinVersion: tls.VersionTLS12})
	}
	pace := backoff.DefaultConfig
	pace.BaseDelay, pace.MaxDelay = redialMax/10, redialMax
	conn, err := grpc.NewClient("passthrough:///"+host, grpc.WithTransportCredentials(creds), grpc.WithDisableRetry(),
		grpc.WithDefaultCallOptions(grpc.MaxCallRecvMsgSize(g.bodyMax)), grpc.WithUserAgent("txmesh-sidecar"),
		grpc.WithConnectParams(grpc.ConnectParams{Backoff: pace, MinConnectTimeout: dialMax}),
		grpc.WithContextDialer(func(ctx context.Context, endpoint string) (net.Conn, error) { return g.dial(ctx, scheme, endpoint) }))
	if err != nil {
		return nil, err
	}
	g.byHost[key] = conn
	return conn, nil
}

// close ends the calls that run with an error; later ones get connections of their own.
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
