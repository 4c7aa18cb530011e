package controlplane

import (
	"errors"
	"flag"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
)

var rewrite = flag.Bool("rewrite", false, "write what the tests expect")

func TestPageOfTheReference(t *testing.T) {
	const path = "../docs/reference/controlplane.md"
	if *rewrite {
		if err := os.WriteFile(path, []byte(Page()), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	want, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	if d := cmp.Diff(string(want), Page()); d != "" {
		t.Errorf("%s differs (run with -rewrite if it is meant; -want +got):\n%s", path, d)
	}
}

func TestHelpNamesEveryKey(t *testing.T) {
	var help string
	if _, err := Load([]string{"--help"}, nil, func(text string) { help = text }); !errors.Is(err, ErrHelp) {
		t.Fatalf("Load(--help) = %v, want ErrHelp", err)
	}
	for _, k := range keys() {
		if !strings.Contains(help, "--"+k.name+" ") || !strings.Contains(help, "["+k.env()+"]") {
			t.Errorf("help does not name --%s and %s", k.name, k.env())
		}
	}
}

func writeFile(t *testing.T, text string) string {
	t.Helper()
	path := filepath.Join(t.TempDir(), "c.yaml")
	if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	return path
}

func TestExampleLoadsAndFlagsWinOverVariablesOverFile(t *testing.T) {
	got, err := Load([]string{"--config", writeFile(t, exampleConfig), "--lease=1s"}, []string{"TXMESH_LEASE=2s", "TXMESH_GRACE=20s", "TXMESH_NAME=two"}, nil)
	if err != nil {
		t.Fatal(err)
	}
	host, err := os.Hostname()
	if err != nil {
		t.Fatal(err)
	}
	want := Config{Listen: "0.0.0.0:15810", API: "127.0.0.1:15811", Policies: []string{"/etc/txmesh/policies"}, TrustDomain: "mesh.example",
		DataDir: "/var/lib/txmesh-controlplane", RootCertificate: "/etc/txmesh/root/tls.crt", RootKey: "/etc/txmesh/root/tls.key", CertificateLife: time.Hour,
		Names: []string{"txmesh-controlplane.txmesh.svc", host, "localhost", "127.0.0.1", "::1"}, TokensDir: "/etc/txmesh/tokens",
		MeshSecretFile: "/etc/txmesh/mesh-secret", Name: "two", Replicas: []string{"controlplane-1.txmesh:15810"}, Heartbeat: 10 * time.Second,
		Grace: 20 * time.Second, Lease: time.Second, Takeover: 10 * time.Minute, LogLevel: "info", LogFormat: "json", MemoryLimit: 160 << 20}
	if d := cmp.Diff(want, got); d != "" {
		t.Errorf("configuration (-want +got):\n%s", d)
	}
}

func TestEverythingWrongIsReportedAtOnce(t *testing.T) {
	path := writeFile(t, "polices: [a]\nreplicas: {a: b}\n")
	_, err := Load([]string{"--config", path, "--listen=0.0.0.0:1", "--insecure=true", "--api=nowhere", "--root-key=k", "--lease=-1s", "--log-level=loud",
		"--trust-domain=Mesh", "--certificate-life=1s", "--memory-limit=much"}, []string{"TXMESH_NOBODY=1"}, nil)
	want := `config: TXMESH_NOBODY: "1": unknown variable; remove it; docs/reference/controlplane.md lists all keys
config: polices: "[a]": unknown key in ` + path + `; remove it; docs/reference/controlplane.md lists all keys
config: replicas.a: "b": unknown key in ` + path + `; remove it; docs/reference/controlplane.md lists all keys
config: api: "nowhere": is not host:port; write for example 127.0.0.1:15810
config: policies: is missing; name a directory with policies; it may be empty
config: trust-domain: "Mesh": is not a trust domain; use lower-case letters, digits, '.', '-' and '_', for example mesh.example
config: root-certificate: certificate and key of the root belong together; give both root-certificate and root-key, or neither
config: certificate-life: "1s": is too short to renew in; use 1m0s at least
config: insecure: "true": would serve 0.0.0.0:1 to others than this host; listen on 127.0.0.1, or leave insecure out
config: replicas: "map[a:b]": is not a list; write a list, or texts separated by commas
config: lease: "-1s": is not a positive duration; write for example 500ms, 30s or 24h
config: log-level: "loud": is not one of the values; write one of debug, info, warn, error
config: memory-limit: "much": is not a size; write for example 512KiB, 4MiB or 1GiB`
	if err == nil {
		t.Fatal("no error")
	}
	if d := cmp.Diff(want, err.Error()); d != "" {
		t.Errorf("problems (-want +got):\n%s", d)
	}
}
