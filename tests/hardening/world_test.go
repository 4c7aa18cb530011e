package hardening

import (
	"bufio"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"txmesh/sidecar"
	"txmesh/tests/processes"
)

// patience bounds every wait of a test: it is reached only by a bug.
const patience = 20 * time.Second

// binary is the sidecar under test.
var binary string

func TestMain(m *testing.M) {
	dir, err := os.MkdirTemp("", "txmesh-hardening-")
	if err != nil {
		panic(err)
	}
	look("../../interceptor")
	look("../../sidecar")
	binary = filepath.Join(dir, "txmesh-sidecar")
	out, err := exec.Command("go", "build", "-o", binary, "txmesh/cmd/txmesh-sidecar").CombinedOutput()
	if err != nil {
		fmt.Fprintf(os.Stderr, "build: %v\n%s", err, out)
		os.Exit(1)
	}
	code := m.Run()
	if err := os.RemoveAll(dir); err != nil {
		panic(err)
	}
	os.Exit(code)
}

// look makes the cache of test results know the files that the sidecar is built from.
func look(dir string) {
	err := filepath.WalkDir(dir, func(path string, _ os.DirEntry, err error) error {
		if err == nil {
			_, err = os.Stat(path)
		}
		return err
	})
	if err != nil {
		panic(err)
	}
}

// mesh is a running sidecar.
type mesh struct {
	sidecar.Addresses
	process *processes.Process
}

// start runs a sidecar before the application until the end of the test.
func start(t *testing.T, app string, args ...string) *mesh {
	t.Helper()
	dir := t.TempDir()
	m := &mesh{process: &processes.Process{Name: "sidecar", Path: binary, Log: filepath.Join(dir, "log"),
		Args: append([]string{"--service=test/app", "--app", app, "--data-dir", filepath.Join(dir, "data"), "--inbound=127.0.0.1:0",
			"--outbound=127.0.0.1:0", "--api=127.0.0.1:0", "--peer=127.0.0.1:0"}, args...)}}
	if err := m.process.Start(&m.Addresses); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(m.process.Kill)
	return m
}

// counted reads the series of a metric with that ending, such as {code="TXM0207"}.
func (m *mesh) counted(t *testing.T, series string) int {
	t.Helper()
	res, err := http.Get("http://" + m.API + "/metrics")
	if err != nil {
		t.Fatal(err)
	}
	defer res.Body.Close()
	if res.StatusCode == 503 {
		return 0 // the API has its own flood
	}
	for lines := bufio.NewScanner(res.Body); lines.Scan(); {
		if value, ok := strings.CutPrefix(lines.Text(), series+" "); ok {
			n, err := strconv.ParseFloat(value, 64)
			if err != nil {
				t.Fatal(err)
			}
			return int(n)
		}
	}
	t.Fatalf("no series %s", series)
	return 0
}

func (m *mesh) refused(t *testing.T, code string) int {
	t.Helper()
	return m.counted(t, `txmesh_refused_total{code="`+code+`"}`)
}

// awaits waits until so many refusals with that code were counted: metrics lie up to a second behind.
func (m *mesh) awaits(t *testing.T, code string, want int) {
	t.Helper()
	got := 0
	for end := time.Now().Add(patience); time.Now().Before(end); time.Sleep(50 * time.Millisecond) {
		if got = m.refused(t, code); got >= want {
			break
		}
	}
	if got != want {
		t.Errorf("%d refusals with %s were counted, want %d", got, code, want)
	}
}

// resident is the memory of the process, in bytes.
func (m *mesh) resident(t *testing.T) int {
	t.Helper()
	text, err := os.ReadFile(fmt.Sprintf("/proc/%d/statm", m.process.PID()))
	if err != nil {
		t.Fatal(err)
	}
	var size, pages int
	if _, err := fmt.Sscan(string(text), &size, &pages); err != nil {
		t.Fatal(err)
	}
	return pages * os.Getpagesize()
}

