package conformance

import (
	"context"
	"net"
	"testing"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/interop"
	testgrpc "google.golang.org/grpc/interop/grpc_testing"

	"txmesh/interceptor/proxy"
)

// TestGRPCInterop plays the standard cases of gRPC through the sidecar of the client and that of the server.
func TestGRPCInterop(t *testing.T) {
	address := throughTwo(t, grpcServer(t))
	conn, err := grpc.NewClient("passthrough:///"+address, grpc.WithTransportCredentials(insecure.NewCredentials()))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := conn.Close(); err != nil {
			t.Error(err)
		}
	})
	client := testgrpc.NewTestServiceClient(conn)
	for _, c := range []struct {
		name string
		play func(ctx context.Context)
	}{
		{"empty unary", func(ctx context.Context) { interop.DoEmptyUnaryCall(ctx, client) }},
		{"large unary", func(ctx context.Context) { interop.DoLargeUnaryCall(ctx, client) }},
		{"client streaming", func(ctx context.Context) { interop.DoClientStreaming(ctx, client) }},
		{"server streaming", func(ctx context.Context) { interop.DoServerStreaming(ctx, client) }},
		{"ping pong", func(ctx context.Context) { interop.DoPingPong(ctx, client) }},
		{"empty stream", func(ctx context.Context) { interop.DoEmptyStream(ctx, client) }},
		{"timeout on sleeping server", func(ctx context.Context) { interop.DoTimeoutOnSleepingServer(ctx, client) }},
		{"cancel after begin", func(ctx context.Context) { interop.DoCancelAfterBegin(ctx, client) }},
		{"cancel after first response", func(ctx context.Context) { interop.DoCancelAfterFirstResponse(ctx, client) }},
		{"custom metadata", func(ctx context.Context) { interop.DoCustomMetadata(ctx, client) }},
		{"status code and message", func(ctx context.Context) { interop.DoStatusCodeAndMessage(ctx, client) }},
		{"special status message", func(ctx context.Context) { interop.DoSpecialStatusMessage(ctx, client) }},
		{"unimplemented method", func(ctx context.Context) { interop.DoUnimplementedMethod(ctx, conn) }},
		{"unimplemented service", func(ctx context.Context) {
			interop.DoUnimplementedService(ctx, testgrpc.NewUnimplementedServiceClient(conn))
		}},
	} {
		t.Run(c.name, func(t *testing.T) {
			ctx, cancel := context.WithTimeout(t.Context(), 20*time.Second)
			defer cancel()
			c.play(ctx) // it ends the process with a message if it fails
		})
	}
}

func grpcServer(t *testing.T) string {
	srv := grpc.NewServer()
	testgrpc.RegisterTestServiceServer(srv, interop.NewTestServer())
	l := listen(t)
	go func() {
		if err := srv.Serve(l); err != nil {
			t.Error(err)
		}
	}()
	t.Cleanup(srv.Stop)
	return l.Addr().String()
}

func listen(t *testing.T) net.Listener {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	return l
}

// served is what all three proxies have.
type served interface {
	Serve(net.Listener) error
	Shutdown(context.Context) error
}

func serve(t *testing.T, p served, err error) string {
	if err != nil {
		t.Fatal(err)
	}
	l := listen(t)
	done := make(chan error, 1)
	go func() { done <- p.Serve(l) }()
	t.Cleanup(func() {
		ctx, cancel := context.WithTimeout(context.Background(), 5*time.Second)
		defer cancel()
		if err := p.Shutdown(ctx); err != nil {
			t.Error(err)
		}
		if err := <-done; err != nil {
			t.Error(err)
		}
	})
	return l.Addr().String()
}

func throughOne(t *testing.T, server string) string {
	in, err := proxy.NewInbound(proxy.Options{}, "test/callee", server)
	return serve(t, in, err)
}

func throughTwo(t *testing.T, server string) string {
	up, err := proxy.NewUpstream(proxy.Options{}, "test/callee", []string{throughOne(t, server)})
	return serve(t, up, err)
}
