package fidelity

import (
	"bufio"
	"fmt"
	"hash/crc32"
	"io"
	"net"
	"net/http/httputil"
	"os"
	"runtime"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"txmesh/interceptor/proxy"
)

const (
	okay = "HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok"
	get  = "GET / HTTP/1.1\r\nHost: x\r\n\r\n"
)

// serveRaw runs handle for each connection to a new listener.
func serveRaw(t testing.TB, handle func(c net.Conn, r *bufio.Reader)) string {
	l := listen(t)
	var conns sync.WaitGroup
	conns.Go(func() {
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			conns.Go(func() {
				defer c.Close()
				limit(t, c.SetDeadline, 3*patience)
				handle(c, bufio.NewReader(c))
			})
		}
	})
	t.Cleanup(func() {
		l.Close()
		conns.Wait()
	})
	return l.Addr().String()
}

// behind starts a proxy in front of the address until the end of the test.
func behind(t testing.TB, kind, address string) string {
	front, stop := newProxy(t, kind, address, proxy.Options{})
	t.Cleanup(func() {
		if err := stop(); err != nil {
			t.Error(err)
		}
	})
	return front
}

// readHead returns the start line and the value of Content-Length, -1 without.
func readHead(r *bufio.Reader) (line string, length int, err error) {
	length = -1
	for {
		s, err := r.ReadString('\n')
		if err != nil {
			return line, length, err
		}
		if s == "\r\n" {
			return line, length, nil
		}
		if line == "" {
			line = s
		}
		if name, value, ok := strings.Cut(s, ":"); ok && strings.EqualFold(name, "content-length") {
			if length, err = strconv.Atoi(strings.TrimSpace(value)); err != nil {
				return line, length, err
			}
		}
	}
}

// memory is the heap in use and the resident set, in bytes.
func memory(t testing.TB) (heap, resident int64) {
	var m runtime.MemStats
	runtime.ReadMemStats(&m)
	text, err := os.ReadFile("/proc/self/statm")
	if err != nil {
		return int64(m.HeapInuse), 0
	}
	var size, pages int64
	if _, err := fmt.Sscan(string(text), &size, &pages); err != nil {
		t.Fatal(err)
	}
	return int64(m.HeapInuse), pages * int64(os.Getpagesize())
}

// pattern sends n bytes and returns their checksum. It looks at the memory on its way.
func pattern(t testing.TB, w io.Writer, n int, peak *[2]int64) uint32 {
	sum := crc32.NewIEEE()
	piece := make([]byte, 1<<20)
	for at := 0; at < n; at += len(piece) {
		for i := range piece {
			piece[i] = byte(i * (at>>20 + 1))
		}
		p := piece[:min(len(piece), n-at)]
		sum.Write(p)
		if _, err := w.Write(p); err != nil {
			t.Errorf("after %d bytes: %v", at, err)
			return 0
		}
		heap, resident := memory(t)
		peak[0], peak[1] = max(peak[0], heap), max(peak[1], resident)
	}
	return sum.Sum32()
}

// TestLargeBodiesStream sends 100 MB up and 100 MB down, by length and by chunks, and watches the memory of the
// whole process: client, proxy and server.
func TestLargeBodiesStream(t *testing.T) {
	const size = 100 << 20
	for _, chunked := range []bool{false, true} {
		t.Run(map[bool]string{false: "by length", true: "by chunks"}[chunked], func(t *testing.T) {
			frame, body := "Content-Length: "+strconv.Itoa(size), func(r io.Reader) io.Reader { return io.LimitReader(r, size) }
			wrap := func(w io.Writer) io.WriteCloser { return nopCloser{w} }
			if chunked {
				frame, body = "Transfer-Encoding: chunked", httputil.NewChunkedReader
				wrap = httputil.NewChunkedWriter
			}
			last := map[bool]string{true: "\r\n"}[chunked] // after the chunks: no trailers
			var peak [2]int64
			sums := make(chan uint32, 2)
			address := behind(t, "inbound", serveRaw(t, func(c net.Conn, r *bufio.Reader) {
				if _, _, err := readHead(r); err != nil {
					return
				}
				sum := crc32.NewIEEE()
				if _, err := io.Copy(sum, body(r)); err != nil {
					t.Error(err)
				}
				if _, err := r.Discard(len(last)); err != nil { // or the close would reset the connection
					t.Error(err)
				}
				sums <- sum.Sum32()
				say(c, "HTTP/1.1 200 OK\r\n"+frame+"\r\nConnection: close\r\n\r\n")
				w := wrap(c)
				sums <- pattern(t, w, size, &peak)
				w.Close()
				say(c, last)
			}))
			c := dial(t, address)
			limit(t, c.SetDeadline, 3*patience)
			runtime.GC()
			heap, resident := memory(t)
			say(c, "POST / HTTP/1.1\r\nHost: x\r\n"+frame+"\r\n\r\n")
			w := wrap(c)
			sent := pattern(t, w, size, &peak)
			w.Close()
			say(c, last)
			if got := <-sums; got != sent {
				t.Errorf("up: checksum %x, want %x", got, sent)
			}
			r := bufio.NewReader(c)
			if line, _, err := readHead(r); err != nil || line != "HTTP/1.1 200 OK\r\n" {
				t.Fatalf("got %q, %v", line, err)
			}
			sum := crc32.NewIEEE()
			n, err := io.Copy(sum, body(r))
			if want := <-sums; sum.Sum32() != want || err != nil {
				t.Errorf("down: checksum %x of %d bytes, %v; want %x", sum.Sum32(), n, err, want)
			}
			t.Logf("heap %.1f MB + %.1f, resident %.1f MB + %.1f", mb(heap), mb(peak[0]-heap), mb(resident), mb(peak[1]-resident))
			const most = 16 << 20
			if peak[0]-heap > most || peak[1]-resident > most && !raceDetector { // which has a memory of its own
				t.Errorf("memory grew by more than %d MB while 200 MB passed", most>>20)
			}
		})
	}
}

