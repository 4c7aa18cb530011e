package controlplane

import (
	"fmt"
	"strings"
)

// kind is how the value of a key is written.
type kind uint8

const (
	text kind = iota
	address
	addresses
	names
	paths
	duration
	size
	boolean
	word
)

// key is one configuration key: a flag, a line of the file and a variable of the environment.
type key struct {
	name  string
	kind  kind
	def   string
	words []string // of kind word
	doc   string
}

// keys is the table of all that can be configured. docs/reference/controlplane.md and --help are printed from it.
func keys() []key {
	return []key{
		{name: "listen", kind: address, def: "0.0.0.0:15810", doc: "where sidecars get configuration (xDS) and certificates; port 0 picks one and the ready line tells it"},
		{name: "api", kind: address, def: "127.0.0.1:15811", doc: "status, health, readiness and metrics, without TLS"},
		{name: "policies", kind: paths, doc: "policy files, or directories with *.yaml files, separated by commas; watched. A set with a fault is reported and the last good one stays"},
		{name: "trust-domain", kind: text, def: "cluster.local", doc: "trust domain of the mesh's SPIFFE ids, spiffe://DOMAIN/ns/NAMESPACE/sa/NAME"},
		{name: "data-dir", kind: text, def: "/var/lib/txmesh-controlplane", doc: "directory of the root, which is made there, of the bundle (bundle.pem) and of the token"},
		{name: "root-certificate", kind: text, doc: "file with the root's certificate, PEM, instead of one made in the data directory; the same for all replicas"},
		{name: "root-key", kind: text, doc: "file with its key, PEM"},
		{name: "more-roots", kind: text, doc: "file with further roots, PEM, that members of the mesh trust as well: for the time in which a root is changed"},
		{name: "certificate-life", kind: duration, def: "1h", doc: "life of a workload's certificate; sidecars renew at half of it"},
		{name: "names", kind: names, doc: "host names and addresses by which sidecars reach this control plane, separated by commas; the certificate carries them beside this host's name and loopback"},
		{name: "tokens-dir", kind: text, doc: "directory of join tokens, one file NAMESPACE/NAME per service, one token a line; `once` after a token makes it good for one key. Shared by replicas"},
		{name: "mesh-secret-file", kind: text, doc: "file with the secret that signs contexts, 16 bytes at least; handed out to sidecars with a certificate"},
		{name: "token-file", kind: text, doc: "file with the bearer token of the status; without it one is made in the data directory"},
		{name: "insecure", kind: boolean, def: "false", doc: "no TLS and no certificates, for a first try; only with `listen` on loopback"},
		{name: "name", kind: text, doc: "name of this replica in the status; without it the host's name"},
		{name: "replicas", kind: addresses, doc: "`listen` addresses of the other replicas, host:port, separated by commas"},
		{name: "heartbeat", kind: duration, def: "10s", doc: "pause between heartbeats; a sidecar that answers nothing for two is shown as frozen"},
		{name: "grace", kind: duration, def: "10s", doc: "a sidecar whose stream has gone stays an endpoint for so long; after a start nothing is taken from those that come back for as long"},
		{name: "lease", kind: duration, def: "3s", doc: "a sidecar on a shared store whose stream has gone for so long is offered for adoption"},
		{name: "takeover", kind: duration, def: "10m", doc: "how long it is offered"},
		{name: "log-level", kind: word, def: "info", words: []string{"debug", "info", "warn", "error"}, doc: "least level that is logged"},
		{name: "log-format", kind: word, def: "json", words: []string{"json", "text"}, doc: "form of the log on standard error"},
		{name: "memory-limit", kind: size, def: "192MiB", doc: "soft limit of the heap: the garbage collector works harder near it (GOMEMLIMIT, if set, wins)"},
	}
}

// env is the name of the key's variable.
func (k key) env() string { return "TXMESH_" + strings.ToUpper(strings.ReplaceAll(k.name, "-", "_")) }

// list reports whether several values are given, with commas between them.
func (k key) list() bool { return k.kind == addresses || k.kind == names || k.kind == paths }

// form tells people how a value is written.
func (k key) form() string {
	switch k.kind {
	case text:
		return "text"
	case address:
		return "host:port"
	case addresses:
		return "host:port,..."
	case names:
		return "name,..."
	case paths:
		return "path,..."
	case duration:
		return "duration"
	case size:
		return "size"
	case boolean:
		return "true|false"
	case word:
		return strings.Join(k.words, "|")
	default:
		panic(fmt.Sprintf("controlplane: kind %d of key %s", k.kind, k.name))
	}
}

// Reference returns the table of the keys and an example, for docs/reference/controlplane.md.
func Reference() string {
	var b strings.Builder
	b.WriteString("| key | form | default | meaning |\n|---|---|---|---|\n")
	for _, k := range keys() {
		def := "none"
		if k.def != "" {
			def = "`" + k.def + "`"
		}
		fmt.Fprintf(&b, "| `%s` | %s | %s | %s |\n", k.name, strings.ReplaceAll(k.form(), "|", "\\|"), def, k.doc)
	}
	b.WriteString("\nAn example:\n\n```yaml\n" + exampleConfig + "```\n")
	return b.String()
}

// exampleConfig is read by a test, so that it stays true.
const exampleConfig = `trust-domain: mesh.example
listen: 0.0.0.0:15810
names: [txmesh-controlplane.txmesh.svc]
policies: [/etc/txmesh/policies]
tokens-dir: /etc/txmesh/tokens
mesh-secret-file: /etc/txmesh/mesh-secret
root-certificate: /etc/txmesh/root/tls.crt
root-key: /etc/txmesh/root/tls.key
name: controlplane-0
replicas: ["controlplane-1.txmesh:15810"]
`
