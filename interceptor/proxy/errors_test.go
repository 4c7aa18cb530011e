package proxy

import (
	"bufio"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"net"
	"os"
	"strings"
	"testing"
	"time"
)

// TestErrorsInFull sends the real thing and compares the whole message.
func TestErrorsInFull(t *testing.T) {
	const post = "POST / HTTP/1.1\r\nHost: x\r\n"
	limits := Limits{HeaderBytes: 4096, HeaderFields: 4, BodyBytes: 10, HeaderTime: 50 * time.Millisecond, Exchange: 100 * time.Millisecond}
	for _, tt := range []struct {
		name    string
		request string
		answer  string // of the upstream; "": none, "-": it does not listen
		status  int
		code    string
		detail  string
	}{
		{"malformed", "GET / HTTP/1.1\r\nHost x\r\n\r\n", "", 400, "TXM0200",
			`malformed request: header line "Host x" does not start with a name and a colon; send the request as RFC 9112 has it: CRLF line ends, one space in the request line, no folded lines`},
		{"framing", post + "Content-Length: 1\r\nTransfer-Encoding: chunked\r\n\r\n", "", 400, "TXM0201",
			"ambiguous length of the request: Content-Length and Transfer-Encoding in one request; send either one Content-Length or `Transfer-Encoding: chunked`, never both and never twice"},
		{"header size", "GET / HTTP/1.1\r\nHost: x\r\nX-A: " + strings.Repeat("a", 5000), "", 431, "TXM0202",
			"request header too large; send fewer or shorter header fields, or raise the limit of header bytes"},
		{"header count", "GET / HTTP/1.1\r\nHost: x\r\n" + strings.Repeat("A: b\r\n", 9) + "\r\n", "", 431, "TXM0203",
			"too many header fields; send fewer header fields, or raise the limit of header fields"},
		{"slow header", "GET / HTTP/1.1\r\nHo", "", 408, "TXM0207",
			"request header came too slowly; send the whole header at once, or raise the time limit for reading it"},
		{"chunk", post + "Transfer-Encoding: chunked\r\n\r\nx", "", 400, "TXM0208",
			"malformed request body: chunk size is not a hexadecimal number; repair the chunked coding or the trailers of the request"},
		{"announced body", post + "Content-Length: 11\r\n\r\n", "", 413, "TXM0209",
			"request body too large; send a smaller body, or raise the limit of body bytes"},
		{"chunked body", post + "Transfer-Encoding: chunked\r\n\r\nb\r\n01234567890\r\n0\r\n\r\n", "", 413, "TXM0209",
			"request body too large; send a smaller body, or raise the limit of body bytes"},
		{"nobody listens", get, "-", 503, "TXM0220",
			"endpoint unreachable: endpoint 127.0.0.1:1: connection refused; nothing was sent, so the request may be repeated; check that the endpoint listens"},
		{"closed", get, "!", 502, "TXM0221",
			"endpoint broke off: endpoint UP: connection closed; the request was sent and its effect is unknown; look into the log of the endpoint before repeating it"},
		{"no HTTP", get, "SSH-2.0-x\r\n\r\n", 502, "TXM0222",
			`malformed response from the endpoint: endpoint UP: status line "SSH-2.0-x"; the request was sent and its effect is unknown; repair the response of the endpoint`},
		{"large response header", get, "HTTP/1.1 200 OK\r\nA: " + strings.Repeat("a", 5000), 502, "TXM0222",
			"malformed response from the endpoint: endpoint UP: header too large; the request was sent and its effect is unknown; repair the response of the endpoint"},
		{"many response fields", get, "HTTP/1.1 200 OK\r\n" + strings.Repeat("A: b\r\n", 9) + "\r\n", 502, "TXM0222",
			"malformed response from the endpoint: endpoint UP: too many header fields; the request was sent and its effect is unknown; repair the response of the endpoint"},
		{"silent", get, "", 504, "TXM0223",
			"endpoint did not answer in time: endpoint UP; the request was sent and its effect is unknown; look into the log of the endpoint, or raise the time limit"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			up := "127.0.0.1:1"
			if tt.answer != "-" {
				up = upstreamServer(t, func(conn net.Conn) {
					r := bufio.NewReader(conn)
					if _, err := readHead(r); err == nil && tt.answer != "!" {
						say(conn, tt.answer)
						drain(r)
					}
				})
			}
			p, err := NewInbound(Options{Limits: limits}, "s", up)
			c := dial(t, start(t, p, err))
			c.send(tt.request)
			head, err := readHead(c.Reader)
			if err != nil || !strings.HasPrefix(head, fmt.Sprintf("HTTP/1.1 %d ", tt.status)) ||
				!strings.Contains(head, "\r\nContent-Type: application/problem+json\r\ntx-error: "+tt.code+"\r\n") {
				t.Errorf("head %q, %v; want %d, %s", head, err, tt.status, tt.code)
			}
			body := make([]byte, contentLength(head))
			if _, err := io.ReadFull(c.Reader, body); err != nil {
				t.Fatal(err)
			}
			var got problem
			if err := json.Unmarshal(body, &got); err != nil {
				t.Fatalf("%q: %v", body, err)
			}
			want := problem{"https://txmesh.io/codes#" + tt.code, strings.SplitN(tt.detail, ";", 2)[0],
				tt.status, tt.code, strings.ReplaceAll(tt.detail, "UP", up), tt.answer == "-"}
			want.Title, _, _ = strings.Cut(want.Title, ":")
			if got != want {
				t.Errorf("got\n%+v, want\n%+v", got, want)
			}
		})
	}
}

