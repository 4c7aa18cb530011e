//go:build linux

package transparent

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"net"
	"net/http"
	"os/exec"
	"strings"
	"testing"
	"time"
)

// loopbacks are the two families on the loopback device.
var loopbacks = []string{"127.0.0.1:0", "[::1]:0"}

func TestUnnamedPortsPassAsBytes(t *testing.T) {
	w := Start(t, Options{})
	for _, address := range loopbacks {
		l := listen(t, w, address, func(c net.Conn) { _, _ = io.Copy(c, c) })
		c := dial(t, w, l)
		data := make([]byte, 1<<20)
		_, _ = rand.NewChaCha8([32]byte{}).Read(data)
		go func() {
			_, err := c.Write(data)
			must(t, errors.Join(err, c.CloseWrite()))
		}()
		got, err := io.ReadAll(c)
		must(t, err)
		if !bytes.Equal(got, data) {
			t.Errorf("%s: %d bytes came back, of %d, or they differ", address, len(got), len(data))
		}
	}
	w.Await(`txmesh_redirected_total{direction="outbound",way="raw"}`, 2)
	w.Await(`txmesh_raw_bytes_total{direction="outbound",way="spliced"}`, 4<<20)
	if n := w.Metric(`txmesh_raw_bytes_total{direction="outbound",way="copied"}`); n != 0 {
		t.Errorf("%v bytes were copied", n)
	}
	if n := w.Metric(`txmesh_redirected_total{direction="outbound",way="loop"}`); n != 0 {
		t.Errorf("%v loops", n)
	}
}

func TestEveryRequestPassesTheGate(t *testing.T) {
	w := Start(t, Options{Config: []string{"--detect", "all"}})
	for _, address := range loopbacks {
		l, err := w.Listen(address)
		must(t, err)
		srv := &http.Server{ReadHeaderTimeout: time.Minute, Handler: http.HandlerFunc(func(rw http.ResponseWriter, r *http.Request) {
			fmt.Fprint(rw, r.Host)
		})}
		t.Cleanup(func() { must(t, srv.Close()) })
		go func() { _ = srv.Serve(l) }()
		res, err := w.Client().Get("http://" + l.Addr().String())
		must(t, err)
		body, err := io.ReadAll(res.Body)
		must(t, errors.Join(err, res.Body.Close()))
		if string(body) != l.Addr().String() {
			t.Errorf("the server was asked as %q, want %s", body, l.Addr())
		}
	}
	w.Await(`txmesh_requests_total{direction="outbound",tagged="false"}`, 2)
	w.Await(`txmesh_redirected_total{direction="outbound",way="http"}`, 2)
}

func TestCommandsRunBehindTheSidecar(t *testing.T) {
	script := `import http.server, threading, urllib.request
s = http.server.HTTPServer(("127.0.0.1", 0), http.server.SimpleHTTPRequestHandler)
threading.Thread(target=s.serve_forever, daemon=True).start()
print(urllib.request.urlopen("http://127.0.0.1:%d/" % s.server_port).status)`
	cmd := exec.CommandContext(t.Context(), "python3", "-c", script)
	cmd.Dir = t.TempDir()
	var out strings.Builder
	cmd.Stdout, cmd.Stderr = &out, &out
	if err := Run(t, cmd); err != nil || !strings.Contains(out.String(), "200") {
		t.Fatalf("%v\n%s", err, out.String())
	}
}

func must(t *testing.T, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

// listen serves connections on the host by f until the test ends.
func listen(t *testing.T, w *World, address string, f func(net.Conn)) net.Addr {
	t.Helper()
	l, err := w.Listen(address)
	must(t, err)
	t.Cleanup(func() { must(t, l.Close()) })
	go func() {
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			go func() {
				defer c.Close()
				f(c)
			}()
		}
	}()
	return l.Addr()
}

func dial(t *testing.T, w *World, a net.Addr) *net.TCPConn {
	t.Helper()
	c, err := w.DialContext(t.Context(), "tcp", a.String())
	must(t, err)
	t.Cleanup(func() { c.Close() })
	must(t, c.SetDeadline(time.Now().Add(30*time.Second)))
	return c.(*net.TCPConn)
}
