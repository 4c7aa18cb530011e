package h2_test

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"strings"
	"sync"
	"testing"
	"time"

	"golang.org/x/net/http2"
	"golang.org/x/net/http2/hpack"

	"txmesh/interceptor"
	"txmesh/interceptor/proxy"
)

// peer is one end of a connection that speaks frames.
type peer struct {
	t testing.TB
	net.Conn
	*http2.Framer
	enc *hpack.Encoder
	blk bytes.Buffer
}

func newPeer(t testing.TB, conn net.Conn) *peer {
	if err := conn.SetDeadline(time.Now().Add(patience)); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { conn.Close() })
	p := &peer{t: t, Conn: conn, Framer: http2.NewFramer(conn, conn)}
	p.enc = hpack.NewEncoder(&p.blk)
	p.ReadMetaHeaders = hpack.NewDecoder(4096, nil)
	return p
}

func dial(t testing.TB, address string) *peer {
	conn, err := net.Dial("tcp", address)
	if err != nil {
		t.Fatal(err)
	}
	p := newPeer(t, conn)
	p.must(io.WriteString(conn, http2.ClientPreface))
	p.must(0, p.WriteSettings())
	return p
}

func (p *peer) must(_ int, err error) {
	p.t.Helper()
	if err != nil {
		p.t.Fatal(err)
	}
}

func (p *peer) headers(id uint32, end bool, fields ...string) error {
	p.blk.Reset()
	for i := 0; i < len(fields); i += 2 {
		if err := p.enc.WriteField(hpack.HeaderField{Name: fields[i], Value: fields[i+1]}); err != nil {
			return err
		}
	}
	return p.WriteHeaders(http2.HeadersFrameParam{StreamID: id, BlockFragment: p.blk.Bytes(), EndHeaders: true, EndStream: end})
}

func (p *peer) request(id uint32, end bool) error {
	return p.headers(id, end, ":method", "POST", ":scheme", "http", ":authority", "x", ":path", "/")
}

// until reads frames until one fits.
func (p *peer) until(fits func(http2.Frame) bool) http2.Frame {
	p.t.Helper()
	for {
		f, err := p.ReadFrame()
		if err != nil {
			p.t.Fatalf("read a frame: %v", err)
		}
		if fits(f) {
			return f
		}
	}
}

func isGoAway(f http2.Frame) bool { _, ok := f.(*http2.GoAwayFrame); return ok }

// TestFloods: who asks for too much is told to calm down, and why.
func TestFloods(t *testing.T) {
	hang := upstream(t, func(_ http.ResponseWriter, r *http.Request) { <-r.Context().Done() })
	for _, tt := range []struct {
		name string
		code string
		act  func(p *peer) error // until it fails
	}{
		{"rapid reset", "TXM0229", func(p *peer) error {
			for id := uint32(1); id < 20000; id += 2 {
				if err := errors.Join(p.request(id, false), p.WriteRSTStream(id, http2.ErrCodeCancel)); err != nil {
					return err
				}
			}
			return nil
		}},
		{"continuation", "TXM0229", func(p *peer) error {
			if err := p.WriteHeaders(http2.HeadersFrameParam{StreamID: 1}); err != nil {
				return err
			}
			for range 1000 {
				if err := p.WriteContinuation(1, false, nil); err != nil {
					return err
				}
			}
			return nil
		}},
		{"header block", "TXM0202", func(p *peer) error {
			junk := bytes.Repeat([]byte{0x82}, 16<<10) // :method GET, over and over
			if err := p.WriteHeaders(http2.HeadersFrameParam{StreamID: 1, BlockFragment: junk}); err != nil {
				return err
			}
			for range 10 {
				if err := p.WriteContinuation(1, false, junk); err != nil {
					return err
				}
			}
			return nil
		}},
		{"empty data", "TXM0229", func(p *peer) error {
			if err := p.request(1, false); err != nil {
				return err
			}
			for range 40000 {
				if err := p.WriteData(1, false, nil); err != nil {
					return err
				}
			}
			return nil
		}},
		{"priority", "TXM0229", func(p *peer) error {
			for range 40000 {
				if err := p.WritePriority(1, http2.PriorityParam{StreamDep: 3}); err != nil {
					return err
				}
			}
			return nil
		}},
		{"settings", "TXM0229", func(p *peer) error {
			for range 40000 {
				if err := p.WriteSettings(); err != nil {
					return err
				}
			}
			return nil
		}},
		{"ping", "TXM0229", func(p *peer) error {
			for range 40000 {
				if err := p.WritePing(false, [8]byte{}); err != nil {
					return err
				}
			}
			return nil
		}},
	} {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			var mu sync.Mutex
			refused := map[string]int{}
			address, _ := inbound(t, proxy.Options{Refused: func(code string) {
				mu.Lock()
				refused[code]++
				mu.Unlock()
			}}, hang)
			p := dial(t, address)
			go func() { _ = tt.act(p) }() // the proxy closes while it writes
			f := p.until(isGoAway).(*http2.GoAwayFrame)
			if f.ErrCode != http2.ErrCodeEnhanceYourCalm || !strings.HasPrefix(string(f.DebugData()), tt.code) {
				t.Errorf("got GOAWAY with %v %q, want ENHANCE_YOUR_CALM with %s", f.ErrCode, f.DebugData(), tt.code)
			}
			mu.Lock()
			defer mu.Unlock()
			if refused[tt.code] != 1 {
				t.Errorf("counted %v, want one %s", refused, tt.code)
			}
		})
	}
}

