package h2_test

import (
	"bufio"
	"bytes"
	"context"
	"crypto/sha1"
	"crypto/tls"
	"encoding/base64"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"golang.org/x/net/http2"
	"golang.org/x/net/websocket"

	"txmesh/interceptor"
	"txmesh/interceptor/proxy"
)

// TestMain starts itself once more: Go's servers and clients know RFC 8441 only if that was said before they began.
func TestMain(m *testing.M) {
	const known = "http2xconnect=1"
	if debug := os.Getenv("GODEBUG"); !strings.Contains(debug, known) {
		if err := os.Setenv("GODEBUG", strings.TrimPrefix(debug+","+known, ",")); err != nil {
			panic(err)
		}
		self, err := os.Executable()
		if err == nil {
			err = syscall.Exec(self, os.Args, os.Environ())
		}
		panic(err)
	}
	os.Exit(m.Run())
}

// dug is a tunnel as its client holds it.
type dug struct {
	*http.Response
	w *io.PipeWriter
}

func (d dug) Read(p []byte) (int, error)  { return d.Body.Read(p) }
func (d dug) Write(p []byte) (int, error) { return d.w.Write(p) }
func (d dug) end()                        { _ = d.w.Close() } // it never fails

// dig sends an extended CONNECT, or a plain one if protocol is empty.
func dig(t testing.TB, address, protocol, url string, fields ...string) dug {
	t.Helper()
	//nolint:staticcheck // that of net/http takes no :protocol
	transport := &http2.Transport{AllowHTTP: true, DialTLSContext: func(ctx context.Context, network, _ string, _ *tls.Config) (net.Conn, error) {
		return new(net.Dialer).DialContext(ctx, network, address)
	}}
	t.Cleanup(transport.CloseIdleConnections) //nolint:staticcheck // see above
	r, w := io.Pipe()
	ctx, cancel := context.WithTimeout(context.Background(), patience)
	t.Cleanup(cancel)
	req, err := http.NewRequestWithContext(ctx, http.MethodConnect, url, r)
	if err != nil {
		t.Fatal(err)
	}
	if protocol != "" {
		req.Header[":protocol"] = []string{protocol}
	}
	for i := 0; i < len(fields); i += 2 {
		req.Header.Add(fields[i], fields[i+1])
	}
	res, err := transport.RoundTrip(req) //nolint:staticcheck // see above
	if err != nil {
		t.Fatal(err)
	}
	return dug{res, w}
}

func acceptOf(key string) string {
	sum := sha1.Sum([]byte(key + "258EAFA5-E914-47DA-95CA-C5AB0DC85B11"))
	return base64.StdEncoding.EncodeToString(sum[:])
}

// raw is an endpoint that speaks bytes: f gets each connection that begins with a request, and that request.
func raw(t testing.TB, f func(conn *net.TCPConn, head *http.Request, in *bufio.Reader)) string {
	return accepting(t, func(conn *net.TCPConn) {
		_ = conn.SetDeadline(time.Now().Add(patience)) // a closed connection tells it when it is used
		in := bufio.NewReader(conn)
		if head, err := http.ReadRequest(in); err == nil && head.Method != "PRI" {
			f(conn, head, in)
		}
	})
}

// accepting is an endpoint whose connections f gets, each in a goroutine of its own, and which are closed after it.
func accepting(t testing.TB, f func(conn *net.TCPConn)) string {
	l := listen(t)
	var all sync.WaitGroup
	t.Cleanup(all.Wait)
	t.Cleanup(func() { l.Close() })
	all.Go(func() {
		for {
			conn, err := l.Accept()
			if err != nil {
				return
			}
			all.Go(func() {
				defer conn.Close()
				f(conn.(*net.TCPConn))
			})
		}
	})
	return l.Addr().String()
}

func switched(conn net.Conn, r *http.Request) {
	fmt.Fprintf(conn, "HTTP/1.1 101 Switching Protocols\r\nUpgrade: WebSocket\r\nConnection: x-own, Upgrade\r\nX-Own: 1\r\nX-Kept: 2\r\n"+
		"Sec-WebSocket-Protocol: chat\r\nSec-WebSocket-Accept: %s\r\n\r\n", acceptOf(r.Header.Get("Sec-Websocket-Key")))
}

