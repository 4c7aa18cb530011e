package takeover

import (
	"database/sql"
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"txmesh/tests/databases"
	"txmesh/tests/processes"
)

// servers are the stores of the tests.
var servers databases.Set

// build builds the programs once.
var build = sync.OnceValues(func() (string, error) {
	dir, err := os.MkdirTemp("", "txmesh-takeover-")
	if err != nil {
		return "", err
	}
	if out, err := exec.Command("go", "build", "-o", dir, "txmesh/cmd/txmesh-sidecar", "txmesh/cmd/txmesh-controlplane").CombinedOutput(); err != nil {
		return "", fmt.Errorf("go build: %w\n%s", err, out)
	}
	return dir, nil
})

func TestMain(m *testing.M) {
	code := m.Run()
	servers.Close()
	if dir, err := build(); err == nil {
		if err := os.RemoveAll(dir); err != nil {
			panic(err)
		}
	}
	os.Exit(code)
}

// engines are the shared stores, each with what gives the test an empty one.
var engines = map[string]func(t *testing.T) string{"postgres": postgres, "etcd": etcd}

// places counts the empty ones that were given out.
var places atomic.Int32

func etcd(t *testing.T) string {
	return "etcd://" + strings.Join(databases.StartEtcd(t, 3).Endpoints(), ",") + fmt.Sprint("/takeover", places.Add(1))
}

func postgres(t *testing.T) string {
	dsn := servers.Postgres(t)
	name := fmt.Sprint("takeover", places.Add(1))
	db, err := sql.Open("pgx", dsn)
	if err != nil {
		t.Fatal(err)
	}
	defer db.Close()
	if _, err := db.Exec("CREATE SCHEMA " + name); err != nil {
		t.Fatal(err)
	}
	return dsn + "&search_path=" + name
}

// world is a mesh on one shared store.
type world struct {
	t       *testing.T
	store   string
	dir     string
	policy  string
	plane   string // host:port of a control plane, which brings the policies; empty: files do
	members []*member
	client  *http.Client
}

// member is one sidecar with its service.
type member struct {
	w       *world
	process *processes.Process
	at      struct {
		Ready     bool
		Owner     string
		Inbound   string
		API       string
		Peer      string
		Upstreams map[string]string
		TokenFile string `json:"token_file"`
	}
	token string
}

func newWorld(t *testing.T, store, policy string) *world {
	t.Helper()
	w := &world{t: t, store: store, dir: t.TempDir(), client: &http.Client{Timeout: 30 * time.Second,
		Transport: &http.Transport{MaxIdleConnsPerHost: 256, MaxConnsPerHost: 256}}}
	w.policy = w.write("policy.yaml", policy)
	w.write("secret", "0123456789abcdef0123456789abcdef")
	t.Cleanup(w.stop)
	return w
}

func (w *world) write(name, text string) string {
	path := filepath.Join(w.dir, name)
	if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
		w.t.Fatal(err)
	}
	return path
}

func (w *world) stop() {
	for _, m := range w.members {
		m.process.Kill()
		if w.t.Failed() {
			w.t.Log(m.process.Tail())
		}
	}
	w.client.CloseIdleConnections()
}

// start starts a sidecar beside a service, which knows the peers and calls the upstreams.
func (w *world) start(service, app string, peers []*member, flags ...string) *member {
	w.t.Helper()
	dir, err := build()
	if err != nil {
		w.t.Fatal(err)
	}
	name := fmt.Sprintf("%s-%d", strings.ReplaceAll(service, "/", "-"), len(w.members))
	args := []string{"--service", service, "--inbound", "127.0.0.1:0", "--peer", "127.0.0.1:0", "--api", "127.0.0.1:0", "--outbound", "off",
		"--store", w.store, "--data-dir", filepath.Join(w.dir, name), "--mesh-secret-file", filepath.Join(w.dir, "secret"), "--grace-period", "1s"}
	if w.plane != "" {
		args = append(args, "--control-plane", w.plane)
	} else {
		args = append(args, "--policies", w.policy)
	}
	if app != "" {
		args = append(args, "--app", app)
	}
	var at []string
	for _, p := range peers {
		at = append(at, p.at.Peer)
	}
	if len(at) > 0 {
		args = append(args, "--peers", strings.Join(at, ","))
	}
	m := &member{w: w, process: &processes.Process{Name: name, Path: filepath.Join(dir, "txmesh-sidecar"), Args: append(args, flags...),
		Log: filepath.Join(w.dir, name+".log")}}
	m.begin()
	w.members = append(w.members, m)
	return m
}