// TestSlowHeaderIsCut: a header block must come at once.
func TestSlowHeaderIsCut(t *testing.T) {
	address, _ := inbound(t, proxy.Options{Limits: proxy.Limits{HeaderTime: 50 * time.Millisecond}}, "127.0.0.1:1")
	for _, half := range []string{"block", "frame"} {
		t.Run(half, func(t *testing.T) {
			p := dial(t, address)
			if half == "block" {
				p.must(0, p.WriteHeaders(http2.HeadersFrameParam{StreamID: 1}))
			} else {
				p.must(p.Write([]byte{0, 0, 99, 1, 4, 0, 0, 0, 1, 0x82}))
			}
			if f := p.until(isGoAway).(*http2.GoAwayFrame); !strings.HasPrefix(string(f.DebugData()), "TXM0207") {
				t.Errorf("got %q, want TXM0207", f.DebugData())
			}
		})
	}
}

// TestRequestsThatWereNotLookedAtMove: an endpoint says so by GOAWAY or by REFUSED_STREAM. An untagged request goes to it
// again, with its body; a tagged one is told to the Gate as not sent.
func TestRequestsThatWereNotLookedAtMove(t *testing.T) {
	for _, how := range []string{"goaway", "refused"} {
		for _, tagged := range []bool{false, true} {
			t.Run(fmt.Sprintf("%s tagged %v", how, tagged), func(t *testing.T) {
				l := listen(t)
				t.Cleanup(func() { l.Close() })
				go declineFirst(t, l, how)
				o := proxy.Options{}
				var notSent bool
				g := tagAll(interceptor.Ticket{})
				g.after = func(_ interceptor.Response, err error) *interceptor.Answer {
					e, ok := errors.AsType[*proxy.Error](err)
					notSent = ok && e.NotSent()
					return nil
				}
				if tagged {
					o.Gate = g
				}
				address, _ := inbound(t, o, l.Addr().String())
				res, body := get(t, client(t), "POST", "http://"+address+"/", "hello")
				switch {
				case tagged && (res.StatusCode != 503 || res.Header.Get("Tx-Error") != "TXM0227" || !notSent):
					t.Errorf("got %d %v, not sent %v; want 503 with TXM0227", res.StatusCode, res.Header, notSent)
				case !tagged && (res.StatusCode != 200 || body != "hello"):
					t.Errorf("got %d %q, want the echo", res.StatusCode, body)
				}
				if tagged {
					g.once(t, 1)
				}
			})
		}
	}
}

// declineFirst is an endpoint that does not look at the first request, and echoes the next ones.
func declineFirst(t *testing.T, l net.Listener, how string) {
	first := true
	for {
		conn, err := l.Accept()
		if err != nil {
			return
		}
		p := newPeer(t, conn)
		if _, err := io.ReadFull(conn, make([]byte, len(http2.ClientPreface))); err != nil {
			return
		}
		_ = p.WriteSettings() // the proxy finds out
		for {
			f, err := p.ReadFrame()
			if err != nil {
				break
			}
			d, ok := f.(*http2.DataFrame)
			switch {
			case !ok || !d.StreamEnded():
			case first && how == "goaway":
				first = false
				_ = p.WriteGoAway(0, http2.ErrCodeNo, nil)
			case first:
				first = false
				_ = p.WriteRSTStream(d.StreamID, http2.ErrCodeRefusedStream)
			default:
				_ = p.headers(d.StreamID, false, ":status", "200")
				_ = p.WriteData(d.StreamID, true, d.Data())
			}
		}
	}
}

