//go:build linux

package fleet

import (
	"database/sql"
	"errors"
	"fmt"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"txmesh/tests/databases"
	"txmesh/tests/netns"
	"txmesh/tests/processes"
)

// The ports are the same on all hosts.
const (
	inboundPort, peerPort, apiPort = 15806, 15808, 15820
	appPort, accountsPort          = 8080, 9001 // on the loopback of a host
	savingsPort                    = 9002
	etcdPort, etcdPeerPort         = 2379, 2380
	planePort                      = 15810
)

// The sizes of the disks. What is not written costs no memory.
const (
	sidecarDisk = 32 << 20
	etcdDisk    = 1 << 30
)

const (
	stores   = 3
	controls = 2
	replicas = 2
	accounts = 500 // so many that transfers seldom wait for each other's rows
	token    = "the token of the fleet"
	prefix   = "/fleet/"
)

var services = []string{"transfers", "accounts", "savings"}

// books are those of the services, by name.
type books map[string]Books

var servers databases.Set

func TestMain(m *testing.M) {
	code := m.Run()
	servers.Close()
	os.Exit(code)
}

func must(t *testing.T, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

// unit is what can be struck: a process, and the disk that it writes to if it has one.
type unit struct {
	name    string
	mayFail bool // a full disk may end it
	disk    *netns.Disk

	mu      sync.Mutex // guards process: one strikes at a time
	process *processes.Process
}

// pod is a host with an application and its sidecar.
type pod struct {
	service string
	host    *netns.Host
	client  *http.Client // as a process of this host
}

// world is all that there is.
type world struct {
	t       *testing.T
	net     *netns.Net
	dir     string
	etcd    string // binary
	hosts   map[string]*netns.Host
	units   map[string]*unit
	pods    []*pod
	books   books
	clients *netns.Host
	roster  Roster
}

func newWorld(t *testing.T, seed uint64) *world {
	t.Helper()
	w := &world{t: t, hosts: map[string]*netns.Host{}, units: map[string]*unit{}, books: books{}}
	w.net = netns.New(t, seed)
	database := servers.PostgresSocket(t)
	var err error
	w.dir, err = os.MkdirTemp("", "txmesh-fleet-") //nolint:usetesting // the logs of a run that failed stay
	must(t, err)
	t.Cleanup(w.remove)
	w.etcd, err = databases.EtcdBinary()
	must(t, err)
	out, err := exec.CommandContext(t.Context(), "go", "build", "-o", w.dir+"/", "txmesh/cmd/txmesh-sidecar", "txmesh/cmd/txmesh-controlplane",
		"txmesh/examples/bank", "txmesh/tests/fleet/ledger").CombinedOutput()
	if err != nil {
		t.Fatalf("go build: %v\n%s", err, out)
	}
	for _, service := range services[1:] {
		w.books[service] = w.createBooks(database, service)
	}
	for i := range stores {
		w.roster.Stores = append(w.roster.Stores, w.host(fmt.Sprintf("etcd-%d", i)).Name)
	}
	for i := range controls {
		w.roster.Controls = append(w.roster.Controls, w.host(fmt.Sprintf("control-%d", i)).Name)
	}
	for _, service := range services {
		for i := range replicas {
			h := w.host(fmt.Sprintf("%s-%d", service, i))
			w.roster.Sidecars = append(w.roster.Sidecars, h.Name)
			w.roster.Apps = append(w.roster.Apps, appOf(h.Name))
			w.pods = append(w.pods, &pod{service, h, clientOn(h)})
		}
	}
	w.clients = w.host("clients")
	policy, err := os.ReadFile("testdata/policy.yaml")
	must(t, errors.Join(err, os.MkdirAll(w.dir+"/policies", 0o700), os.MkdirAll(w.dir+"/tokens/bank", 0o700),
		os.WriteFile(w.dir+"/policies/policy.yaml", policy, 0o600), os.WriteFile(w.dir+"/token", []byte(token), 0o600),
		os.WriteFile(w.dir+"/secret", []byte("0123456789abcdef0123456789abcdef"), 0o600)))
	for _, service := range services {
		must(t, os.WriteFile(w.dir+"/tokens/bank/"+service, []byte("join-"+service+"-0123456789"), 0o600))
	}
	t.Cleanup(w.stop)
	w.start(database)
	return w
}

func appOf(host string) string { return "app of " + host }

func (w *world) host(name string) *netns.Host {
	h := w.net.Host(name)
	w.hosts[name] = h
	return h
}

// clientOn makes requests as a process of a host does, and repeats none by itself.
func clientOn(h *netns.Host) *http.Client {
	const timeout, perHost = 15 * time.Second, 256
	return &http.Client{Timeout: timeout, Transport: &http.Transport{DialContext: h.DialContext, MaxIdleConnsPerHost: perHost}}
}

func (w *world) createBooks(database, service string) Books {
	w.t.Helper()
	admin, err := sql.Open("pgx", database)
	must(w.t, err)
	defer admin.Close()
	_, err = admin.ExecContext(w.t.Context(), "create database "+service)
	must(w.t, err)
	b, err := OpenBooks(ofService(database, service))
	must(w.t, err)
	w.t.Cleanup(func() { must(w.t, b.Close()) })
	must(w.t, b.Create(w.t.Context(), accounts))
	return b
}

func ofService(database, service string) string {
	return strings.Replace(database, "dbname=postgres", "dbname="+service, 1)
}

// start starts the store first, then applications, then sidecars.
func (w *world) start(database string) {
	w.t.Helper()
	for i, name := range w.roster.Stores {
		w.unit(name, w.etcdCommand(i)...).mayFail = true
		w.units[name].disk = w.disk(name, etcdDisk)
	}
	for _, name := range w.roster.Controls {
		w.unit(name, w.controlCommand(name)...)
	}
	for _, p := range w.pods {
		w.unit(appOf(p.host.Name), w.appCommand(p, database)...)
		w.units[appOf(p.host.Name)].process.On = p.host.Do
		w.unit(p.host.Name, w.sidecarCommand(p)...)
		w.units[p.host.Name].disk = w.disk(p.host.Name, sidecarDisk)
	}
	for _, names := range [][]string{w.roster.Stores, w.roster.Controls, w.roster.Apps, w.roster.Sidecars} {
		for _, name := range names {
			must(w.t, w.units[name].start())
		}
	}
}

func (w *world) unit(name string, command ...string) *unit {
	u := &unit{name: name, process: &processes.Process{Name: name, Path: command[0], Args: command[1:],
		Log: filepath.Join(w.dir, strings.ReplaceAll(name, " ", "-")+".log")}}
	if h := w.hosts[name]; h != nil {
		u.process.On = h.Do
	}
	w.units[name] = u
	return u
}

func (w *world) disk(name string, bytes int) *netns.Disk {
	d, err := w.hosts[name].NewDisk(w.data(name), bytes)
	must(w.t, err)
	return d
}

func (w *world) data(name string) string { return filepath.Join(w.dir, "data", name) }

// etcdCommand is a member of the store. A shell says for it that it has begun.
func (w *world) etcdCommand(i int) []string {
	h := w.hosts[w.roster.Stores[i]]
	var cluster []string
	for _, name := range w.roster.Stores {
		cluster = append(cluster, name+"=http://"+w.hosts[name].At(etcdPeerPort))
	}
	client, peer := "http://"+h.At(etcdPort), "http://"+h.At(etcdPeerPort)
	return []string{"/bin/sh", "-c", `echo {}; exec "$0" "$@"`, w.etcd, "--name=" + h.Name, "--data-dir=" + w.data(h.Name) + "/etcd",
		"--listen-client-urls=" + client, "--advertise-client-urls=" + client, "--listen-peer-urls=" + peer,
		"--initial-advertise-peer-urls=" + peer, "--initial-cluster=" + strings.Join(cluster, ","), "--log-level=warn",
		"--auto-compaction-mode=periodic", "--auto-compaction-retention=1m", "--max-wals=2", "--max-snapshots=2"}
}

// controlCommand is a replica of the control plane. Both have the same root.
func (w *world) controlCommand(name string) []string {
	var others []string
	for _, other := range w.roster.Controls {
		if other != name {
			others = append(others, w.hosts[other].At(planePort))
		}
	}
	h := w.hosts[name]
	return []string{w.dir + "/txmesh-controlplane", "--name", name, "--listen", h.At(planePort), "--api", "127.0.0.1:15811", "--names", h.IP(),
		"--replicas", strings.Join(others, ","), "--policies", w.dir + "/policies", "--tokens-dir", w.dir + "/tokens", "--data-dir", w.dir + "/plane"}
}

func (w *world) appCommand(p *pod, database string) []string {
	listen := fmt.Sprint("127.0.0.1:", appPort)
	switch p.service {
	case "accounts":
		return []string{w.dir + "/ledger", "--listen", listen, "--kind", "withdrawal", "--database", ofService(database, p.service)}
	case "savings":
		return []string{w.dir + "/ledger", "--listen", listen, "--kind", "deposit", "--database", ofService(database, p.service)}
	}
	return []string{w.dir + "/bank", "--as", p.service, "--listen", listen, "--accounts-url", fmt.Sprint("http://127.0.0.1:", accountsPort),
		"--savings-url", fmt.Sprint("http://127.0.0.1:", savingsPort)}
}

// sidecarCommand is how a sidecar is started: what it knows of the store and of the others stands here.
func (w *world) sidecarCommand(p *pod) []string {
	var members, planes []string
	for _, name := range w.roster.Stores {
		members = append(members, w.hosts[name].At(etcdPort))
	}
	for _, name := range w.roster.Controls {
		planes = append(planes, w.hosts[name].At(planePort))
	}
	arrivals := map[string][]string{}
	for _, other := range w.pods {
		arrivals[other.service] = append(arrivals[other.service], other.host.At(inboundPort))
	}
	args := []string{w.dir + "/txmesh-sidecar", "--service", "bank/" + p.service, "--app", fmt.Sprint("127.0.0.1:", appPort),
		"--inbound", p.host.At(inboundPort), "--peer", p.host.At(peerPort), "--api", fmt.Sprint("127.0.0.1:", apiPort), "--outbound", "off",
		"--control-plane", strings.Join(planes, ","), "--control-plane-ca", w.dir + "/plane/bundle.pem", "--identity", "control-plane",
		"--join-address", planes[0], "--join-ca-file", w.dir + "/plane/bundle.pem", "--join-token-file", w.dir + "/tokens/bank/" + p.service,
		"--join-keep-key", "true", "--service-mtls", "permissive", "--store", "etcd://" + strings.Join(members, ",") + prefix,
		"--data-dir", w.data(p.host.Name), "--mesh-secret-file", w.dir + "/secret",
		"--token-file", w.dir + "/token"}
	if p.service == "transfers" {
		args = append(args, "--upstreams", fmt.Sprintf("service=accounts,listen=127.0.0.1:%d,to=%s,host=accounts.test;service=savings,listen=127.0.0.1:%d,to=%s,host=savings.test",
			accountsPort, strings.Join(arrivals["accounts"], "|"), savingsPort, strings.Join(arrivals["savings"], "|")))
	}
	return args
}

// start starts the process of a unit that does not run.
func (u *unit) start() error {
	u.mu.Lock()
	defer u.mu.Unlock()
	return u.process.Start(&struct{}{})
}

// stop ends everything, in any state.
func (w *world) stop() {
	for _, u := range w.units {
		u.process.Kill()
	}
}

// remove leaves the logs of a run that failed.
func (w *world) remove() {
	if w.t.Failed() {
		w.t.Logf("the logs are in %s", w.dir)
		return
	}
	must(w.t, os.RemoveAll(w.dir))
}
