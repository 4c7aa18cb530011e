package e2e

import (
	"crypto/rand"
	"encoding/json"
	"fmt"
	"io"
	mathrand "math/rand/v2"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"txmesh/tests/processes"
)

// member says what one service of a mesh is.
type member struct {
	name    string                 // service bank/name
	command func(n *node) []string // program and arguments; nil: the participant
	inside  func(n *node)          // starts the service within the test; nil: it is a process
	calls   []string               // members that it calls through its sidecar
	bare    bool                   // without a sidecar
	policy  string                 // text of its policies; empty: the mesh's
	flags   []string               // more flags for the sidecar
	app     []string               // more flags for the participant
}

// mesh is services with their sidecars, all in one directory, on addresses that survive restarts.
type mesh struct {
	t      *testing.T
	dir    string
	bin    binaries
	policy string // file
	secret string
	nodes  map[string]*node
	order  []*node
	client *http.Client
}

// node is one service and its sidecar.
type node struct {
	member
	m       *mesh
	service *processes.Process
	sidecar *processes.Process // nil: bare

	listen, inbound, api, peer, outbound string
	to                                   map[string]string // member -> address at this side
	token                                string
	owner                                string // of the sidecar's store; known once it has started
}

// newMesh describes a mesh and starts nothing yet.
func newMesh(t *testing.T, policy string, members ...member) *mesh {
	t.Helper()
	bin, err := build()
	if err != nil {
		t.Fatal(err)
	}
	m := &mesh{t: t, dir: t.TempDir(), bin: bin, nodes: map[string]*node{}, client: newClient()}
	m.policy, m.secret = filepath.Join(m.dir, "policy.yaml"), rand.Text()
	m.write("policy.yaml", policy)
	m.write("mesh-secret", m.secret+"\n")
	for _, s := range members {
		n := &node{member: s, m: m, token: rand.Text(), to: map[string]string{}}
		n.listen, n.inbound, n.api, n.peer, n.outbound = freePort(t), freePort(t), freePort(t), freePort(t), freePort(t)
		for _, c := range s.calls {
			n.to[c] = freePort(t)
		}
		m.write(s.name+".token", n.token+"\n")
		m.nodes[s.name], m.order = n, append(m.order, n)
	}
	for _, n := range m.order {
		n.describe()
	}
	t.Cleanup(m.stop)
	return m
}

// newClient never repeats a request by itself.
func newClient() *http.Client {
	return &http.Client{Timeout: 90 * time.Second, Transport: &http.Transport{MaxIdleConnsPerHost: 64, DisableKeepAlives: false}}
}

func (m *mesh) write(name, text string) string {
	m.t.Helper()
	path := filepath.Join(m.dir, name)
	if err := os.WriteFile(path+".new", []byte(text), 0o600); err != nil {
		m.t.Fatal(err)
	}
	if err := os.Rename(path+".new", path); err != nil {
		m.t.Fatal(err)
	}
	return path
}

// start starts everything, services first.
func (m *mesh) start() *mesh {
	m.t.Helper()
	for _, n := range m.order {
		m.must(n.startService())
	}
	for _, n := range m.order {
		m.must(n.startSidecar())
	}
	return m
}

func (m *mesh) must(err error) {
	m.t.Helper()
	if err != nil {
		m.t.Fatal(err)
	}
}

// stop ends everything: services by kill -9, sidecars by SIGTERM, so that they say what they covered.
func (m *mesh) stop() {
	for _, n := range m.order {
		n.service.Kill()
	}
	for _, n := range m.order {
		if n.sidecar.Running() {
			n.sidecar.Term()
		}
	}
	for _, n := range m.order {
		if n.sidecar.Running() {
			if _, err := n.sidecar.End(10 * time.Second); err != nil {
				m.t.Error(err)
				n.sidecar.Kill()
			}
		}
	}
	m.client.CloseIdleConnections()
	if m.t.Failed() {
		for _, n := range m.order {
			m.t.Log(n.service.Tail())
			if n.sidecar != nil {
				m.t.Log(n.sidecar.Tail())
			}
		}
	}
}

// describe says how the two processes of a node are started.
func (n *node) describe() {
	m := n.m
	command := []string{m.bin.participant(), "--listen", n.listen, "--data", n.data()}
	if n.command != nil {
		command = n.command(n)
	}
	n.service = &processes.Process{Name: n.name, Path: command[0], Args: append(command[1:], n.app...), Log: filepath.Join(m.dir, n.name+".log")}
	if n.bare {
		return
	}
	policy := m.policy
	if n.policy != "" {
		policy = m.write(n.name+".policy.yaml", n.policy)
	}
	args := []string{"--service", "bank/" + n.name, "--app", n.listen, "--inbound", n.inbound, "--outbound", n.outbound,
		"--api", n.api, "--peer", n.peer, "--policies", policy, "--data-dir", n.journal(), "--grace-period", "2s",
		"--mesh-secret-file", filepath.Join(m.dir, "mesh-secret"), "--token-file", filepath.Join(m.dir, n.name+".token")}
	var peers []string
	for _, other := range m.order {
		if to, calls := n.to[other.name]; calls {
			args = append(args, "--upstreams", fmt.Sprintf("service=%s,listen=%s,to=%s,host=%s.test", other.name, to, other.arrival(), other.name))
		}
		if other != n && !other.bare {
			peers = append(peers, other.peer)
		}
	}
	if len(peers) > 0 {
		args = append(args, "--peers", strings.Join(peers, ","))
	}
	n.sidecar = &processes.Process{Name: "sidecar of " + n.name, Path: m.bin.sidecar(), Args: append(args, n.flags...),
		Log: filepath.Join(m.dir, n.name+".sidecar.log")}
}