type nopCloser struct{ io.Writer }

func (nopCloser) Close() error { return nil }

func mb(n int64) float64 { return float64(n) / (1 << 20) }

// TestTrickleIsNotHeld sends each piece only when the one before has arrived at the far end, both ways.
func TestTrickleIsNotHeld(t *testing.T) {
	const pieces = 300
	piece := strings.Repeat("x", 999)
	arrived := make(chan struct{})
	address := behind(t, "inbound", serveRaw(t, func(c net.Conn, r *bufio.Reader) {
		if _, _, err := readHead(r); err != nil {
			return
		}
		for range pieces {
			if _, err := io.CopyN(io.Discard, r, int64(len(piece))); err != nil {
				t.Error(err)
				break
			}
			arrived <- struct{}{}
		}
		fmt.Fprintf(c, "HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n", pieces*len(piece))
		for range pieces {
			say(c, piece)
			<-arrived
		}
	}))
	c := dial(t, address)
	fmt.Fprintf(c, "POST / HTTP/1.1\r\nHost: x\r\nContent-Length: %d\r\n\r\n", pieces*len(piece))
	for range pieces {
		say(c, piece)
		<-arrived
	}
	r := bufio.NewReader(c)
	if _, _, err := readHead(r); err != nil {
		t.Fatal(err)
	}
	for range pieces {
		if _, err := io.CopyN(io.Discard, r, int64(len(piece))); err != nil {
			t.Fatal(err)
		}
		arrived <- struct{}{}
	}
}

// TestTrickleKeepsItsPace sends 1 MB/s for two seconds. The last piece arrives when it is sent, not later.
func TestTrickleKeepsItsPace(t *testing.T) {
	const pieces, pace = 200, 10 * time.Millisecond
	piece := strings.Repeat("x", 10<<10)
	address := behind(t, "inbound", serveRaw(t, func(c net.Conn, r *bufio.Reader) {
		if _, _, err := readHead(r); err != nil {
			return
		}
		fmt.Fprintf(c, "HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n", pieces*len(piece))
		tick := time.NewTicker(pace)
		defer tick.Stop()
		for range pieces {
			<-tick.C
			if _, err := io.WriteString(c, piece); err != nil {
				t.Error(err)
				return
			}
		}
	}))
	c := dial(t, address)
	say(c, get)
	r := bufio.NewReader(c)
	if _, _, err := readHead(r); err != nil {
		t.Fatal(err)
	}
	begin, first := time.Now(), time.Duration(0)
	for i := range pieces {
		if _, err := io.CopyN(io.Discard, r, int64(len(piece))); err != nil {
			t.Fatal(err)
		}
		if i == 0 {
			first = time.Since(begin)
		}
	}
	took := time.Since(begin)
	t.Logf("first piece after %v, all %d after %v", first, pieces, took)
	if most := pieces*pace + patience/4; took > most || first > patience/4 {
		t.Errorf("first piece after %v, all after %v; want at most %v", first, took, most)
	}
}

// TestThousandConnections keeps 1,000 connections alive over three rounds.
func TestThousandConnections(t *testing.T) {
	const n = 1000
	address := behind(t, "inbound", serveRaw(t, func(c net.Conn, r *bufio.Reader) {
		for {
			line, _, err := readHead(r)
			if err != nil {
				return
			}
			body := strings.Fields(line)[1]
			fmt.Fprintf(c, "HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n%s", len(body), body)
		}
	}))
	conns := make([]net.Conn, n)
	for i := range conns {
		conns[i] = dial(t, address)
	}
	for round := range 3 {
		for i, c := range conns {
			fmt.Fprintf(c, "GET /%d/%d HTTP/1.1\r\nHost: x\r\n\r\n", round, i)
		}
		for i, c := range conns {
			body := fmt.Sprintf("/%d/%d", round, i)
			want := fmt.Sprintf("HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n%s", len(body), body)
			receive(t, c, []byte(want), i)
		}
	}
}