// unextended is an endpoint that speaks HTTP/2 without RFC 8441, and HTTP/1.1.
func unextended(t testing.TB, endpoint string) string {
	return accepting(t, func(conn *net.TCPConn) {
		in := bufio.NewReader(conn)
		if first, err := in.Peek(3); err != nil || string(first) == "PRI" {
			_ = http2.NewFramer(conn, nil).WriteSettings() // the proxy ends the connection
			_, _ = io.Copy(io.Discard, in)
			return
		}
		onward, err := net.Dial("tcp", endpoint)
		if err != nil {
			t.Error(err)
			return
		}
		var sent sync.WaitGroup
		sent.Go(func() { _, _ = io.Copy(onward, in); _ = onward.(*net.TCPConn).CloseWrite() })
		_, _ = io.Copy(conn, onward)
		onward.Close()
		_ = conn.Close() // ends the other way
		sent.Wait()
	})
}

// handshake lets a client of WebSockets believe that it speaks HTTP/1.1.
type handshake struct {
	t       *testing.T
	address string
	head    bytes.Buffer
	dug     dug
	in      io.Reader
}

func (h *handshake) Write(p []byte) (int, error) {
	if h.in != nil {
		return h.dug.Write(p)
	}
	h.head.Write(p)
	if !bytes.HasSuffix(h.head.Bytes(), []byte("\r\n\r\n")) {
		return len(p), nil
	}
	r, err := http.ReadRequest(bufio.NewReader(&h.head))
	if err != nil {
		return 0, err
	}
	h.dug = dig(h.t, h.address, "websocket", "http://ws.example"+r.RequestURI, "sec-websocket-version", "13", "origin", "http://x")
	if h.dug.StatusCode != 200 {
		return 0, fmt.Errorf("status %s", h.dug.Status)
	}
	h.in = io.MultiReader(strings.NewReader("HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"+
		"Sec-WebSocket-Accept: "+acceptOf(r.Header.Get("Sec-Websocket-Key"))+"\r\n\r\n"), h.dug.Body)
	return len(p), nil
}

func (h *handshake) Read(p []byte) (int, error) { return h.in.Read(p) }
func (h *handshake) Close() error               { return errors.Join(h.dug.w.Close(), h.dug.Body.Close()) }

// TestWebSocketsPass exchanges messages that are larger than all windows, with a library on both ends.
func TestWebSocketsPass(t *testing.T) {
	app := upstream(t, websocket.Server{Handler: func(c *websocket.Conn) { _, _ = io.Copy(c, c) }}.ServeHTTP)
	old := unextended(t, app)
	far, _ := inbound(t, proxy.Options{}, old)
	for _, tt := range []struct{ name, endpoint string }{
		{"application of HTTP/1.1", old},
		{"sidecar, and an application behind it", far},
	} {
		t.Run(tt.name, func(t *testing.T) {
			address, _ := inbound(t, proxy.Options{}, tt.endpoint)
			for range 3 { // the second time it is known what the endpoint speaks
				config, err := websocket.NewConfig("ws://ws.example/echo", "http://x")
				if err != nil {
					t.Fatal(err)
				}
				c, err := websocket.NewClient(config, &handshake{t: t, address: address})
				if err != nil {
					t.Fatal(err)
				}
				want := bytes.Repeat([]byte("0123456789abcdef"), 1<<16)
				go func() {
					for range 4 {
						_ = websocket.Message.Send(c, want) // the other side finds out
					}
				}()
				got := make([]byte, 4*len(want))
				if _, err := io.ReadFull(c, got); err != nil || !bytes.Equal(got, bytes.Repeat(want, 4)) {
					t.Fatalf("%v, or other bytes came back", err)
				}
				_ = c.Close() // all has come back
			}
		})
	}
}