func (n *node) data() string    { return filepath.Join(n.m.dir, n.name+".jsonl") }
func (n *node) journal() string { return filepath.Join(n.m.dir, n.name+".journal") }

// arrival is where callers reach the service.
func (n *node) arrival() string {
	if n.bare {
		return n.listen
	}
	return n.inbound
}

func (n *node) startService() error {
	if n.inside != nil {
		n.inside(n)
		return nil
	}
	var ready struct{ Address string }
	return n.service.Start(&ready)
}

func (n *node) startSidecar() error {
	if n.sidecar == nil {
		return nil
	}
	var ready struct {
		Ready bool
		Owner string
	}
	if err := n.sidecar.Start(&ready); err != nil {
		return err
	}
	if !ready.Ready || n.owner != "" && n.owner != ready.Owner {
		return fmt.Errorf("sidecar of %s says %+v, was owner %q", n.name, ready, n.owner)
	}
	n.owner = ready.Owner
	return nil
}

// crash kills the sidecar with -9 and starts it again.
func (n *node) crash() {
	n.m.t.Helper()
	n.sidecar.Kill()
	n.m.must(n.startSidecar())
}

// eventually polls until the condition holds.
func (m *mesh) eventually(what string, holds func() (bool, string)) {
	m.t.Helper()
	if err := poll(20*time.Second, holds); err != nil {
		m.t.Fatalf("%s: %v", what, err)
	}
}

func poll(within time.Duration, holds func() (bool, string)) error {
	deadline := time.Now().Add(within)
	tick := time.NewTicker(5 * time.Millisecond)
	defer tick.Stop()
	for {
		ok, seen := holds()
		if ok {
			return nil
		}
		if time.Now().After(deadline) {
			return fmt.Errorf("not within %v; last seen: %s", within, seen)
		}
		<-tick.C
	}
}

// reply is one answer.
type reply struct {
	status int
	header http.Header
	body   string
}

// send makes one request. Headers come in pairs.
func (m *mesh) send(method, url, body string, header ...string) (reply, error) {
	req, err := http.NewRequest(method, url, strings.NewReader(body))
	if err != nil {
		return reply{}, err
	}
	for i := 0; i+1 < len(header); i += 2 {
		if header[i] == "Host" {
			req.Host = header[i+1]
			continue
		}
		req.Header.Set(header[i], header[i+1])
	}
	// Without GetBody net/http cannot repeat it on a connection that breaks.
	req.GetBody = nil
	res, err := m.client.Do(req)
	if err != nil {
		return reply{}, err
	}
	defer res.Body.Close()
	text, err := io.ReadAll(res.Body)
	return reply{res.StatusCode, res.Header, string(text)}, err
}

// call is send for a request that must be answered.
func (m *mesh) call(method, url, body string, header ...string) reply {
	m.t.Helper()
	r, err := m.send(method, url, body, header...)
	if err != nil {
		m.t.Fatalf("%s %s: %v", method, url, err)
	}
	return r
}

// root sends a request to the service through its sidecar.
func (n *node) root(path, body string, header ...string) reply {
	n.m.t.Helper()
	return n.m.call("POST", "http://"+n.inbound+path, body, header...)
}

// pending is a request that is on its way.
type pending struct{ done chan answered }

type answered struct {
	reply
	err error
}

// later sends a root request and does not wait.
func (n *node) later(path, body string, header ...string) pending {
	p := pending{make(chan answered, 1)}
	go func() {
		r, err := n.m.send("POST", "http://"+n.inbound+path, body, header...)
		p.done <- answered{r, err}
	}()
	return p
}

// wait returns what came of it; an error is that of the connection.
func (p pending) wait(t *testing.T) (reply, error) {
	t.Helper()
	select {
	case a := <-p.done:
		return a.reply, a.err
	case <-time.After(60 * time.Second):
		t.Fatal("a request was not answered within a minute")
		return reply{}, nil
	}
}

// picked are the addresses given out in this run: they stay reserved while their process is down.
var picked sync.Map

// freePort picks an address that nobody listens on, below the range of outgoing connections, so that nobody takes it
// while its process is down.
func freePort(t *testing.T) string {
	t.Helper()
	const lowest, highest, triesMax = 11000, 19999, 1000
	for range triesMax {
		l, err := net.Listen("tcp", fmt.Sprintf("127.0.0.1:%d", lowest+mathrand.IntN(highest-lowest+1)))
		if err == nil {
			l.Close()
			if _, taken := picked.LoadOrStore(l.Addr().String(), true); !taken {
				return l.Addr().String()
			}
		}
	}
	t.Fatalf("no free port from %d to %d", lowest, highest)
	return ""
}

func decode[T any](t *testing.T, text string) T {
	t.Helper()
	var v T
	if err := json.Unmarshal([]byte(text), &v); err != nil {
		t.Fatalf("%q: %v", text, err)
	}
	return v
}