// TestAfterComesOnceWhateverBreaks: the client goes away, or the endpoint does, at every step of an exchange.
func TestAfterComesOnceWhateverBreaks(t *testing.T) {
	steps := []string{"head", "part", "end", "answer", "answer part"}
	for _, who := range []string{"client", "client resets", "endpoint", "shutdown"} {
		for i, step := range steps {
			for _, ticket := range []interceptor.Ticket{{}, {Hold: true}, {Outlive: true}, {Hold: true, Outlive: true, Timeout: 300 * time.Millisecond}} {
				t.Run(fmt.Sprintf("%s at %s hold %v outlive %v", who, step, ticket.Hold, ticket.Outlive), func(t *testing.T) {
					t.Parallel()
					breakAt(t, who, i, ticket)
				})
			}
		}
	}
}

func breakAt(t *testing.T, who string, step int, ticket interceptor.Ticket) {
	l := listen(t)
	t.Cleanup(func() { l.Close() })
	g := tagAll(ticket)
	ended := make(chan error, 2)
	g.after = func(_ interceptor.Response, err error) *interceptor.Answer {
		ended <- err
		return nil
	}
	address, stop := inbound(t, proxy.Options{Gate: g}, l.Addr().String())
	c := dial(t, address)
	c.must(0, c.request(1, false))
	conn, err := l.Accept()
	if err != nil {
		t.Fatal(err)
	}
	s := newPeer(t, conn)
	if _, err := io.ReadFull(conn, make([]byte, len(http2.ClientPreface))); err != nil {
		t.Fatal(err)
	}
	s.must(0, s.WriteSettings())
	s.until(func(f http2.Frame) bool { _, ok := f.(*http2.MetaHeadersFrame); return ok })
	for _, act := range []func() error{
		func() error { return c.WriteData(1, false, []byte("a")) },
		func() error {
			err := c.WriteData(1, true, []byte("b"))
			if err == nil { // a reset of the connection would overtake it
				s.until(func(f http2.Frame) bool { d, ok := f.(*http2.DataFrame); return ok && d.StreamEnded() })
			}
			return err
		},
		func() error { return s.headers(1, false, ":status", "200") },
		func() error { return s.WriteData(1, false, []byte("c")) },
	}[:step] {
		s.must(0, act())
	}
	switch who {
	case "client":
		c.Close()
	case "client resets":
		s.must(0, c.WriteRSTStream(1, http2.ErrCodeCancel))
	case "endpoint":
		s.Close()
	case "shutdown":
		ctx, cancel := context.WithCancel(context.Background())
		cancel()
		if stop(ctx) == nil {
			t.Error("shut down without having cut the exchange")
		}
	}
	outlives := ticket.Outlive && who[0] == 'c' && step >= 2 && ticket.Timeout == 0
	if outlives {
		time.Sleep(20 * time.Millisecond) // let the proxy see that the client is gone: it must not matter
		if step < 3 {
			s.must(0, s.headers(1, false, ":status", "200"))
		}
		s.must(0, s.WriteData(1, true, []byte("d"))) // nobody else is left to end it
	}
	g.once(t, 1)
	if broke := <-ended; outlives && broke != nil {
		t.Errorf("the exchange did not outlive its client: %v", broke)
	}
}

func TestUpgradeToH2C(t *testing.T) {
	up := upstream(t, func(w http.ResponseWriter, r *http.Request) { _, _ = io.WriteString(w, r.Proto+" "+r.URL.Path) })
	address, _ := inbound(t, proxy.Options{}, up)
	conn, err := net.Dial("tcp", address)
	if err != nil {
		t.Fatal(err)
	}
	p := newPeer(t, conn)
	p.must(io.WriteString(conn, "GET /old HTTP/1.1\r\nHost: x\r\nConnection: Upgrade, HTTP2-Settings\r\nUpgrade: h2c\r\nHTTP2-Settings: AAMAAABkAAQAAP__\r\n\r\n"))
	const want = "HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\nUpgrade: h2c\r\n\r\n"
	got := make([]byte, len(want))
	if _, err := io.ReadFull(conn, got); err != nil || string(got) != want {
		t.Fatalf("got %q, %v", got, err)
	}
	p.must(io.WriteString(conn, http2.ClientPreface))
	p.must(0, p.WriteSettings())
	f := p.until(func(f http2.Frame) bool { _, ok := f.(*http2.DataFrame); return ok }).(*http2.DataFrame)
	if f.StreamID != 1 || string(f.Data()) != "HTTP/2.0 /old" {
		t.Errorf("stream %d: %q", f.StreamID, f.Data())
	}
	p.must(0, p.headers(3, true, ":method", "GET", ":scheme", "http", ":authority", "x", ":path", "/new"))
	f = p.until(func(f http2.Frame) bool { d, ok := f.(*http2.DataFrame); return ok && len(d.Data()) > 0 }).(*http2.DataFrame)
	if f.StreamID != 3 || string(f.Data()) != "HTTP/2.0 /new" {
		t.Errorf("stream %d: %q", f.StreamID, f.Data())
	}
}