// TestExtendedConnectStaysHTTP2: where the endpoint has announced RFC 8441, that is what it gets.
func TestExtendedConnectStaysHTTP2(t *testing.T) {
	seen := make(chan []string, 1)
	up := upstream(t, func(w http.ResponseWriter, r *http.Request) {
		seen <- []string{r.Proto, r.Method, r.Header.Get(":protocol"), r.URL.RequestURI(), r.Host, r.Header.Get("Upgrade"), r.Header.Get("X-Gate")}
		w.WriteHeader(200)
		_ = http.NewResponseController(w).Flush()
		for buf := make([]byte, 32<<10); ; {
			n, err := r.Body.Read(buf)
			if _, bad := w.Write(buf[:n]); err != nil || bad != nil {
				break
			}
			_ = http.NewResponseController(w).Flush()
		}
		_, _ = io.WriteString(w, "and the end")
	})
	g := newGate()
	g.before = func(r interceptor.Request) interceptor.Verdict {
		r.SetHeader("x-gate", r.Method()+" "+r.Header("upgrade"))
		return interceptor.Verdict{}
	}
	address, _ := inbound(t, proxy.Options{Gate: g}, up)
	d := dig(t, address, "websocket", "http://ws.example/chat?x=1")
	want := []string{"HTTP/2.0", "CONNECT", "websocket", "/chat?x=1", "ws.example", "", "GET websocket"}
	if diff := cmp.Diff(want, <-seen); diff != "" || d.StatusCode != 200 {
		t.Fatalf("status %d, the endpoint saw (-want +got)\n%s", d.StatusCode, diff)
	}
	sent := bytes.Repeat([]byte("0123456789abcdef"), 1<<16)
	go func() {
		_, _ = d.Write(sent) // the other side finds out
		d.end()
	}()
	got, err := io.ReadAll(d)
	if err != nil || string(got) != string(sent)+"and the end" {
		t.Fatalf("%d bytes and %v came back, want %d", len(got), err, len(sent)+len("and the end"))
	}
}

// TestUpgradeIsTranslated compares the heads, and both orders of the ends.
func TestUpgradeIsTranslated(t *testing.T) {
	for _, first := range []string{"client", "endpoint"} {
		t.Run(first+" ends first", func(t *testing.T) {
			heads, ended := make(chan *http.Request, 1), make(chan struct{})
			up := raw(t, func(conn *net.TCPConn, r *http.Request, in *bufio.Reader) {
				defer close(ended)
				heads <- r
				fmt.Fprint(conn, "HTTP/1.1 103 Early Hints\r\nLink: x\r\n\r\n")
				switched(conn, r)
				fmt.Fprint(conn, "hello")
				if first == "client" {
					got, err := io.ReadAll(in)
					fmt.Fprintf(conn, " %s %v", got, err)
					return
				}
				_ = conn.CloseWrite() // the client finds out
				if got, err := io.ReadAll(in); err != nil || string(got) != "bye" {
					t.Errorf("the endpoint got %q, %v", got, err)
				}
			})
			address, _ := inbound(t, proxy.Options{}, up)
			d := dig(t, address, "websocket", "http://ws.example/chat?x=1", "cookie", "a=1", "cookie", "b=2", "sec-websocket-version", "13",
				"sec-websocket-key", "mine", "proxy-authorization", "x", "x-other", "y")
			r := <-heads
			key := r.Header.Get("Sec-Websocket-Key")
			if nonce, err := base64.StdEncoding.DecodeString(key); err != nil || len(nonce) != 16 {
				t.Errorf("Sec-WebSocket-Key %q", key)
			}
			r.Header.Del("Sec-Websocket-Key")
			r.Header.Del("User-Agent")
			r.Header.Del("Accept-Encoding")
			wantHead := http.Header{"Connection": {"Upgrade"}, "Upgrade": {"websocket"}, "Cookie": {"a=1; b=2"}, "Sec-Websocket-Version": {"13"}, "X-Other": {"y"}}
			if diff := cmp.Diff(wantHead, r.Header); diff != "" || r.Method+r.RequestURI+r.Host != "GET/chat?x=1ws.example" {
				t.Errorf("%s %s at %s (-want +got)\n%s", r.Method, r.RequestURI, r.Host, diff)
			}
			wantAnswer := http.Header{"X-Kept": {"2"}, "Sec-Websocket-Protocol": {"chat"}}
			if diff := cmp.Diff(wantAnswer, d.Header); diff != "" || d.StatusCode != 200 {
				t.Errorf("status %d (-want +got)\n%s", d.StatusCode, diff)
			}
			want := "hello"
			if first == "client" {
				want = "hello bye <nil>"
				fmt.Fprint(d, "bye")
				d.end()
			}
			if got, err := io.ReadAll(d); err != nil || string(got) != want {
				t.Errorf("the client got %q, %v, want %q", got, err, want)
			}
			if first == "endpoint" {
				fmt.Fprint(d, "bye")
				d.end()
			}
			<-ended
		})
	}
}

