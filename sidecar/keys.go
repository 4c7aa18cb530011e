package sidecar

import (
	"fmt"
	"slices"
	"strings"
)

// kind is how the value of a key is written.
type kind uint8

const (
	text kind = iota
	address
	addresses
	duration
	size
	sizeOrOff
	durationOrOff
	number
	boolean
	word
	paths
	upstreams
	networks
	storeURL
)

// key is one configuration key: a flag, a line of the file and a variable of the environment.
type key struct {
	name  string
	kind  kind
	def   string
	words []string // of kind word
	doc   string
}

// keys is the table of all that can be configured. docs/reference/config.md and --help are printed from it.
func keys() []key {
	return slices.Concat([]key{
		{name: "service", kind: text, doc: "name of the service beside this sidecar, as namespace/name; without namespace it is in `default`. Required with an application"},
		{name: "app", kind: address, doc: "host:port of the application. Required, unless `dtm` or `dtm-grpc` is set: then, without it, the sidecar stands alone and opens neither inbound, outbound nor upstream ports"},
		{name: "inbound", kind: address, def: "127.0.0.1:15806", doc: "where requests for the application arrive; port 0 picks one and the ready line tells it"},
		{name: "advertise", kind: address, doc: "host:port by which callers name the inbound port, if it differs from what it is bound to"},
		{name: "dtm", kind: address, doc: "where clients of DTM are served over HTTP and JSON-RPC; DTM's own port is 36789. With an identity it takes TLS as well. None: not at all"},
		{name: "dtm-grpc", kind: address, doc: "where clients of DTM are served over gRPC; DTM's own port is 36790. With an identity it takes TLS as well. None: not at all"},
		{name: "dtm-timeout-to-fail", kind: duration, def: "35s", doc: "time to the decision of a tcc, xa or msg of a client of DTM that names none"},
		{name: "dtm-retry-interval", kind: duration, def: "1s", doc: "pause before the first repeat of a call for a client of DTM that names none; it doubles from there"},
		{name: "dtm-retry-max", kind: duration, def: "1m", doc: "longest such pause"},
		{name: "dtm-request-timeout", kind: duration, def: "3s", doc: "longest time that a call may take for a client of DTM that names none"},
		{name: "dtm-resume-after", kind: duration, def: "10s", doc: "a workflow of a client of DTM that has not ended after so long is called again"},
		{name: "dtm-alert-url", kind: text, doc: "URL that is told, by POST, of a branch that keeps failing for a client of DTM"},
		{name: "dtm-alert-after", kind: number, def: "3", doc: "failed tries after which it is told"},
		{name: "trusted-gateways", kind: networks, doc: "networks whose requests to the inbound port may begin transactions by tx-start, in CIDR notation or as addresses, separated by commas; the header is removed from all others"},
		{name: "outbound", kind: address, def: "127.0.0.1:15801", doc: "forward proxy for the application's own calls (HTTP_PROXY); `off` for none"},
		{name: "upstreams", kind: upstreams, doc: "services that the application calls by an address of its own: a list of {service, listen, to, host, protocol}. Without `to`, the endpoints are those of the sidecars that peers or the control plane name. `protocol` is http (what a port speaks that says nothing), tcp (bytes pass as they are, the server may speak first) or auto (http if a policy names the service, else tcp); `name` may be written for `service`. As flag or variable: `service=accounts,listen=127.0.0.1:0,to=10.0.0.7:15806|10.0.0.8:15806,host=accounts.bank`, several separated by `;`"},
		{name: "api", kind: address, def: "127.0.0.1:15820", doc: "local API, health, readiness and metrics"},
		{name: "peer", kind: address, def: "127.0.0.1:15808", doc: "where other sidecars reach this one"},
		{name: "peers", kind: addresses, doc: "peer ports of the other sidecars, host:port, separated by commas"},
		{name: "policies", kind: paths, doc: "policy files, or directories with *.yaml files, separated by commas; watched and reloaded when they change"},
		{name: "control-plane", kind: addresses, doc: "where the control plane is, host:port of one or more replicas that are tried in turn. It brings policies and peers; the last good ones are kept in the data directory, so that the sidecar starts without it"},
		{name: "control-plane-ca", kind: text, doc: "file with the roots that the control plane's certificate is checked against, in PEM form. Required, unless the control plane is on loopback"},
		{name: "control-plane-wait", kind: duration, def: "2s", doc: "how long a start waits for the control plane before it goes on with the last good configuration, or, without one, forwards untagged requests alone"},
		{name: "data-dir", kind: text, def: "/var/lib/txmesh", doc: "directory of the journal; one sidecar per directory"},
		{name: "store", kind: storeURL, def: "badger", doc: "where the journal is: `badger`, embedded in the data directory, or an engine that all sidecars of the mesh share and that survives the loss of a node: etcd://host:port,host:port/prefix, postgres://user:password@host:port/database or mysql://user:password@host:port/database. Passwords belong into the variable or the file, not into the flag"},
		{name: "lease", kind: duration, def: "3s", doc: "how long a sidecar with a shared store may be silent before another adopts its journal; the same for all sidecars"},
		{name: "standby", kind: boolean, def: "false", doc: "stand beside no application, and adopt the journals of services that have no sidecar left; needs a shared store"},
		{name: "advertise-peer", kind: address, doc: "host:port by which other sidecars call the peer port, if it differs from what it is bound to"},
		{name: "mesh-secret-file", kind: text, doc: "file with the secret that all sidecars of the mesh share, 16 bytes at least. Required with peers; without it one is made in the data directory"},
		{name: "token-file", kind: text, doc: "file with the bearer token of the API; without it one is made in the data directory"},
		{name: "secrets-dir", kind: text, doc: "directory of the secrets that policies refer to, one file per NAME/KEY"},
		{name: "allow-link-local", kind: boolean, def: "false", doc: "let undo, confirm and query calls go to link-local addresses (169.254.0.0/16, fe80::/10), where clouds serve credentials. Loopback is allowed: explicit upstreams live there"},
		{name: "log-level", kind: word, def: "info", words: []string{"debug", "info", "warn", "error"}, doc: "least level that is logged"},
		{name: "log-format", kind: word, def: "json", words: []string{"json", "text"}, doc: "form of the log on standard error"},
		{name: "max-body", kind: size, def: "1MiB", doc: "largest body that is buffered where a rule reads it"},
		{name: "max-connections", kind: number, def: "10000", doc: "connections at a time to each port; more are answered 503 and closed"},
		{name: "max-open", kind: number, def: "10000", doc: "open transactions of this sidecar; more are refused"},
		{name: "max-branches", kind: number, def: "1000", doc: "branches of one transaction; more are refused"},
		{name: "call-timeout", kind: duration, def: "10s", doc: "longest time that an undo, confirm, query or delivery may take"},
		{name: "peer-timeout", kind: duration, def: "5s", doc: "longest time that another sidecar may take to answer, unless it has an application called"},
		{name: "commit-wait", kind: duration, def: "5s", doc: "how long a commit over the API waits for unanswered branches before it answers 202"},
		{name: "timeout-default", kind: duration, def: "30s", doc: "time to the decision of a transaction begun over the API without a timeout"},
		{name: "grace-period", kind: duration, def: "30s", doc: "after SIGTERM: how long the sidecar goes on for the application and for open transactions"},
		{name: "retention", kind: duration, def: "24h", doc: "how long finished transactions are kept"},
		{name: "retention-bytes", kind: size, def: "1GiB", doc: "size of the journal above which the oldest finished transactions go earlier"},
		{name: "memory-limit", kind: size, def: "128MiB", doc: "soft limit of the heap: the garbage collector works harder near it (GOMEMLIMIT, if set, wins)"},
	}, limitKeys(), redirectKeys(), identityKeys())
}

