//go:build linux

package transparent

import (
	"bytes"
	"crypto/sha256"
	"database/sql"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/go-sql-driver/mysql"

	"txmesh/tests/databases"
	"txmesh/tests/netns"
)

var servers databases.Set

func TestMain(m *testing.M) {
	code := m.Run()
	servers.Close()
	os.Exit(code)
}

const policy = `apiVersion: txmesh.io/v1beta1
kind: TransactionPolicy
metadata: {name: calls, namespace: bank}
spec:
  calls:
  - name: withdraw
    match: {service: accounts, method: POST, path: /entries}
    undo: {method: DELETE, path: /entries}
`

// TestBranchesAreSeenByTheGate lets an application that knows no proxy call a service by its address.
func TestBranchesAreSeenByTheGate(t *testing.T) {
	h := netns.New(t, 1).Host("application")
	file := filepath.Join(t.TempDir(), "policy.yaml")
	must(t, errors.Join(os.WriteFile(file, []byte(policy), 0o644), open(file)))
	seen := make(chan http.Header, 10)
	var to []string
	for _, address := range loopbacks {
		l, err := h.Listen(address)
		must(t, err)
		srv := &http.Server{ReadHeaderTimeout: time.Minute, Handler: http.HandlerFunc(func(_ http.ResponseWriter, r *http.Request) { seen <- r.Header })}
		t.Cleanup(func() { must(t, srv.Close()) })
		go func() { _ = srv.Serve(l) }()
		to = append(to, l.Addr().String())
	}
	w := On(t, h, Options{Config: []string{"--service", "bank/transfers", "--policies", file, "--upstreams", "service=accounts,to=" + strings.Join(to, "|")}})
	made := begin(t, w)
	for _, address := range to {
		req, err := http.NewRequestWithContext(t.Context(), http.MethodPost, "http://"+address+"/entries", strings.NewReader("{}"))
		must(t, err)
		req.Header.Set("Tx-Context", made)
		res, err := w.Client().Do(req)
		must(t, err)
		must(t, res.Body.Close())
		if got := <-seen; res.StatusCode != 200 || got.Get("Tx-Branch") == "" || got.Get("Tx-Op") != "forward" {
			t.Errorf("%s was called with %v and answered %d", address, got, res.StatusCode)
		}
	}
	w.Await(`txmesh_requests_total{direction="outbound",tagged="true"}`, 2)
}

// begin opens a transaction and returns its context.
func begin(t *testing.T, w *World) string {
	t.Helper()
	token, err := os.ReadFile(w.TokenFile)
	must(t, err)
	req, err := http.NewRequestWithContext(t.Context(), http.MethodPost, "http://"+w.API+"/v1/transactions", strings.NewReader(`{"name":"t","timeout":"1m"}`))
	must(t, err)
	req.Header.Set("Authorization", "Bearer "+strings.TrimSpace(string(token)))
	res, err := w.Client().Do(req)
	must(t, err)
	defer res.Body.Close()
	var made struct{ Context string }
	must(t, json.NewDecoder(res.Body).Decode(&made))
	if res.StatusCode != http.StatusCreated || made.Context == "" {
		t.Fatalf("begin = %d", res.StatusCode)
	}
	return made.Context
}

// TestWhatComesInPassesTheGate has a client on another host: the application's port is HTTP, another is not.
func TestWhatComesInPassesTheGate(t *testing.T) {
	n := netns.New(t, 1)
	outside := n.DualHost("outside")
	for name, ip := range map[string]func(*netns.Host) string{"IPv4": (*netns.Host).IP, "IPv6": (*netns.Host).IP6} {
		t.Run(name, func(t *testing.T) {
			h := n.DualHost("application")
			comesIn(t, h, outside, ip(h))
		})
	}
}