// TestUpgradesThatDoNotSucceed: what the endpoint answers is passed on, unless it would open a tunnel that is none. What the
// client has sent ahead never reaches the endpoint: it would be another request there.
func TestUpgradesThatDoNotSucceed(t *testing.T) {
	const upgraded = "HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\nUpgrade: "
	for _, tt := range []struct {
		name, answer string
		status, code string
		body         string // a part of it
	}{
		{"403 with a body", "HTTP/1.1 403 Forbidden\r\nContent-Length: 4\r\nConnection: x\r\nX: y\r\n\r\nno!\n", "403", "", "no!\n"},
		{"404 in chunks", "HTTP/1.1 404 Not Found\r\nTransfer-Encoding: chunked\r\n\r\n2\r\nno\r\n1\r\n!\r\n0\r\n\r\n", "404", "", "no!"},
		{"500 until it closes", "HTTP/1.1 500 Oh\r\n\r\nno!", "500", "", "no!"},
		{"304", "HTTP/1.1 304 Not Modified\r\nContent-Length: 4\r\n\r\n", "304", "", ""},
		{"wrong accept", upgraded + "websocket\r\nSec-WebSocket-Accept: " + acceptOf("other") + "\r\n\r\n", "502", "TXM0222", "Sec-WebSocket-Accept"},
		{"other protocol", upgraded + "h2c\r\n\r\n", "502", "TXM0222", "not for a WebSocket"},
		{"200", "HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok", "502", "TXM0222", "status 200"},
		{"nonsense", "HTTP/1.1 OK\r\n\r\n", "502", "TXM0222", "malformed"},
		{"endless header", "HTTP/1.1 403 Forbidden\r\nX: " + strings.Repeat("x", 40<<10), "502", "TXM0222", "header too large"},
		{"nothing", "", "502", "TXM0221", "connection closed"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			more := make(chan string, 1)
			up := raw(t, func(conn *net.TCPConn, _ *http.Request, in *bufio.Reader) {
				_, _ = io.WriteString(conn, tt.answer) // the client finds out
				_ = conn.CloseWrite()
				rest, _ := io.ReadAll(in) // a reset is an end
				more <- string(rest)
			})
			address, _ := inbound(t, proxy.Options{}, up)
			p := dial(t, address)
			p.must(0, p.headers(1, false, ":method", "CONNECT", ":protocol", "websocket", ":scheme", "http", ":authority", "x", ":path", "/"))
			p.must(0, p.WriteData(1, false, []byte("GET /private HTTP/1.1\r\nHost: x\r\n\r\n")))
			h := metaHeaders(p)
			if h[":status"] != tt.status || h["tx-error"] != tt.code {
				t.Errorf("status %s, tx-error %q, want %s, %q", h[":status"], h["tx-error"], tt.status, tt.code)
			}
			var body strings.Builder
			p.until(func(f http2.Frame) bool {
				d, ok := f.(*http2.DataFrame)
				if ok {
					body.Write(d.Data())
				}
				return ok && d.StreamEnded()
			})
			if tt.code == "" && body.String() != tt.body || !strings.Contains(body.String(), tt.body) {
				t.Errorf("body %q, want %q", body.String(), tt.body)
			}
			p.until(func(f http2.Frame) bool { // the rest of the request is not wanted
				r, ok := f.(*http2.RSTStreamFrame)
				return ok && r.ErrCode == http2.ErrCodeNo
			})
			if rest := <-more; rest != "" {
				t.Errorf("the endpoint got %q", rest)
			}
		})
	}
}