// env is the name of the key's variable.
func (k key) env() string { return "TXMESH_" + strings.ToUpper(strings.ReplaceAll(k.name, "-", "_")) }

// separator stands between the values of a list.
func (k key) separator() string {
	switch k.kind {
	case addresses, paths, networks:
		return ","
	case upstreams:
		return ";"
	default:
		return ""
	}
}

// form tells people how a value is written.
func (k key) form() string {
	switch k.kind {
	case text:
		return "text"
	case address:
		return "host:port"
	case addresses:
		return "host:port,..."
	case duration:
		return "duration"
	case size:
		return "size"
	case sizeOrOff:
		return "size|off"
	case durationOrOff:
		return "duration|off"
	case number:
		return "number"
	case boolean:
		return "true|false"
	case word:
		return strings.Join(k.words, "|")
	case storeURL:
		return "badger|URL"
	case paths:
		return "path,..."
	case upstreams:
		return "list"
	case networks:
		return "CIDR,..."
	default:
		panic(fmt.Sprintf("sidecar: kind %d of key %s", k.kind, k.name))
	}
}

// Reference returns docs/reference/config.md.
func Reference() string {
	var b strings.Builder
	b.WriteString("# Configuration of txmesh-sidecar\n\n" +
		"Printed from the table in sidecar/keys.go by `go test ./sidecar -run Reference -rewrite`.\n\n" +
		"A value comes from the flag `--KEY`, else the variable `TXMESH_KEY`, else the YAML file named by `--config` (or\n" +
		"`TXMESH_CONFIG`), else its default. Durations are written as 500ms, 5s or 24h, sizes as 512KiB, 4MiB or 1GiB. Unknown\n" +
		"keys are errors; all errors are reported at once.\n\n" +
		"| key | form | default | meaning |\n|---|---|---|---|\n")
	for _, k := range keys() {
		def := "none"
		if k.def != "" {
			def = "`" + k.def + "`"
		}
		doc := strings.ReplaceAll(k.doc, "|", "\\|")
		fmt.Fprintf(&b, "| `%s` | %s | %s | %s |\n", k.name, strings.ReplaceAll(k.form(), "|", "\\|"), def, doc)
	}
	b.WriteString("\nAn example:\n\n```yaml\n" + exampleConfig + "```\n")
	return b.String()
}

// exampleConfig is read by a test, so that it stays true.
const exampleConfig = `service: bank/transfers
app: 127.0.0.1:8080
inbound: 0.0.0.0:15806
peer: 0.0.0.0:15808
peers: [accounts:15808, savings:15808]
upstreams:
- {service: accounts, listen: "127.0.0.1:9001", to: ["accounts:15806"], host: accounts.bank}
- {service: savings, listen: "127.0.0.1:9002", to: ["savings:15806"]}
policies: [/etc/txmesh/policies]
data-dir: /var/lib/txmesh
mesh-secret-file: /etc/txmesh/mesh-secret
`