func dial(t *testing.T, address string) net.Conn {
	t.Helper()
	c, err := net.Dial("tcp", address)
	if err != nil {
		t.Fatal(err)
	}
	if err := c.SetDeadline(time.Now().Add(patience)); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { c.Close() })
	return c
}

// backend is a server of somebody else behind the sidecar, which answers with the path it saw.
type backend struct {
	name    string
	address string
	saw     func() []string // all paths so far
}

// backends are as many as can run here: Go's always, Python's and nginx where they are installed.
func backends(t *testing.T) []backend {
	all := []backend{goBackend(t)}
	if _, err := exec.LookPath("python3"); err == nil {
		all = append(all, pythonBackend(t))
	}
	if _, err := exec.LookPath("nginx"); err == nil {
		all = append(all, nginxBackend(t))
	}
	if len(all) < 2 {
		t.Skip("needs python3 or nginx, for a second reader")
	}
	return all
}

func goBackend(t *testing.T) backend {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	var mu sync.Mutex // guards saw
	var saw []string
	srv := &http.Server{Handler: http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		mu.Lock()
		saw = append(saw, r.RequestURI)
		mu.Unlock()
		_, _ = io.Copy(io.Discard, r.Body) // what is wrong with it shows in the next request
		w.Header().Set("Content-Length", strconv.Itoa(len(r.RequestURI)))
		_, _ = io.WriteString(w, r.RequestURI)
	})}
	go func() { _ = srv.Serve(l) }() // until it is closed
	t.Cleanup(func() { _ = srv.Close() })
	return backend{"go", l.Addr().String(), func() []string {
		mu.Lock()
		defer mu.Unlock()
		return append([]string(nil), saw...)
	}}
}

func pythonBackend(t *testing.T) backend {
	var ready struct{ Address string }
	p := &processes.Process{Name: "python", Path: "python3", Args: []string{"testdata/backend.py"}, Log: filepath.Join(t.TempDir(), "log")}
	if err := p.Start(&ready); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(p.Kill)
	return backend{"python", ready.Address, func() []string { return sawLines(t, p.Log) }}
}

func nginxBackend(t *testing.T) backend {
	dir := t.TempDir()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	address := l.Addr().String()
	l.Close()
	conf := fmt.Sprintf(`daemon off; pid %[1]s/pid; error_log %[1]s/error; worker_processes 1; user root;
events { worker_connections 512; }
http { log_format saw 'saw $request_uri'; access_log %[1]s/saw saw; client_body_temp_path %[1]s/b; proxy_temp_path %[1]s/p;
  fastcgi_temp_path %[1]s/f; uwsgi_temp_path %[1]s/u; scgi_temp_path %[1]s/s;
  server { listen %[2]s; location / { return 200 $request_uri; } } }`, dir, address)
	if err := os.WriteFile(dir+"/conf", []byte(conf), 0o600); err != nil {
		t.Fatal(err)
	}
	c := exec.Command("nginx", "-c", dir+"/conf", "-p", dir)
	if err := c.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		_ = c.Process.Signal(os.Interrupt)
		_ = c.Wait()
	})
	for end := time.Now().Add(patience); ; time.Sleep(10 * time.Millisecond) {
		conn, err := net.Dial("tcp", address)
		if err == nil {
			conn.Close()
			break
		}
		if time.Now().After(end) {
			text, _ := os.ReadFile(dir + "/error")
			t.Fatalf("nginx does not listen: %v\n%s", err, text)
		}
	}
	return backend{"nginx", address, func() []string { return sawLines(t, dir+"/saw") }}
}

func sawLines(t *testing.T, file string) (saw []string) {
	text, err := os.ReadFile(file)
	if err != nil && !os.IsNotExist(err) {
		t.Fatal(err)
	}
	for line := range strings.Lines(string(text)) {
		if path, ok := strings.CutPrefix(strings.TrimSuffix(line, "\n"), "saw "); ok {
			saw = append(saw, path)
		}
	}
	return saw
}