// TestTunnelsBreak: a break on one side is a break on the other.
func TestTunnelsBreak(t *testing.T) {
	isReset := func(err error) bool { return errors.Is(err, syscall.ECONNRESET) }
	t.Run("client, before HTTP/1.1", func(t *testing.T) {
		broke := make(chan error, 1)
		up := raw(t, func(conn *net.TCPConn, r *http.Request, in *bufio.Reader) {
			switched(conn, r)
			_, err := io.ReadAll(in)
			broke <- err
		})
		address, _ := inbound(t, proxy.Options{}, up)
		dig(t, address, "websocket", "http://x/").Body.Close()
		if err := <-broke; !isReset(err) {
			t.Errorf("the endpoint saw %v, want a reset", err)
		}
	})
	t.Run("client, before HTTP/2", func(t *testing.T) {
		broke := make(chan error, 1)
		up := upstream(t, func(w http.ResponseWriter, r *http.Request) {
			_ = http.NewResponseController(w).Flush()
			_, err := io.ReadAll(r.Body)
			broke <- err
		})
		address, _ := inbound(t, proxy.Options{}, up)
		dig(t, address, "websocket", "http://x/").Body.Close()
		if err := <-broke; err == nil {
			t.Errorf("the endpoint saw an end, want a reset")
		}
	})
	for _, tt := range []struct {
		name     string
		want     http2.ErrCode
		endpoint string
	}{
		{"endpoint of HTTP/1.1", http2.ErrCodeConnect, raw(t, func(conn *net.TCPConn, r *http.Request, _ *bufio.Reader) {
			switched(conn, r)
			_ = conn.SetLinger(0) // the close is a reset
		})},
		{"endpoint of HTTP/2", http2.ErrCodeInternal, upstream(t, func(w http.ResponseWriter, _ *http.Request) {
			_ = http.NewResponseController(w).Flush()
			panic(http.ErrAbortHandler)
		})},
	} {
		t.Run(tt.name, func(t *testing.T) {
			address, _ := inbound(t, proxy.Options{}, tt.endpoint)
			_, err := io.ReadAll(dig(t, address, "websocket", "http://x/"))
			var reset http2.StreamError
			if !errors.As(err, &reset) || reset.Code != tt.want {
				t.Errorf("the client saw %v, want %v", err, tt.want)
			}
		})
	}
}

// TestATunnelWhoseEndTakesNothingIsEnded: what waits meanwhile is bounded by windows and buffers.
func TestATunnelWhoseEndTakesNothingIsEnded(t *testing.T) {
	for _, tt := range []struct{ slow, code string }{{"client", "TXM0216"}, {"endpoint", "TXM0223"}, {"endpoint of HTTP/2", "TXM0223"}} {
		t.Run(tt.slow, func(t *testing.T) {
			ended := make(chan int64, 1)
			codes, over := make(chan string, 10), make(chan struct{})
			defer close(over)
			up := upstream(t, func(w http.ResponseWriter, r *http.Request) {
				_ = http.NewResponseController(w).Flush()
				<-r.Context().Done() // it reads nothing
			})
			if tt.slow != "endpoint of HTTP/2" {
				up = raw(t, func(conn *net.TCPConn, r *http.Request, _ *bufio.Reader) {
					_ = conn.SetReadBuffer(32 << 10)
					_ = conn.SetWriteBuffer(32 << 10)
					switched(conn, r)
					if tt.slow == "client" {
						n, _ := io.Copy(conn, zeros{}) // it ends when the proxy does
						ended <- n
						return
					}
					<-over // it reads nothing
				})
			}
			address, _ := inbound(t, proxy.Options{Refused: func(code string) { codes <- code }, Limits: proxy.Limits{WriteIdle: 200 * time.Millisecond}}, up)
			d := dig(t, address, "websocket", "http://x/")
			if tt.slow != "client" {
				n, _ := io.Copy(d, zeros{})
				ended <- n
			}
			if n := <-ended; n > 16<<20 {
				t.Errorf("%d bytes were taken for a side that takes nothing", n)
			}
			select {
			case code := <-codes:
				if code != tt.code {
					t.Errorf("%s, want %s", code, tt.code)
				}
			case <-time.After(patience):
				t.Error("the tunnel does not end")
			}
		})
	}
}