// comesIn lets a host call another at one of its addresses.
func comesIn(t *testing.T, h, outside *netns.Host, ip string) {
	t.Helper()
	l, err := h.Listen(net.JoinHostPort(ip, "0"))
	must(t, err)
	srv := &http.Server{ReadHeaderTimeout: time.Minute, Handler: http.HandlerFunc(func(rw http.ResponseWriter, r *http.Request) { fmt.Fprint(rw, r.Host) })}
	t.Cleanup(func() { must(t, srv.Close()) })
	go func() { _ = srv.Serve(l) }()
	w := On(t, h, Options{Config: []string{"--app", l.Addr().String()}})
	echo := listen(t, w, net.JoinHostPort(ip, "0"), func(c net.Conn) { _, _ = io.Copy(c, c) })

	client := &http.Client{Transport: &http.Transport{DialContext: outside.DialContext, DisableKeepAlives: true}, Timeout: 30 * time.Second}
	res, err := client.Get("http://" + l.Addr().String())
	must(t, err)
	body, err := io.ReadAll(res.Body)
	must(t, errors.Join(err, res.Body.Close()))
	if string(body) != l.Addr().String() {
		t.Errorf("the application was asked as %q, want %s", body, l.Addr())
	}
	c, err := outside.DialContext(t.Context(), "tcp", echo.String())
	must(t, err)
	defer c.Close()
	_, err = c.Write([]byte("x"))
	must(t, err)
	_, err = io.ReadFull(c, make([]byte, 1))
	must(t, err)
	w.Await(`txmesh_redirected_total{direction="inbound",way="http"}`, 1)
	w.Await(`txmesh_requests_total{direction="inbound",tagged="false"}`, 1)
	w.Await(`txmesh_redirected_total{direction="inbound",way="raw"}`, 1)

	// A port of the sidecar would take this connection for one of its own host.
	c, err = outside.DialContext(t.Context(), "tcp", net.JoinHostPort(ip, portOf(w.TransparentOutbound)))
	if err == nil {
		defer c.Close()
		must(t, c.SetDeadline(time.Now().Add(30*time.Second)))
		_, err = c.Read(make([]byte, 1))
	}
	if !errors.Is(err, syscall.ECONNRESET) {
		t.Errorf("the sidecar's own port answers %v", err)
	}
	w.Await(`txmesh_redirected_total{direction="inbound",way="loop"}`, 1)
}

// TestLoopsAreRefused runs the sidecar under a user that the rules do not know.
func TestLoopsAreRefused(t *testing.T) {
	w := Start(t, Options{UID: UID + 1})
	echo := listen(t, w, "127.0.0.1:0", func(c net.Conn) { _, _ = io.Copy(c, c) })
	for range 5 {
		c, err := w.DialContext(t.Context(), "tcp", echo.String())
		if err == nil {
			must(t, c.SetDeadline(time.Now().Add(30*time.Second)))
			_, err = c.Read(make([]byte, 1))
			c.Close()
		}
		if !errors.Is(err, syscall.ECONNRESET) {
			t.Errorf("the client sees %v, want a reset", err)
		}
	}
	const taken = `txmesh_redirected_total{direction="outbound",way="raw"}`
	w.Await(taken, 5)
	if n := w.Metric(taken); n > 100 {
		t.Errorf("5 connections became %v", n)
	}
	if !strings.Contains(w.Sidecar.Output(), "redirected back here") {
		t.Error("the log does not say why")
	}
}

// TestMarkedConnectionsAreLeftAlone runs the sidecar under the user of the application, known by its mark.
func TestMarkedConnectionsAreLeftAlone(t *testing.T) {
	h := netns.New(t, 1).Host("application")
	w := On(t, h, Options{Config: []string{"--mark", "0x1ca9"}, Rules: []string{"--mark", "0x1ca9"}, Ours: true})
	echo := listen(t, w, "127.0.0.1:0", func(c net.Conn) { _, _ = io.Copy(c, c) })
	c := dial(t, w, echo)
	_, err := c.Write([]byte("x"))
	must(t, err)
	_, err = io.ReadFull(c, make([]byte, 1))
	must(t, err)
	w.Await(`txmesh_redirected_total{direction="outbound",way="raw"}`, 1)
}

