package load

import (
	"bufio"
	"bytes"
	"context"
	"fmt"
	"io"
	"net"
	"net/http"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	rpc "google.golang.org/grpc"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/protobuf/types/known/wrapperspb"

	"txmesh/benchmarks/load/echo"
)

func listen(t testing.TB) net.Listener {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { l.Close() })
	return l
}

func start(t testing.TB, serve func(net.Listener) error) string {
	l := listen(t)
	go func() { _ = serve(l) }() // until the listener is closed
	return l.Addr().String()
}

type dialer func(context.Context, int) (Caller, error)

// five is a run of five calls, however slow the machine is.
func five(t *testing.T, dial dialer, grace time.Duration) *Result {
	t.Helper()
	r, err := Run(t.Context(), Options{Dial: dial, Conns: 1, Rate: 100, For: 50 * time.Millisecond, Grace: grace})
	if err != nil {
		t.Fatal(err)
	}
	if r.Sent != 5 {
		t.Fatalf("sent %d, want 5", r.Sent)
	}
	return r
}

// Each server is one that we did not write, and ours.
func TestAllBytesComeBack(t *testing.T) {
	plain := &http.Server{Handler: http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		body, err := io.ReadAll(r.Body)
		if err != nil {
			panic(err)
		}
		w.Header().Set("Content-Length", fmt.Sprint(len(body)))
		_, _ = w.Write(body) // the client says what it misses
	})}
	t.Cleanup(func() { _ = plain.Close() }) // its listener is closed by then
	for name, serve := range map[string]func(net.Listener) error{"our HTTP/1": echo.HTTP1, "net/http": plain.Serve} {
		address := start(t, serve)
		for _, size := range []int{8, 1 << 10, 64 << 10} {
			t.Run(fmt.Sprintf("%s %d", name, size), func(t *testing.T) { allRight(t, HTTP1{Address: address, Path: "/x", Body: size}.Dial) })
		}
	}
	for name, serve := range map[string]func(net.Listener) error{"our gRPC": echo.GRPC, "grpc-go": grpcGo(t)} {
		address := start(t, serve)
		for _, size := range []int{8, 1 << 10, 64 << 10, 500 << 10} {
			t.Run(fmt.Sprintf("%s %d", name, size), func(t *testing.T) { allRight(t, GRPC{Address: address, Path: "/bench.Echo/Call", Body: size}.Dial) })
		}
	}
}

func allRight(t *testing.T, dial dialer) {
	t.Helper()
	var all sync.WaitGroup
	for conn := range 5 {
		all.Go(func() {
			c, err := dial(t.Context(), conn)
			if err != nil {
				t.Error(err)
				return
			}
			defer func() { _ = c.Close() }() // the calls have told what there was
			for range 40 {
				if err := c.Call(); err != nil {
					t.Error(err)
					return
				}
			}
		})
	}
	all.Wait()
}

// grpcGo echoes any unary call, without knowing the message.
func grpcGo(t *testing.T) func(net.Listener) error {
	s := rpc.NewServer(rpc.UnknownServiceHandler(func(_ any, stream rpc.ServerStream) error {
		var m wrapperspb.BytesValue
		if err := stream.RecvMsg(&m); err != nil {
			return err
		}
		return stream.SendMsg(&m)
	}))
	t.Cleanup(s.Stop)
	return s.Serve
}

// A client that we did not write, many calls at once on one connection, as proxies do.
func TestEchoServesGRPCClients(t *testing.T) {
	c, err := rpc.NewClient(start(t, echo.GRPC), rpc.WithTransportCredentials(insecure.NewCredentials()))
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = c.Close() }() // all calls have ended
	errs := make(chan error)
	for i := range 50 {
		go func() {
			in, out := wrapperspb.Bytes(bytes.Repeat([]byte{byte(i)}, 100_000)), &wrapperspb.BytesValue{}
			err := c.Invoke(t.Context(), "/a/b", in, out)
			if err == nil && !bytes.Equal(in.Value, out.Value) {
				err = fmt.Errorf("call %d got another's answer", i)
			}
			errs <- err
		}()
	}
	for range 50 {
		if err := <-errs; err != nil {
			t.Error(err)
		}
	}
}

// Faulty servers, and under which name their faults are counted.
func TestFaultsAreNamed(t *testing.T) {
	for _, tt := range []struct {
		name, answer string
		want         string
	}{
		{"another body", "HTTP/1.1 200 OK\r\nContent-Length: 16\r\n\r\naaaaaaaaaaaaaaaa", string(errBody)},
		{"short body", "HTTP/1.1 200 OK\r\nContent-Length: 15\r\n\r\naaaaaaaaaaaaaaa", "answer's body has 15 bytes, want 16"},
		{"refusal", "HTTP/1.1 503 Service Unavailable\r\nContent-Length: 0\r\n\r\n", "status 503"},
		{"chunks", "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n", "answer has a Transfer-Encoding"},
		{"two lengths", "HTTP/1.1 200 OK\r\nContent-Length: 16\r\nContent-Length: 16\r\n\r\naaaaaaaaaaaaaaaa", "answer has two Content-Lengths"},
		{"broken off", "HTTP/1.1 200 OK\r\nContent-", "connection closed by the other side"},
		{"another protocol", "\x00\x00\x12\x04\x00\x00\x00\x00\x00\r\n\r\n", "answer does not begin with a status line of HTTP/1.1"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			address := start(t, func(l net.Listener) error {
				for {
					c, err := l.Accept()
					if err != nil {
						return err
					}
					_, _ = http.ReadRequest(bufio.NewReader(c)) // whatever was asked
					_, _ = io.WriteString(c, tt.answer)
					_ = c.(*net.TCPConn).CloseWrite()
					go func() { _, _ = io.Copy(io.Discard, c); c.Close() }()
				}
			})
			r := five(t, HTTP1{Address: address, Path: "/", Body: 16}.Dial, 10*time.Second)
			if diff := cmp.Diff(map[string]int64{tt.want: 5}, r.Errors); diff != "" {
				t.Errorf("(-want +got):\n%s", diff)
			}
		})
	}
}

