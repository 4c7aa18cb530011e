package hardening

import (
	"bufio"
	"fmt"
	"io"
	"net"
	"net/http"
	"strings"
	"testing"
	"time"
)

// many opens n connections and sends each the same bytes.
func many(t *testing.T, address string, n int, raw string) []net.Conn {
	t.Helper()
	conns := make([]net.Conn, n)
	for i := range conns {
		conns[i] = dial(t, address)
		if _, err := io.WriteString(conns[i], raw); err != nil {
			t.Fatal(err)
		}
	}
	return conns
}

// served sends honest requests, and returns the longest that one took.
func served(t *testing.T, address string, n int) (longest time.Duration) {
	t.Helper()
	client := &http.Client{Timeout: patience}
	defer client.CloseIdleConnections()
	for range n {
		began := time.Now()
		res, err := client.Get("http://" + address + "/honest")
		if err != nil {
			t.Fatal(err)
		}
		_, _ = io.Copy(io.Discard, res.Body) // its status is what matters
		res.Body.Close()
		if res.StatusCode != 200 {
			t.Fatalf("an honest request got %s", res.Status)
		}
		longest = max(longest, time.Since(began))
	}
	return longest
}

// refusals wants the answer with that status and code on each connection, and its end.
func refusals(t *testing.T, conns []net.Conn, status, code string) {
	t.Helper()
	for i, c := range conns {
		got, err := io.ReadAll(c)
		if err != nil || !strings.HasPrefix(string(got), "HTTP/1.1 "+status+" ") || !strings.Contains(string(got), "\r\ntx-error: "+code+"\r\n") {
			t.Fatalf("connection %d got %.100q, %v; want %s and %s", i, got, err, status, code)
		}
	}
}

func TestSlowHeads(t *testing.T) {
	const n = 2000
	m := start(t, goBackend(t).address, "--headers-timeout=3s")
	idle := m.resident(t)
	conns := many(t, m.Inbound, n, "GET / HTTP/1.1\r\nHost: x\r\nX-Slow: ")
	stop := make(chan struct{})
	done := make(chan struct{})
	go func() { // a byte now and then, so that none is silent
		defer close(done)
		for {
			for _, c := range conns {
				select {
				case <-stop:
					return
				default:
					_, _ = c.Write([]byte("x")) // until the sidecar has had enough
				}
			}
		}
	}()
	t.Logf("beside %d slow connections an honest request took %v at most; %d KiB for each", n, served(t, m.Inbound, 100), (m.resident(t)-idle)/n>>10)
	m.awaits(t, "TXM0207", n)
	close(stop)
	<-done
	refusals(t, many(t, m.Inbound, 1, "GET / HTTP/1.1\r\nHost: x\r\nX-Slow: "), "408", "TXM0207")
}

func TestSilentBodies(t *testing.T) {
	const n = 200
	m := start(t, goBackend(t).address, "--body-idle-timeout=1s")
	conns := many(t, m.Inbound, n, "POST / HTTP/1.1\r\nHost: x\r\nContent-Length: 100\r\n\r\nx")
	served(t, m.Inbound, 20)
	refusals(t, conns, "408", "TXM0217")
	m.awaits(t, "TXM0217", n)
}

// serveRaw answers each connection with one long write after its head.
func serveRaw(t *testing.T, answer func(c net.Conn)) string {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { l.Close() })
	go func() {
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			go func() {
				defer c.Close()
				if req, err := http.ReadRequest(bufio.NewReader(c)); err == nil && req.URL.Path == "/honest" {
					_, _ = io.WriteString(c, "HTTP/1.1 200 OK\r\nConnection: close\r\nContent-Length: 0\r\n\r\n") // the client tells
				} else {
					answer(c)
				}
			}()
		}
	}()
	return l.Addr().String()
}

func TestReadersOfNothing(t *testing.T) {
	const n = 100
	app := serveRaw(t, func(c net.Conn) {
		_, _ = io.WriteString(c, "HTTP/1.1 200 OK\r\nContent-Length: 1000000000\r\n\r\n")
		for piece := make([]byte, 1<<20); ; {
			if _, err := c.Write(piece); err != nil {
				return
			}
		}
	})
	m := start(t, app, "--send-timeout=1s")
	idle := m.resident(t)
	many(t, m.Inbound, n, "GET /large HTTP/1.1\r\nHost: x\r\n\r\n")
	served(t, m.Inbound, 20)
	t.Logf("a reader of nothing costs %d KiB", (m.resident(t)-idle)/n>>10)
	m.awaits(t, "TXM0216", n)
}