// TestAnOpenTunnelHasNoTimeLimit: it may also be silent for longer than a side may take nothing of what waits.
func TestAnOpenTunnelHasNoTimeLimit(t *testing.T) {
	up := raw(t, func(conn *net.TCPConn, r *http.Request, in *bufio.Reader) {
		switched(conn, r)
		_, _ = io.Copy(conn, in)
	})
	address, _ := inbound(t, proxy.Options{Limits: proxy.Limits{Exchange: time.Second, WriteIdle: 50 * time.Millisecond}}, up)
	d := dig(t, address, "websocket", "http://x/")
	time.Sleep(1500 * time.Millisecond)
	fmt.Fprint(d, "still here")
	d.end()
	if got, err := io.ReadAll(d); err != nil || string(got) != "still here" {
		t.Errorf("%q, %v", got, err)
	}
}

// TestGateSeesAnUpgrade: as one of HTTP/1.1, which it may answer. With a ticket, After comes when the tunnel opens.
func TestGateSeesAnUpgrade(t *testing.T) {
	up := raw(t, func(conn *net.TCPConn, r *http.Request, in *bufio.Reader) {
		switched(conn, r)
		_, _ = io.Copy(conn, in)
	})
	t.Run("answer", func(t *testing.T) {
		g := newGate()
		g.before = func(r interceptor.Request) interceptor.Verdict {
			body, err := r.Body(100)
			if r.Method() != "GET" || r.Path() != "/a" || r.Header("upgrade") != "websocket" || len(body) > 0 || err != nil {
				t.Errorf("the Gate sees %s %s, upgrade %q, body %q, %v", r.Method(), r.Path(), r.Header("upgrade"), body, err)
			}
			return interceptor.Verdict{Answer: &interceptor.Answer{Status: 400, Body: []byte("no")}}
		}
		address, _ := inbound(t, proxy.Options{Gate: g}, up)
		d := dig(t, address, "websocket", "http://x/a")
		if got, err := io.ReadAll(d); d.StatusCode != 400 || string(got) != "no" || err != nil {
			t.Errorf("status %d, %q, %v", d.StatusCode, got, err)
		}
	})
	t.Run("ticket", func(t *testing.T) {
		g := tagAll(interceptor.Ticket{})
		address, _ := inbound(t, proxy.Options{Gate: g}, up)
		d := dig(t, address, "websocket", "http://x/a")
		g.once(t, 1)
		fmt.Fprint(d, "echo")
		d.end()
		if got, err := io.ReadAll(d); d.StatusCode != 200 || string(got) != "echo" || err != nil {
			t.Errorf("status %d, %q, %v", d.StatusCode, got, err)
		}
	})
}

// forward starts a proxy for everything and returns its address.
func forward(t *testing.T, o proxy.Options) string {
	p, err := proxy.NewForward(o, nil)
	if err != nil {
		t.Fatal(err)
	}
	return serving(t, p)
}