func TestNobodyThereIsNamed(t *testing.T) {
	l := listen(t)
	address := l.Addr().String()
	l.Close()
	for name, dial := range map[string]dialer{"http1": HTTP1{Address: address}.Dial, "grpc": GRPC{Address: address}.Dial} {
		r := five(t, dial, 10*time.Second)
		if diff := cmp.Diff(map[string]int64{"connect: connection refused": 5}, r.Errors); diff != "" {
			t.Errorf("%s (-want +got):\n%s", name, diff)
		}
	}
}

func TestSilenceEndsWithTheGrace(t *testing.T) {
	address := start(t, func(l net.Listener) error {
		c, err := l.Accept()
		if err == nil {
			_, err = io.Copy(io.Discard, c)
		}
		return err
	})
	r := five(t, HTTP1{Address: address}.Dial, 50*time.Millisecond)
	// The deadline of the connection and the end of the context come at the same time.
	if first := r.Errors["no answer in time"] + r.Errors["broken off"]; first != 1 || r.OK != 0 {
		t.Errorf("right %d, errors %v", r.OK, r.Errors)
	}
}

func TestPreparedHeaderIsSent(t *testing.T) {
	var seen atomic.Pointer[string]
	s := &http.Server{Handler: http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		v := r.Header.Get("X-Turn")
		seen.Store(&v)
		body, _ := io.ReadAll(r.Body) // the client compares
		w.Header().Set("Content-Length", fmt.Sprint(len(body)))
		_, _ = w.Write(body)
	})}
	t.Cleanup(func() { _ = s.Close() }) // its listener is closed by then
	turn := 0
	c, err := HTTP1{Address: start(t, s.Serve), Path: "/", Body: 100, Prepare: func(int) (string, error) {
		turn++
		return fmt.Sprintf("X-Turn: %0*d\r\n", turn%7+1, turn), nil // lengths differ
	}}.Dial(t.Context(), 0)
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = c.Close() }() // the calls have told what there was
	for range 50 {
		if err := c.Prepare(); err != nil {
			t.Fatal(err)
		}
		if err := c.Call(); err != nil {
			t.Fatal(err)
		}
		if want := fmt.Sprintf("%0*d", turn%7+1, turn); *seen.Load() != want {
			t.Errorf("server saw %q, want %q", *seen.Load(), want)
		}
	}
}

// FuzzHead holds the parser of answers against that of the standard library: both agree on what both take, and no head
// is taken before its end.
func FuzzHead(f *testing.F) {
	for _, s := range []string{
		"HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\nhello", "HTTP/1.1 503 \r\ncontent-length:0\r\nServer: x\r\n\r\n",
		"HTTP/1.1 200\r\nContent-Length: 1\r\nContent-Length: 1\r\n\r\n", "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n",
		"HTTP/1.1 200 \n\n0\r\nContent-Length:0\r\n\r\n", "HTTP/1.1 200 \r\na: b\n\nx: y\r\nContent-Length:0\r\n\r\n",
		"HTTP/1.0 200 OK\r\n\r\n", "HTTP/1.1 200 OK\r\n Content-Length: 3\r\n\r\n", "HTTP/1.1 99 \r\nContent-Length: -1\r\n\r\n",
	} {
		f.Add([]byte(s))
	}
	f.Fuzz(func(t *testing.T, b []byte) {
		size, status, length, err := parseHead(b)
		if size == 0 {
			return
		}
		if err != nil || size > len(b) || !bytes.HasSuffix(b[:size], []byte("\r\n\r\n")) {
			t.Fatalf("parseHead(%q) = size %d, %v", b, size, err)
		}
		if early, _, _, _ := parseHead(b[:size-1]); early != 0 {
			t.Fatalf("parseHead(%q) takes a head without its end", b[:size-1])
		}
		res, err := http.ReadResponse(bufio.NewReader(bytes.NewReader(b)), nil)
		if err != nil {
			return // odd values of other fields are none of our business
		}
		res.Body.Close()
		bodiless := status < 200 || status == 204 || status == 304
		if res.StatusCode != status || !bodiless && res.ContentLength != length {
			t.Fatalf("parseHead(%q) = %d, %d; net/http: %d, %d", b, status, length, res.StatusCode, res.ContentLength)
		}
	})
}