func TestCodesAreInOrder(t *testing.T) {
	last := "TXM0199"
	for i, c := range Codes() {
		if c.Code <= last || c.Code > "TXM0249" || c.Status < 400 || c.Title == "" || c.Remedy == "" {
			t.Errorf("row %d after %s: %+v", i, last, c)
		}
		last = c.Code
	}
}

func TestWrongOptionsAreNamed(t *testing.T) {
	_, err := NewInbound(Options{Limits: Limits{Conns: -1, Idle: -time.Second}}, "bank/a", "nowhere")
	want := `inbound proxy of "bank/a": limit Conns is -1: give a positive value, or 0 for the default 10000
limit Idle is -1s: give a positive value, or 0 for the default 2m0s
endpoint "nowhere" is not host:port`
	if err == nil || err.Error() != want {
		t.Errorf("got\n%v, want\n%s", err, want)
	}
	_, err = NewUpstream(Options{}, "bank/a", nil)
	if want := `upstream "bank/a": no endpoint: give at least one host:port`; err == nil || err.Error() != want {
		t.Errorf("got %v, want %s", err, want)
	}
	_, err = NewForward(Options{}, []Route{
		{Host: "A.example", Service: "bank/a", Endpoints: []string{"127.0.0.1:1"}},
		{Host: "a.example:80", Service: "bank/b", Endpoints: []string{"127.0.0.1:x"}},
	})
	want = `forward proxy: host "a.example:80" is claimed by "bank/a" and by "bank/b": name it once
route of host "a.example:80": endpoint "127.0.0.1:x" has no port between 1 and 65535`
	if err == nil || err.Error() != want {
		t.Errorf("got\n%v, want\n%s", err, want)
	}
}

func TestConnectionsAreLimited(t *testing.T) {
	p, err := NewInbound(Options{Limits: Limits{Conns: 1}}, "s", scripted(t, okay))
	address := start(t, p, err)
	first := dial(t, address)
	first.send(get)
	first.want(okay)
	second := dial(t, address)
	second.want("HTTP/1.1 503 Service Unavailable\r\nContent-Type: application/problem+json\r\ntx-error: TXM0210\r\n")
	second.rest()
	first.send(get)
	first.want(okay)
}

func TestIdleConnectionsEnd(t *testing.T) {
	p, err := NewInbound(Options{Limits: Limits{Idle: 20 * time.Millisecond}}, "s", scripted(t, okay))
	c := dial(t, start(t, p, err))
	c.send(get)
	c.want(okay)
	if got := c.rest(); got != "" {
		t.Errorf("got %q, want the end", got)
	}
}

func TestKeptConnectionsEnd(t *testing.T) {
	ended := make(chan struct{})
	p, err := NewInbound(Options{Limits: Limits{EndpointIdle: 20 * time.Millisecond}}, "s", upstreamServer(t, func(conn net.Conn) {
		r := bufio.NewReader(conn)
		if _, err := readHead(r); err != nil {
			return
		}
		say(conn, okay)
		if _, err := r.ReadByte(); err == io.EOF {
			close(ended)
		}
	}))
	c := dial(t, start(t, p, err))
	c.send(get)
	c.want(okay)
	select {
	case <-ended:
	case <-time.After(patience):
		t.Error("the kept connection is still open")
	}
}

// TestBodyLimitHoldsWhileStreaming sends a body that grows beyond the limit after the upstream has its start.
func TestBodyLimitHoldsWhileStreaming(t *testing.T) {
	asked := make(chan struct{})
	p, err := NewInbound(Options{Limits: Limits{BodyBytes: 10}}, "s", upstreamServer(t, func(conn net.Conn) {
		r := bufio.NewReader(conn)
		if _, err := readHead(r); err != nil {
			return
		}
		close(asked)
		if all, _ := io.ReadAll(r); strings.HasSuffix(string(all), "0\r\n\r\n") {
			t.Errorf("upstream took %q for a whole body", all)
		}
	}))
	c := dial(t, start(t, p, err))
	c.send("POST / HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n")
	<-asked
	c.send("14\r\n01234567890123456789\r\n0\r\n\r\n")
	c.want("HTTP/1.1 413 ")
}