// TestMariaDBSpeaksFirst moves 100 MB into a real server and back: through a port of its own, through one that nobody
// names, and through one that might be HTTP.
func TestMariaDBSpeaksFirst(t *testing.T) {
	n := netns.New(t, 1) // its threads outlive the server, which ends with the thread that started it
	dsn, err := mysql.ParseDSN(servers.MariaDB(t))
	must(t, err)
	for _, tt := range []struct {
		name, detect, way string
		explicit          bool
	}{
		{"a port of the sidecar", "named", "", true},
		{"a port that nobody names", "named", "raw", false},
		{"a port that is looked at", "all", "server_first", false},
	} {
		t.Run(tt.name, func(t *testing.T) {
			h := n.Host("application")
			l, err := h.Listen("127.0.0.1:0")
			must(t, err)
			t.Cleanup(func() { l.Close() })
			go relay(l, dsn.Addr)
			w := On(t, h, Options{Config: []string{"--detect", tt.detect, "--upstreams", "name=db,listen=127.0.0.1:0,protocol=tcp,to=" + unless(tt.explicit, l.Addr().String())}})
			cfg := dsn.Clone()
			cfg.DialFunc = w.DialContext
			cfg.Addr = l.Addr().String()
			if tt.explicit {
				cfg.Addr = w.Upstreams["test/db"]
			}
			hundred(t, cfg)
			w.Await(`txmesh_raw_bytes_total{direction="outbound",way="spliced"}`, 200e6)
			if tt.way != "" {
				w.Await(fmt.Sprintf(`txmesh_redirected_total{direction="outbound",way=%q}`, tt.way), 1)
			}
		})
	}
}

// unless is the address of an upstream that is in use, or one of nobody.
func unless(used bool, address string) string {
	if used {
		return address
	}
	return "127.0.0.1:9"
}

// relay brings a server of this machine onto a host.
func relay(l net.Listener, to string) {
	for {
		c, err := l.Accept()
		if err != nil {
			return
		}
		go func() {
			defer c.Close()
			server, err := net.Dial("tcp", to)
			if err != nil {
				return
			}
			defer server.Close()
			go func() {
				_, _ = io.Copy(server, c) // ends with either
				_ = server.(*net.TCPConn).CloseWrite()
			}()
			_, _ = io.Copy(c, server) // as above
		}()
	}
}

// hundred writes 100 MB and reads them back.
func hundred(t *testing.T, cfg *mysql.Config) {
	t.Helper()
	connector, err := mysql.NewConnector(cfg)
	must(t, err)
	db := sql.OpenDB(connector)
	defer db.Close()
	ctx := t.Context()
	for _, q := range []string{"DROP TABLE IF EXISTS blobs", "CREATE TABLE blobs (id INT PRIMARY KEY, b LONGBLOB)"} {
		_, err = db.ExecContext(ctx, q)
		must(t, err)
	}
	var sums [100][32]byte
	source := rand.NewChaCha8([32]byte{1})
	for i := range sums {
		b := make([]byte, 1e6)
		_, _ = source.Read(b)
		sums[i] = sha256.Sum256(b)
		_, err = db.ExecContext(ctx, "INSERT INTO blobs VALUES (?, ?)", i, b)
		must(t, err)
	}
	rows, err := db.QueryContext(ctx, "SELECT id, b FROM blobs")
	must(t, err)
	defer rows.Close()
	n := 0
	for ; rows.Next(); n++ {
		var i int
		var b []byte
		must(t, rows.Scan(&i, &b))
		if sum := sha256.Sum256(b); !bytes.Equal(sum[:], sums[i][:]) {
			t.Errorf("row %d differs", i)
		}
	}
	must(t, rows.Err())
	if n != len(sums) {
		t.Errorf("%d rows came back, want %d", n, len(sums))
	}
}

// TestAnEarlyClientStillMeetsTheGate connects long before its first request.
func TestAnEarlyClientStillMeetsTheGate(t *testing.T) {
	h := netns.New(t, 1).Host("application")
	w := On(t, h, Options{Config: []string{"--detect", "all", "--detect-time", "20ms"}})
	asked := make(chan string, 10)
	l := listen(t, w, "127.0.0.1:0", func(c net.Conn) {
		buf := make([]byte, 4<<10)
		n, _ := c.Read(buf) // nothing, if the connection was for nothing
		if n > 0 {
			asked <- string(buf[:n])
			_, _ = c.Write([]byte("HTTP/1.1 204 No Content\r\n\r\n"))
		}
	})
	c := dial(t, w, l)
	time.Sleep(300 * time.Millisecond)
	_, err := c.Write([]byte("GET / HTTP/1.1\r\nHost: a\r\nProxy-Connection: x\r\n\r\n"))
	must(t, err)
	_, err = io.ReadFull(c, make([]byte, 12))
	must(t, err)
	if got := <-asked; strings.Contains(got, "Proxy-Connection") {
		t.Errorf("the request did not pass the Gate's forwarder: %q", got)
	}
	w.Await(`txmesh_redirected_total{direction="outbound",way="http"}`, 1)
}