// begin starts the process, once more if it was ended.
func (m *member) begin() {
	m.w.t.Helper()
	if err := m.process.Start(&m.at); err != nil {
		m.w.t.Fatal(err)
	}
	token, err := os.ReadFile(m.at.TokenFile)
	if err != nil {
		m.w.t.Fatal(err)
	}
	m.token = strings.TrimSpace(string(token))
}

// request makes one request; status 0 means that nothing came back.
func (w *world) request(method, url, body string, header ...string) (int, string) {
	req, err := http.NewRequestWithContext(w.t.Context(), method, url, strings.NewReader(body))
	if err != nil {
		w.t.Error(err)
		return 0, ""
	}
	for i := 0; i+1 < len(header); i += 2 {
		req.Header.Set(header[i], header[i+1])
	}
	res, err := w.client.Do(req)
	if err != nil {
		return 0, err.Error()
	}
	defer res.Body.Close()
	text, err := io.ReadAll(res.Body)
	if err != nil {
		return 0, err.Error()
	}
	return res.StatusCode, string(text)
}

// api calls the API of a sidecar, again while it has no answer or is busy.
func (m *member) api(method, path, body string) string {
	m.w.t.Helper()
	var status int
	var text string
	for range 200 {
		status, text = m.w.request(method, "http://"+m.at.API+path, body, "Authorization", "Bearer "+m.token)
		if status != 0 && status != 503 && status != 425 {
			break
		}
		time.Sleep(50 * time.Millisecond)
	}
	if status == 0 || status >= 400 {
		m.w.t.Errorf("%s %s at %s = %d %s", method, path, m.process.Name, status, text)
	}
	return text
}

// open counts the transactions that have not ended, as a sidecar reads them from the store, up to a limit.
func (m *member) open(limit int) int {
	var page struct{ Transactions []struct{ Phase string } }
	text := m.api("GET", fmt.Sprintf("/v1/transactions?limit=%d&phase=open&phase=committing&phase=aborting&phase=stuck", limit), "")
	if err := json.Unmarshal([]byte(text), &page); err != nil {
		m.w.t.Fatalf("list: %v in %s", err, text)
	}
	return len(page.Transactions)
}

// said returns when a sidecar logged a message about an owner for the first time.
func (m *member) said(message, owner string) time.Time {
	m.w.t.Helper()
	for line := range strings.Lines(m.process.Output()) {
		var l struct {
			Time  time.Time
			Msg   string
			Owner string
		}
		if json.Unmarshal([]byte(line), &l) == nil && l.Msg == message && l.Owner == owner {
			return l.Time
		}
	}
	m.w.t.Fatalf("%s never said %q of %s", m.process.Name, message, owner)
	return time.Time{}
}

// all runs f side by side, for each number below n, by so many workers.
func all(n, workers int, f func(i int)) {
	next := make(chan int)
	var done sync.WaitGroup
	for range workers {
		done.Go(func() {
			for i := range next {
				f(i)
			}
		})
	}
	for i := range n {
		next <- i
	}
	close(next)
	done.Wait()
}

func eventually(t *testing.T, what string, within time.Duration, holds func() bool) {
	t.Helper()
	for deadline := time.Now().Add(within); ; time.Sleep(20 * time.Millisecond) {
		if holds() {
			return
		}
		if time.Now().After(deadline) {
			t.Fatalf("after %v not yet: %s", within, what)
		}
	}
}
