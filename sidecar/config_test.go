package sidecar

import (
	"errors"
	"flag"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"txmesh/interceptor/proxy"
)

var rewrite = flag.Bool("rewrite", false, "write what the tests expect")

// golden compares text with a file, or writes it.
func golden(t *testing.T, path, got string) {
	t.Helper()
	if *rewrite {
		if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(path, []byte(got), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	want, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff(string(want), got); diff != "" {
		t.Errorf("%s differs (run with -rewrite if it is meant; -want +got):\n%s", path, diff)
	}
}

func TestReferenceOfConfiguration(t *testing.T) {
	golden(t, "../docs/reference/config.md", Reference())
}

func TestReferenceOfMetrics(t *testing.T) {
	golden(t, "../docs/reference/metrics.md", MetricsReference())
}

func TestHelpNamesEveryKey(t *testing.T) {
	var help string
	_, err := Load([]string{"--help"}, nil, func(text string) { help = text })
	if !errors.Is(err, ErrHelp) {
		t.Fatalf("Load(--help) = %v, want ErrHelp", err)
	}
	for _, k := range keys() {
		if !strings.Contains(help, "--"+k.name+" ") || !strings.Contains(help, "["+k.env()+"]") {
			t.Errorf("help does not name --%s and %s", k.name, k.env())
		}
	}
	golden(t, "testdata/config/help.txt", help)
}

func writeFile(t *testing.T, text string) string {
	t.Helper()
	path := filepath.Join(t.TempDir(), "sidecar.yaml")
	if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	return path
}

func noHelp(string) {}

func TestExampleInTheReferenceLoads(t *testing.T) {
	got, err := Load([]string{"--config", writeFile(t, exampleConfig)}, nil, noHelp)
	if err != nil {
		t.Fatal(err)
	}
	want := Config{Service: "bank/transfers", App: "127.0.0.1:8080", Inbound: "0.0.0.0:15806", Outbound: "127.0.0.1:15801",
		API: "127.0.0.1:15820", Peer: "0.0.0.0:15808", Peers: []string{"accounts:15808", "savings:15808"},
		Redirect: Redirect{DetectTime: 200 * time.Millisecond}, RawIdle: 24 * time.Hour,
		Policies: []string{"/etc/txmesh/policies"}, DataDir: "/var/lib/txmesh", MeshSecretFile: "/etc/txmesh/mesh-secret", ControlPlaneWait: 2 * time.Second, Store: "badger", Lease: 3 * time.Second,
		Upstreams: []Upstream{
			{Service: "bank/accounts", Listen: "127.0.0.1:9001", To: []string{"accounts:15806"}, Host: "accounts.bank"},
			{Service: "bank/savings", Listen: "127.0.0.1:9002", To: []string{"savings:15806"}}},
		Limits: proxy.Limits{HeaderBytes: 32 << 10, HeaderFields: 256, HeaderTime: 10 * time.Second, BufferTime: 30 * time.Second, BodyIdle: 5 * time.Minute,
			WriteIdle: time.Minute, Idle: 2 * time.Minute, EndpointIdle: 30 * time.Second, EndpointKept: 256, DialTime: 5 * time.Second,
			Streams: 250, EndpointConns: 8, EndpointQueue: 1024, PingAfter: 30 * time.Second},
		LogLevel: "info", LogFormat: "json", MaxBody: 1 << 20, MaxConnections: 10000, MaxOpen: 10000, MaxBranches: 1000,
		CallTimeout: 10 * time.Second, PeerTimeout: 5 * time.Second, CommitWait: 5 * time.Second,
		DTM: DTM{TimeoutToFail: 35 * time.Second, RetryInterval: time.Second, RetryMax: time.Minute,
			RequestTimeout: 3 * time.Second, ResumeAfter: 10 * time.Second, AlertAfter: 3},
		Identity:       Identity{From: "off", TrustDomain: "cluster.local", SDSCertificate: "default", SDSRoots: "ROOTCA", Peers: "strict", Services: "off"},
		TimeoutDefault: 30 * time.Second, GracePeriod: 30 * time.Second, Retention: 24 * time.Hour,
		RetentionBytes: 1 << 30, MemoryLimit: 128 << 20}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Errorf("Load differs (-want +got):\n%s", diff)
	}
}

// The defaults of the keys are those of the proxy: a key that is renamed on one side alone would lose its limit.
func TestLimitsOfTheKeysAreThoseOfTheProxy(t *testing.T) {
	got, err := Load([]string{"--service=a/b", "--app=127.0.0.1:1", "--max-headers-size=64KiB", "--max-headers-count=100", "--max-request-body=8MiB",
		"--headers-timeout=1s", "--body-timeout=2s", "--body-idle-timeout=3s", "--send-timeout=4s", "--keepalive-timeout=5s", "--request-timeout=6s",
		"--connect-timeout=7s", "--upstream-keepalive=8", "--upstream-keepalive-timeout=9s", "--http2-max-streams=10", "--http2-upstream-connections=11",
		"--http2-upstream-queue=12", "--http2-ping-after=13s"}, nil, noHelp)
	if err != nil {
		t.Fatal(err)
	}
	want := proxy.Limits{HeaderBytes: 64 << 10, HeaderFields: 100, BodyBytes: 8 << 20, HeaderTime: time.Second, BufferTime: 2 * time.Second,
		BodyIdle: 3 * time.Second, WriteIdle: 4 * time.Second, Idle: 5 * time.Second, Exchange: 6 * time.Second, DialTime: 7 * time.Second,
		EndpointKept: 8, EndpointIdle: 9 * time.Second,
		Streams: 10, EndpointConns: 11, EndpointQueue: 12, PingAfter: 13 * time.Second}
	if diff := cmp.Diff(want, got.Limits); diff != "" {
		t.Errorf("limits differ (-want +got):\n%s", diff)
	}
	_, err = Load([]string{"--service=a/b", "--app=127.0.0.1:1", "--max-headers-size=10", "--max-headers-count=none", "--max-request-body=much",
		"--send-timeout=0s", "--request-timeout=-1s"}, nil, noHelp)
	const wrong = `config: max-headers-size: "10": is not between 1KiB and 1MiB; write for example 32KiB; large values belong into the body
config: max-headers-count: "none": is not a positive number; write for example 1000
config: max-request-body: "much": is not a size; write for example 512KiB, 4MiB or 1GiB, or off
config: send-timeout: "0s": is not a positive duration; write for example 500ms, 30s or 24h
config: request-timeout: "-1s": is not a positive duration; write for example 500ms, 30s or 24h, or off`
	if err == nil || err.Error() != wrong {
		t.Errorf("Load = %v, want\n%s", err, wrong)
	}
}

func TestFlagsGoBeforeEnvironmentBeforeFile(t *testing.T) {
	path := writeFile(t, "service: a/file\napp: 127.0.0.1:1\ngrace-period: 1s\nlog-level: warn\n")
	got, err := Load([]string{"--config=" + path, "--service", "a/flag"},
		[]string{"TXMESH_SERVICE=a/env", "TXMESH_GRACE_PERIOD=2s", "HOME=/root"}, noHelp)
	if err != nil {
		t.Fatal(err)
	}
	if got.Service != "a/flag" || got.GracePeriod != 2*time.Second || got.LogLevel != "warn" || got.App != "127.0.0.1:1" {
		t.Errorf("Load = service %s, grace %v, level %s, app %s", got.Service, got.GracePeriod, got.LogLevel, got.App)
	}
}

func TestListsMayTakeSeveralFlags(t *testing.T) {
	got, err := Load([]string{"--service=a/b", "--app=127.0.0.1:1", "--mesh-secret-file=x", "--peers=h:1,h:2", "--peers=h:3",
		"--policies=p", "--policies=q", "--api=127.0.0.1:1", "--api=127.0.0.1:2"}, nil, noHelp)
	if err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff([]string{"h:1", "h:2", "h:3", "p", "q", "127.0.0.1:2"}, append(append(got.Peers, got.Policies...), got.API)); diff != "" {
		t.Errorf("Load differs (-want +got):\n%s", diff)
	}
}

func TestShortFormOfUpstreams(t *testing.T) {
	want := []Upstream{{Service: "bank/accounts", Listen: "127.0.0.1:0", To: []string{"10.0.0.7:1", "10.0.0.8:1"}, Host: "acc"},
		{Service: "other/mail", Listen: "127.0.0.1:0", To: []string{"10.0.0.9:1"}}}
	one := "service=accounts,listen=127.0.0.1:0,to=10.0.0.7:1|10.0.0.8:1,host=acc"
	two := "service=other/mail,listen=127.0.0.1:0,to=10.0.0.9:1"
	base := []string{"--service=bank/transfers", "--app=127.0.0.1:1"}
	for _, tt := range []struct {
		name string
		args []string
		env  []string
	}{
		{"one flag", append(base, "--upstreams="+one+"; "+two), nil},
		{"two flags", append(base, "--upstreams", one, "--upstreams", two), nil},
		{"variable", base, []string{"TXMESH_UPSTREAMS=" + one + ";" + two}},
	} {
		t.Run(tt.name, func(t *testing.T) {
			got, err := Load(tt.args, tt.env, noHelp)
			if err != nil {
				t.Fatal(err)
			}
			if diff := cmp.Diff(want, got.Upstreams); diff != "" {
				t.Errorf("upstreams differ (-want +got):\n%s", diff)
			}
		})
	}
}

func TestAllMistakesAreNamedAtOnce(t *testing.T) {
	path := writeFile(t, `servce: bank/x
app: nowhere
grace-period: soon
max-body: -1
max-open: 0
log-level: loud
allow-link-local: perhaps
trusted-gateways: [gateway, 10.0.0.1/8]
peers: ["accounts", 7]
policies: {a: b}
upstreams:
- {service: accounts, listen: "127.0.0.1:0", to: ["a:1"], host: acc, port: 3}
- {service: accounts, listen: "127.0.0.1:0", to: ["b:0"], host: ACC}
- {listen: [1], to: []}
- nonsense
`)
	_, err := Load([]string{"--config", path}, []string{"TXMESH_GRACE=1s"}, noHelp)
	if err == nil {
		t.Fatal("Load = nil, want every mistake")
	}
	golden(t, "testdata/config/mistakes.txt", strings.ReplaceAll(err.Error(), path, "FILE")+"\n")
}

func TestMistakesInFlagsAndFile(t *testing.T) {
	base := []string{"--service=a/b", "--app=127.0.0.1:1"}
	for _, tt := range []struct {
		name string
		args []string
		want string
	}{
		{"nothing given", nil, `config: service: is missing; name the service beside this sidecar, for example bank/accounts
config: app: is missing; give the application's host:port`},
		{"unknown flag", []string{"--servicename=x"}, "config: unknown flag: --servicename; see txmesh-sidecar --help"},
		{"argument", append(base, "x"), `config: "x": unexpected argument; write it as --KEY VALUE`},
		{"no file", append(base, "--config=/nonexistent/x"), `config: config: "/nonexistent/x": open /nonexistent/x: no such file or directory; name a readable YAML file`},
		{"peers without secret", append(base, "--peers=127.0.0.1:1"),
			"config: mesh-secret-file: is missing, but there are peers; make one file for the whole mesh with `openssl rand -hex 32`"},
		{"two listeners on one port", append(base, "--api=127.0.0.1:15808"), `config: peer: "127.0.0.1:15808": is taken by api; give each its own port, or port 0`},
		{"two services on one host", append(base, "--upstreams=service=x,to=h:1,host=one", "--upstreams=service=y,to=h:2,host=One"),
			`config: upstreams: "One": two upstreams claim this host: a/x and a/y; give each service a host of its own`},
		{"upper case service", []string{"--service=a/B", "--app=127.0.0.1:1"},
			`config: service: "a/B": is not namespace/name; use lower-case letters, digits and '-'`},
	} {
		t.Run(tt.name, func(t *testing.T) {
			_, err := Load(tt.args, nil, noHelp)
			if err == nil {
				t.Fatalf("Load(%q) = nil, want %s", tt.args, tt.want)
			}
			if diff := cmp.Diff(tt.want, err.Error()); diff != "" {
				t.Errorf("Load(%q) differs (-want +got):\n%s", tt.args, diff)
			}
		})
	}
}

// What a shared store needs is asked for; its password is not repeated.
func TestMistakesOfASharedStore(t *testing.T) {
	for _, tt := range []struct{ args, want string }{
		{"--store mysql://root:secret@db:3306/txmesh --peer 0.0.0.0:15808",
			"config: mesh-secret-file: is missing, but the store is shared; make one file for the whole mesh with `openssl rand -hex 32`\n" +
				"config: advertise-peer: is missing: peer is bound to all addresses, and others on the shared store find this sidecar by one; give the host:port by which they reach the peer port"},
		{"--store redis://user:secret@db:6379/1 --mesh-secret-file s --advertise-peer a:1",
			`config: store: "redis://user:xxxxx@db:6379/1": is neither badger nor the URL of a store; write badger, or a URL that begins with etcd://, postgres:// or mysql://`},
		{"--standby true",
			"config: standby: \"true\": has an application beside it; leave out app: a stand-by adopts for services that have no sidecar left\n" +
				"config: standby: \"true\": has a store of its own, and no journal but its own is in it; set store to the engine that the mesh shares"},
	} {
		_, err := Load(append(strings.Fields(tt.args), "--service", "bank/a", "--app", "127.0.0.1:1"), nil, noHelp)
		if err == nil || !sameLines(err.Error(), tt.want) {
			t.Errorf("%s:\n%v\nwant\n%s", tt.args, err, tt.want)
		}
	}
}

// sameLines compares what is said in any order.
func sameLines(a, b string) bool {
	x, y := strings.Split(a, "\n"), strings.Split(b, "\n")
	slices.Sort(x)
	slices.Sort(y)
	return slices.Equal(x, y)
}