// TestConnect: the forward proxy tunnels, as over HTTP/1.1, and no other port does.
func TestConnect(t *testing.T) {
	l := listen(t)
	t.Cleanup(func() { l.Close() })
	go func() {
		for {
			conn, err := l.Accept()
			if err != nil {
				return
			}
			go func() { _, _ = io.Copy(conn, conn); conn.Close() }()
		}
	}()
	f := forward(t, proxy.Options{})
	loop := forward(t, proxy.Options{Dial: func(context.Context, string, string) (net.Conn, error) { return nil, proxy.ErrLoop }})
	d := dig(t, f, "", "http://"+l.Addr().String())
	sent := bytes.Repeat([]byte("0123456789abcdef"), 1<<16)
	go func() {
		_, _ = d.Write(sent) // the other side finds out
		d.end()
	}()
	if got, err := io.ReadAll(d); err != nil || d.StatusCode != 200 || !bytes.Equal(got, sent) {
		t.Errorf("status %d, %d bytes, %v", d.StatusCode, len(got), err)
	}
	in, _ := inbound(t, proxy.Options{}, l.Addr().String())
	closed := listen(t)
	closed.Close()
	for _, tt := range []struct {
		name, address, protocol, url string
		status                       int
		code                         string
	}{
		{"inbound", in, "", "http://x:1", 405, "TXM0213"},
		{"host without a port", f, "", "http://x", 400, "TXM0206"},
		{"unreachable", f, "", "http://" + closed.Addr().String(), 503, "TXM0220"},
		{"loop", loop, "", "http://x:1", 508, "TXM0215"},
		{"other protocol", in, "connect-udp", "http://x/", 501, "TXM0231"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			d := dig(t, tt.address, tt.protocol, tt.url)
			if d.StatusCode != tt.status || d.Header.Get("Tx-Error") != tt.code {
				t.Errorf("status %d, %s, want %d, %s", d.StatusCode, d.Header.Get("Tx-Error"), tt.status, tt.code)
			}
		})
	}
}

// TestMalformedConnects are reset.
func TestMalformedConnects(t *testing.T) {
	up := upstream(t, func(http.ResponseWriter, *http.Request) {})
	address, _ := inbound(t, proxy.Options{}, up)
	for _, fields := range [][]string{
		{":method", "GET", ":protocol", "websocket", ":scheme", "http", ":authority", "x", ":path", "/"},
		{":method", "CONNECT", ":protocol", "websocket", ":authority", "x"},
		{":method", "CONNECT", ":scheme", "http", ":authority", "x:1", ":path", "/"},
		{":method", "CONNECT"},
	} {
		p := dial(t, address)
		p.must(0, p.headers(1, false, fields...))
		f := p.until(func(f http2.Frame) bool { return f.Header().StreamID == 1 })
		if r, ok := f.(*http2.RSTStreamFrame); !ok || r.ErrCode != http2.ErrCodeProtocol {
			t.Errorf("%v: %v, want PROTOCOL_ERROR", fields, f)
		}
	}
}

// TestAWebSocketMoves to another endpoint where a policy lets a GET do so, and gives its place back when it ends.
func TestAWebSocketMoves(t *testing.T) {
	closed := listen(t)
	closed.Close()
	refuses := raw(t, func(conn *net.TCPConn, _ *http.Request, _ *bufio.Reader) {
		fmt.Fprint(conn, "HTTP/1.1 503 Service Unavailable\r\nContent-Length: 0\r\n\r\n")
	})
	good := raw(t, func(conn *net.TCPConn, r *http.Request, in *bufio.Reader) {
		switched(conn, r)
		_, _ = io.Copy(conn, in)
	})
	endpoints := []string{closed.Addr().String(), refuses, good}
	clusters := governed(t, "loadBalancing: RoundRobin, connections: {max: 1, maxRequests: 1}, retries: {on: [connect-failure, gateway-error], budget: {percent: 100, minPerSecond: 1000}}")
	address := calls(t, proxy.Options{Traffic: clusters}, endpoints...)
	for range 6 {
		d := dig(t, address, "websocket", "http://x/")
		fmt.Fprint(d, "echo")
		d.end()
		if got, err := io.ReadAll(d); d.StatusCode != 200 || string(got) != "echo" || err != nil {
			t.Errorf("status %d, %q, %v", d.StatusCode, got, err)
		}
	}
	returned(t, clusters, 1, endpoints...)
}