// TestUnfinishedUploadEnds answers a request whose body never comes. Neither connection may be used again.
func TestUnfinishedUploadEnds(t *testing.T) {
	conns := make(chan string, 2)
	p, err := NewInbound(Options{Limits: Limits{BufferTime: 30 * time.Millisecond}}, "s", upstreamServer(t, func(conn net.Conn) {
		r := bufio.NewReader(conn)
		skipHead(r)
		say(conn, okay)
		all, err := io.ReadAll(r)
		conns <- fmt.Sprint(string(all), " ", err)
	}))
	address := start(t, p, err)
	c := dial(t, address)
	c.send("POST / HTTP/1.1\r\nHost: x\r\nContent-Length: 10\r\n\r\nabcde")
	c.want(okay)
	if got := c.rest(); got != "" {
		t.Errorf("got %q, want the end", got)
	}
	if got := <-conns; got != "abcde <nil>" {
		t.Errorf("upstream got %q, want abcde and the end", got)
	}
	c = dial(t, address)
	c.send(get)
	c.want(okay)
}

// TestUploadNobodyReadsEnds answers at once and leaves a large body unread.
func TestUploadNobodyReadsEnds(t *testing.T) {
	for name, answer := range map[string]string{"kept alive": okay, "closing": okayC} {
		t.Run(name, func(t *testing.T) {
			ended := make(chan struct{})
			p, err := NewInbound(Options{Limits: Limits{BufferTime: 50 * time.Millisecond}}, "s", upstreamServer(t, func(conn net.Conn) {
				skipHead(bufio.NewReader(conn))
				say(conn, answer)
				<-ended
			}))
			c := dial(t, start(t, p, err))
			c.send("POST / HTTP/1.1\r\nHost: x\r\nContent-Length: 1000000000\r\n\r\n")
			sent := make(chan struct{})
			go func() {
				defer close(sent)
				for piece := make([]byte, 1<<20); ; {
					if _, err := c.Conn.Write(piece); err != nil {
						return
					}
				}
			}()
			c.want(okay)
			<-sent
			close(ended)
		})
	}
}

// deafConn takes one write and refuses all others.
type deafConn struct {
	net.Conn
	writes  int
	refused chan struct{}
}

func (c *deafConn) Write(p []byte) (int, error) {
	if c.writes++; c.writes == 1 {
		return c.Conn.Write(p)
	}
	close(c.refused)
	return 0, io.ErrClosedPipe
}

// TestBodyOfAFailedUploadIsNoRequest sends a body that looks like a request to an upstream that does not take it.
func TestBodyOfAFailedUploadIsNoRequest(t *testing.T) {
	asked, refused := make(chan struct{}), make(chan struct{})
	dials := func(context.Context, string, string) (net.Conn, error) {
		near, far := net.Pipe()
		go func() {
			skipHead(bufio.NewReader(far))
			close(asked)
			<-refused
			far.Close()
		}()
		return &deafConn{Conn: near, refused: refused}, nil
	}
	g := newGate()
	p, err := NewInbound(Options{Gate: g, Dial: dials}, "s", "127.0.0.1:1")
	c := dial(t, start(t, p, err))
	const evil = "GET /evil HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n"
	c.send(fmt.Sprintf("POST / HTTP/1.1\r\nHost: x\r\nContent-Length: %d\r\n\r\n", len(evil)))
	<-asked
	c.send(evil)
	c.want("HTTP/1.1 502 ")
	_ = c.Conn.(*net.TCPConn).CloseWrite() // the proxy may have closed already
	if got := c.rest(); strings.Contains(got, "HTTP/1.1 ") {
		t.Errorf("a second answer: %q", got)
	}
	if g.mu.Lock(); len(g.ports) != 1 {
		t.Errorf("the gate saw %d requests, want 1", len(g.ports))
	}
	g.mu.Unlock()
}

// TestMalformedChunkWhileStreaming is never a whole message at the upstream.
func TestMalformedChunkWhileStreaming(t *testing.T) {
	asked := make(chan struct{})
	p, err := NewInbound(Options{}, "s", upstreamServer(t, func(conn net.Conn) {
		r := bufio.NewReader(conn)
		if _, err := readHead(r); err != nil {
			return
		}
		close(asked)
		if all, _ := io.ReadAll(r); len(all) > 0 {
			t.Errorf("upstream got %q", all)
		}
	}))
	c := dial(t, start(t, p, err))
	c.send("POST / HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n")
	<-asked
	c.send("5\nhello\r\n0\r\n\r\nGET /evil HTTP/1.1\r\nHost: x\r\n\r\n")
	c.want("HTTP/1.1 400 ")
	if got := c.rest(); strings.Contains(got, "HTTP/1.1 ") {
		t.Errorf("a second answer: %q", got)
	}
}

func TestReadmeHasTheTable(t *testing.T) {
	readme, err := os.ReadFile("README.md")
	if err != nil {
		t.Fatal(err)
	}
	for _, c := range Codes() {
		if row := fmt.Sprintf("| %s | %d | %s |", c.Code, c.Status, c.Title); !strings.Contains(string(readme), row) {
			t.Errorf("README.md has no row %q", row)
		}
	}
}
