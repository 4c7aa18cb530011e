package proxy

import (
	"bufio"
	"bytes"
	"context"
	"errors"
	"io"
	"net"
	"net/http"
	"net/http/httputil"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"txmesh/interceptor"
	"txmesh/interceptor/proxy/h2"
)

// seeds takes all that clients send in the shapes of tests/fidelity.
func seeds(f *testing.F) {
	files, err := filepath.Glob("../../tests/fidelity/testdata/*.txt")
	if err != nil || len(files) == 0 {
		f.Fatalf("no seeds: %v", err)
	}
	for _, file := range files {
		text, err := os.ReadFile(file)
		if err != nil {
			f.Fatal(err)
		}
		for _, shape := range strings.Split(string(text), "\n## ") {
			if raw := clientBytes(shape); raw != nil {
				f.Add(raw)
			}
		}
	}
}

func clientBytes(shape string) []byte {
	var raw []byte
	client := false
	for line := range strings.SplitSeq(shape, "\n") {
		switch {
		case strings.HasPrefix(line, "C"):
			client = true
		case strings.HasPrefix(line, "S"):
			client = false
		case client && (strings.HasPrefix(line, "  ") || strings.HasPrefix(line, "- ")):
			line, joined := strings.CutSuffix(line[2:], `\`)
			text, err := strconv.Unquote(`"` + strings.ReplaceAll(line, `"`, `\"`) + `"`)
			if err != nil {
				continue
			}
			if raw = append(raw, text...); !joined {
				raw = append(raw, '\r', '\n')
			}
		}
	}
	return raw
}

// FuzzChunks holds the chunk reader against the one of the standard library: what ours takes for a whole body must
// be the same data there.
func FuzzChunks(f *testing.F) {
	for _, s := range []string{"3\r\nabc\r\n0\r\n\r\n", "0\r\nA: b\r\n\r\n", "a;x=\"y\"\r\n0123456789\r\n0\r\n\r\nrest", "ffffffffffffffff\r\n"} {
		f.Add([]byte(s), uint8(3))
	}
	f.Fuzz(func(t *testing.T, raw []byte, piece uint8) {
		b := body{framing: byChunks}
		var data []byte
		taken := 0
		for rest := raw; !b.done && len(rest) > 0; {
			part := rest[:min(len(rest), int(piece)+1)]
			plain, n, err := b.strip(bytes.Clone(part))
			if err != nil {
				return
			}
			data, taken, rest = append(data, plain...), taken+n, rest[n:]
		}
		if !b.done {
			return
		}
		again := body{framing: byChunks}
		if n, err := again.take(raw); n != taken || err != nil || !again.done {
			t.Fatalf("in one piece %d bytes, %v; in pieces of %d bytes %d", n, err, piece+1, taken)
		}
		want, err := io.ReadAll(httputil.NewChunkedReader(bytes.NewReader(raw[:taken])))
		if err != nil || !bytes.Equal(data, want) {
			t.Fatalf("read %q, the standard library %q, %v", data, want, err)
		}
	})
}

// FuzzHead holds the framing of a request against the standard library's.
func FuzzHead(f *testing.F) {
	seeds(f)
	limits, err := Options{}.checked()
	if err != nil {
		f.Fatal(err)
	}
	f.Fuzz(func(t *testing.T, raw []byte) {
		end, _, bad := headEnd(raw, 0)
		if bad != nil || end == 0 {
			return
		}
		var m message
		if bad := parseRequest(&m, raw[:end], &limits.Limits); bad != nil {
			return
		}
		if out := append(m.head.appendTo(nil), '\r', '\n'); !bytes.Equal(out, raw[:end]) {
			t.Fatalf("head changed: %q, want %q", out, raw[:end])
		}
		r, err := http.ReadRequest(bufio.NewReader(bytes.NewReader(raw[:end])))
		if err != nil {
			if tolerable(err) {
				return
			}
			t.Fatalf("accepted %q, which the standard library refuses: %v", raw[:end], err)
		}
		want := body{framing: noBody, done: true}
		switch {
		case len(r.TransferEncoding) > 0:
			want = body{framing: byChunks}
		case r.ContentLength > 0:
			want = body{framing: byLength, left: r.ContentLength}
		}
		if m.body != want {
			t.Fatalf("framing of %q is %+v, the standard library's %+v", raw[:end], m.body, want)
		}
		m.head.cleanRequest()
		m.head.appendTo(nil)
	})
}

// tolerable is what the standard library refuses for reasons that do not touch the framing.
func tolerable(err error) bool {
	s := err.Error()
	return strings.Contains(s, "parse \"") || strings.Contains(s, "invalid URI") || strings.Contains(s, "malformed Host") ||
		strings.Contains(s, "invalid trailer") || strings.Contains(s, "bad trailer key")
}

// FuzzRequests sends bytes to the proxy and reads with the standard library what reaches the server: as many
// requests as the Gate let pass, and never an answer of 500.
func FuzzRequests(f *testing.F) {
	seeds(f)
	f.Fuzz(func(t *testing.T, raw []byte) {
		if bytes.HasPrefix(bytes.TrimLeft(raw, "\r\n"), []byte(h2.PrefaceHead)) || bytes.Contains(raw, []byte("h2c")) {
			return // HTTP/2 has a fuzz target of its own
		}
		var passed atomic.Int32
		g := newGate()
		g.before = func(interceptor.Request) interceptor.Verdict {
			passed.Add(1)
			return interceptor.Verdict{}
		}
		w := newWire()
		p, err := NewInbound(Options{Gate: g, Dial: w.dial}, "s", "127.0.0.1:1")
		if err != nil {
			t.Fatal(err)
		}
		l := listen(t)
		go func() { _ = p.Serve(l) }() // Shutdown ends it
		c := dial(t, l.Addr().String())
		go func() {
			_, _ = c.Conn.Write(raw) // the proxy may have closed already
			_ = c.Conn.(*net.TCPConn).CloseWrite()
		}()
		answers, _ := io.ReadAll(c)
		if err := p.Shutdown(context.Background()); err != nil {
			t.Fatal(err)
		}
		if bytes.Contains(answers, []byte("HTTP/1.1 500")) {
			t.Fatalf("got %q", answers)
		}
		requests, sure := w.requests(t)
		if sure && requests > int(passed.Load()) {
			t.Fatalf("the server read %d requests, the Gate %d, out of %q", requests, passed.Load(), raw)
		}
	})
}

// wire is a server that keeps what it reads, and answers each piece of it.
type wire struct {
	mu    sync.Mutex // guards conns
	conns []*wireConn
}

type wireConn struct {
	net.Conn
	got  bytes.Buffer
	done chan struct{}
}

func newWire() *wire { return new(wire) }

func (w *wire) dial(context.Context, string, string) (net.Conn, error) {
	near, far := net.Pipe()
	c := &wireConn{Conn: far, done: make(chan struct{})}
	w.mu.Lock()
	w.conns = append(w.conns, c)
	w.mu.Unlock()
	go c.serve()
	return near, nil
}

func (c *wireConn) serve() {
	defer close(c.done)
	defer c.Close()
	r := bufio.NewReader(io.TeeReader(c, &c.got))
	for {
		if c.SetDeadline(time.Now().Add(patience)) != nil {
			return
		}
		request, err := http.ReadRequest(r)
		if err != nil {
			return
		}
		if _, err := io.Copy(io.Discard, request.Body); err != nil {
			return
		}
		if _, err := io.WriteString(c, okay); err != nil {
			return
		}
	}
}

// requests counts what all connections carried. It is sure unless the standard library stumbled over a URL.
func (w *wire) requests(t *testing.T) (n int, sure bool) {
	w.mu.Lock()
	defer w.mu.Unlock()
	for _, c := range w.conns {
		<-c.done
		r := bufio.NewReader(&c.got)
		for {
			request, err := http.ReadRequest(r)
			if errors.Is(err, io.EOF) || errors.Is(err, io.ErrUnexpectedEOF) {
				break
			}
			if err != nil {
				if tolerable(err) {
					return n, false
				}
				t.Fatalf("the server cannot read what the proxy sent: %v", err)
			}
			n++
			if _, err := io.Copy(io.Discard, request.Body); err != nil {
				break
			}
		}
	}
	return n, true
}