// TestIdleConnectionsAreSmall compares the heap and the stacks of 1,000 idle connections with and without the proxy.
// Connections that are kept alive share one connection to the server: there the proxy takes the server's place.
func TestIdleConnectionsAreSmall(t *testing.T) {
	const upgrade = "GET /ws HTTP/1.1\r\nHost: x\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\r\n"
	const switched = "HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n\r\n"
	for _, tt := range []struct {
		name, request, answer string
		most                  int64 // bytes
	}{
		{"kept alive", get, okay, 20 << 10},
		{"WebSocket", upgrade, switched, 20 << 10},
	} {
		t.Run(tt.name, func(t *testing.T) {
			address := serveRaw(t, func(c net.Conn, r *bufio.Reader) {
				for {
					if _, _, err := readHead(r); err != nil {
						return
					}
					say(c, tt.answer)
				}
			})
			direct := idleCost(t, address, tt.request, tt.answer)
			cost := idleCost(t, behind(t, "inbound", address), tt.request, tt.answer) - direct
			t.Logf("%.1f KiB more than the %.1f KiB of a direct connection with both its ends", float64(cost)/1024, float64(direct)/1024)
			if cost > tt.most {
				t.Errorf("an idle connection costs %d bytes, want at most %d", cost, tt.most)
			}
		})
	}
}

// idleCost is what one of 1,000 connections takes of heap and stacks after an exchange.
func idleCost(t *testing.T, address, request, answer string) int64 {
	const n = 1000
	running, before := runtime.NumGoroutine(), inUse()
	conns := make([]net.Conn, n)
	for i := range conns {
		conns[i] = dial(t, address)
		say(conns[i], request)
		receive(t, conns[i], []byte(answer), i)
	}
	cost := inUse() - before
	for _, c := range conns {
		c.Close()
	}
	for deadline := time.Now().Add(patience); runtime.NumGoroutine() > running+10 && time.Now().Before(deadline); {
		runtime.Gosched() // or the next measurement would begin with what this one left
	}
	return cost / n
}

func inUse() int64 {
	runtime.GC()
	runtime.GC() // what pools held goes with the second
	var m runtime.MemStats
	runtime.ReadMemStats(&m)
	return int64(m.HeapAlloc + m.StackInuse)
}

// TestWebSocketEcho pushes frames both ways at the same time.
func TestWebSocketEcho(t *testing.T) {
	const frames = 2000
	address := behind(t, "upstream", serveRaw(t, func(c net.Conn, r *bufio.Reader) {
		if _, _, err := readHead(r); err != nil {
			return
		}
		say(c, "HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n\r\n")
		if _, err := io.Copy(c, r); err != nil {
			t.Error(err)
		}
		half(c)
	}))
	c := dial(t, address)
	say(c, "GET /ws HTTP/1.1\r\nHost: x\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\r\n")
	r := bufio.NewReader(c)
	if line, _, err := readHead(r); err != nil || !strings.HasPrefix(line, "HTTP/1.1 101 ") {
		t.Fatalf("got %q, %v", line, err)
	}
	sent := crc32.NewIEEE()
	go func() {
		w := io.MultiWriter(c, sent)
		for i := range frames {
			frame := append([]byte{0x82, 126, byte(i >> 8), byte(i)}, make([]byte, i)...)
			if _, err := w.Write(frame); err != nil {
				t.Error(err)
			}
		}
		half(c)
	}()
	got := crc32.NewIEEE()
	n, err := io.Copy(got, r)
	if err != nil || got.Sum32() != sent.Sum32() {
		t.Errorf("%d bytes came back, %v; checksum %x, want %x", n, err, got.Sum32(), sent.Sum32())
	}
}

// TestConnect tunnels, with one half closed before the other has said a word.
func TestConnect(t *testing.T) {
	address := serveRaw(t, func(c net.Conn, r *bufio.Reader) {
		all, err := io.ReadAll(r)
		if err != nil {
			t.Error(err)
		}
		fmt.Fprintf(c, "%d bytes: %s", len(all), all)
	})
	for name, host := range map[string]string{"by address": address, "by route": "x:80"} {
		t.Run(name, func(t *testing.T) {
			c := dial(t, behind(t, "forward", address))
			fmt.Fprintf(c, "CONNECT %s HTTP/1.1\r\nHost: %s\r\n\r\nearly ", host, host)
			receive(t, c, []byte("HTTP/1.1 200 Connection Established\r\n\r\n"), 0)
			say(c, "\x16\x03 not http")
			half(c)
			if got, err := io.ReadAll(c); string(got) != "17 bytes: early \x16\x03 not http" || err != nil {
				t.Errorf("got %q, %v", got, err)
			}
		})
	}
	t.Run("unreachable", func(t *testing.T) {
		c := dial(t, behind(t, "forward", address))
		say(c, "CONNECT 127.0.0.1:1 HTTP/1.1\r\nHost: x\r\n\r\n")
		line, _, err := readHead(bufio.NewReader(c))
		if line != "HTTP/1.1 503 Service Unavailable\r\n" || err != nil {
			t.Errorf("got %q, %v", line, err)
		}
	})
}

// say sends s. Whether the other side still listened shows in what it answers.
func say(w io.Writer, s string) { _, _ = io.WriteString(w, s) }