// FuzzFrames sends any bytes behind a preface, to the proxy as a client or as an endpoint. It never panics or hangs.
func FuzzFrames(f *testing.F) {
	var b bytes.Buffer
	fr := http2.NewFramer(&b, nil)
	for _, write := range []func() error{
		func() error { return fr.WriteSettings(http2.Setting{ID: http2.SettingInitialWindowSize, Val: 1}) },
		func() error {
			return fr.WriteHeaders(http2.HeadersFrameParam{StreamID: 1, BlockFragment: []byte("\x83\x86\x84\x41\x01x"), EndHeaders: true})
		},
		func() error {
			return fr.WriteHeaders(http2.HeadersFrameParam{StreamID: 1, BlockFragment: []byte("\x88"), EndHeaders: true})
		},
		func() error { // CONNECT for a WebSocket
			return fr.WriteHeaders(http2.HeadersFrameParam{StreamID: 3, EndHeaders: true,
				BlockFragment: []byte("\x02\x07CONNECT\x00\x09:protocol\x09websocket\x86\x84\x41\x01x")})
		},
		func() error { return fr.WriteData(1, false, []byte("abc")) },
		func() error { return fr.WriteWindowUpdate(1, 5) },
		func() error { return fr.WriteRSTStream(1, http2.ErrCodeRefusedStream) },
		func() error { return fr.WriteGoAway(0, http2.ErrCodeNo, nil) },
		func() error { return fr.WritePing(false, [8]byte{}) },
	} {
		if err := write(); err != nil {
			f.Fatal(err)
		}
		f.Add(b.Bytes(), b.Bytes())
	}
	f.Fuzz(func(t *testing.T, fromClient, fromEndpoint []byte) {
		g := tagAll(interceptor.Ticket{Hold: len(fromClient)%2 == 0})
		p, err := proxy.NewInbound(proxy.Options{Gate: g, Limits: proxy.Limits{HeaderTime: 200 * time.Millisecond, Exchange: time.Second},
			Dial: func(context.Context, string, string) (net.Conn, error) {
				near, far := net.Pipe()
				go func() { _, _ = io.Copy(io.Discard, far) }() // it ends with the connection
				go func() { _, _ = far.Write(fromEndpoint); far.Close() }()
				return near, nil
			}}, "s", "127.0.0.1:1")
		if err != nil {
			t.Fatal(err)
		}
		l := listen(t)
		go func() { _ = p.Serve(l) }() // Shutdown ends it
		conn, err := net.Dial("tcp", l.Addr().String())
		if err != nil {
			t.Fatal(err)
		}
		_, _ = conn.Write(append([]byte(http2.ClientPreface), fromClient...)) // the proxy may have closed already
		_ = conn.(*net.TCPConn).CloseWrite()
		if err := conn.SetReadDeadline(time.Now().Add(patience)); err != nil {
			t.Fatal(err)
		}
		if _, err := io.Copy(io.Discard, conn); err != nil && errors.Is(err, os.ErrDeadlineExceeded) {
			t.Fatal("the proxy does not end the connection")
		}
		conn.Close()
		ctx, cancel := context.WithTimeout(context.Background(), patience)
		defer cancel()
		if err := p.Shutdown(ctx); err != nil {
			t.Fatal(err)
		}
		g.mu.Lock()
		defer g.mu.Unlock()
		for _, n := range g.given {
			if n != 1 {
				t.Fatalf("a ticket had %d Afters", n)
			}
		}
	})
}

// metaHeaders reads the next list of fields.
func metaHeaders(p *peer) map[string]string {
	f := p.until(func(f http2.Frame) bool { _, ok := f.(*http2.MetaHeadersFrame); return ok }).(*http2.MetaHeadersFrame)
	fields := map[string]string{}
	for _, h := range f.Fields {
		fields[h.Name] = h.Value
	}
	return fields
}