func TestSlowEndpoints(t *testing.T) {
	const n = 100
	app := serveRaw(t, func(c net.Conn) { _, _ = io.Copy(io.Discard, c) })
	m := start(t, app, "--request-timeout=1s")
	refusals(t, many(t, m.Inbound, n, "GET /never HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n"), "504", "TXM0223")
	m.awaits(t, "TXM0223", n)
	served(t, m.Inbound, 5)
}

// Who pipelines without end and reads nothing waits for himself alone; who reads gets each answer, in order.
func TestPipeliningFloods(t *testing.T) {
	m := start(t, goBackend(t).address, "--send-timeout=2s")
	idle := m.resident(t)
	deaf := dial(t, m.Inbound)
	flood := strings.Repeat("GET /flood HTTP/1.1\r\nHost: x\r\n\r\n", 1000)
	for range 10_000 {
		if _, err := io.WriteString(deaf, flood); err != nil {
			break
		}
	}
	if grown := m.resident(t) - idle; grown > 16<<20 {
		t.Errorf("a flood on one connection costs %d KiB", grown>>10)
	}
	m.awaits(t, "TXM0216", 1)

	const n = 5000
	c := dial(t, m.Inbound)
	go func() {
		for i := range n {
			_, _ = fmt.Fprintf(c, "GET /%d HTTP/1.1\r\nHost: x\r\n\r\n", i) // the reader tells
		}
	}()
	r := bufio.NewReader(c)
	for i := range n {
		if got := answer(t, r); got != fmt.Sprintf("/%d", i) {
			t.Fatalf("answer %d is for %q", i, got)
		}
	}
}

func TestFloodsOfConnections(t *testing.T) {
	const most, more = 50, 20
	m := start(t, goBackend(t).address, "--max-connections=50", "--dtm=127.0.0.1:0")
	want := 0
	// The API comes first: who asks it for the metrics at the end should find a place.
	for _, p := range []struct{ name, address string }{{"api", m.API}, {"inbound", m.Inbound}, {"outbound", m.Outbound}, {"peer", m.Peer}, {"dtm", m.DTM}} {
		conns := many(t, p.address, most, "GET ")
		time.Sleep(100 * time.Millisecond) // all of them are accepted
		refusals(t, many(t, p.address, more, "GET /x HTTP/1.1\r\nHost: x\r\n\r\n"), "503", "TXM0210")
		for _, c := range conns {
			c.Close()
		}
		t.Log(p.name)
		want += more
	}
	m.awaits(t, "TXM0210", want)
}

func TestTheSidecarDoesNotCallItself(t *testing.T) {
	app := goBackend(t).address
	m := start(t, app, "--upstreams=service=other,listen=127.0.0.1:0,to="+app)
	port := func(address string) string { return address[strings.LastIndexByte(address, ':'):] }
	n := 0
	for _, to := range []string{m.Outbound, "localhost" + port(m.Outbound), m.Upstreams["test/other"], "localhost" + port(m.Upstreams["test/other"])} {
		for _, raw := range []string{"GET http://" + to + "/x HTTP/1.1\r\nHost: " + to + "\r\nConnection: close\r\n\r\n", "CONNECT " + to + " HTTP/1.1\r\nHost: " + to + "\r\nConnection: close\r\n\r\n"} {
			refusals(t, many(t, m.Outbound, 1, raw), "508", "TXM0215")
			n++
		}
	}
	m.awaits(t, "TXM0215", n)
	for _, to := range []string{m.Inbound, app} { // a service may call itself
		c := many(t, m.Outbound, 1, "GET http://"+to+"/honest HTTP/1.1\r\nHost: "+to+"\r\n\r\n")[0]
		if got := answer(t, bufio.NewReader(c)); !strings.HasSuffix(got, "/honest") {
			t.Errorf("a call of %s through the own proxy got %q", to, got)
		}
	}
}

// What a stranger sends is one line of the log, whatever is in it.
func TestNothingIsInjectedIntoTheLog(t *testing.T) {
	m := start(t, goBackend(t).address, "--log-format=text", "--log-level=debug")
	for _, raw := range []string{
		"POST /v1/enlist?%0d%0atime=forged HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n",
		"POST /v1/%0d%0atime=forged HTTP/1.1\r\nHost: x\r\nTxmesh-Mac: x\r\nConnection: close\r\n\r\n",
	} {
		if _, err := io.ReadAll(many(t, m.Peer, 1, raw)[0]); err != nil {
			t.Error(err)
		}
	}
	for line := range strings.Lines(m.process.Output()) {
		if !strings.HasPrefix(line, "time=2") && !strings.HasPrefix(line, "{") {
			t.Errorf("a line of the log that the sidecar did not write: %q", line)
		}
	}
}
