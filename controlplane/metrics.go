package controlplane

import (
	"io"
	"net/http"
	"runtime"
	"strings"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/collectors"
	"github.com/prometheus/client_golang/prometheus/promhttp"
	"github.com/uber-go/tally/v4"
	tallyprom "github.com/uber-go/tally/v4/prometheus"

	"txmesh/controlplane/api"
	"txmesh/controlplane/xds"
)

// metric is one row of the table of metrics. Tags are closed sets.
type metric struct {
	name string
	kind string // counter or gauge
	tags []string
	doc  string
}

// metricTable lists all metrics under their names in Prometheus. docs/reference/controlplane.md is printed from it.
func metricTable() []metric {
	return []metric{
		{"txmesh_controlplane_build_info", "gauge", []string{"go", "version"}, "always 1"},
		{"txmesh_controlplane_streams", "gauge", []string{"kind"}, "open streams to this replica: of sidecars, or of others"},
		{"txmesh_controlplane_sidecars", "gauge", []string{"state"}, "connected sidecars of the mesh by how they stand to the policies in force: refused, frozen, stale or accepted"},
		{"txmesh_controlplane_services", "gauge", nil, "services that have or had a sidecar within the hour"},
		{"txmesh_controlplane_takeovers", "gauge", nil, "journals that are offered for adoption"},
		{"txmesh_controlplane_replicas_connected", "gauge", nil, "other replicas with a standing stream"},
		{"txmesh_controlplane_root_expires_seconds", "gauge", nil, "until the root expires"},
		{"txmesh_controlplane_policy_updates_total", "counter", nil, "policy sets handed out"},
		{"txmesh_controlplane_policy_problems_total", "counter", nil, "changes of policies that were not handed out; the last good set stays"},
		{"txmesh_controlplane_answers_total", "counter", []string{"resources", "answer"}, "ACKs and NACKs of sidecars, to policies and to all else"},
		{"txmesh_controlplane_streams_refused_total", "counter", []string{"cause"}, "streams refused: no certificate of a service, another service than the certificate's, a node that cannot be read, or too many types"},
		{"txmesh_controlplane_certificates_total", "counter", []string{"result"}, "requests for certificates: joined, renewed, refused or failed"},
	}
}

// MetricsReference returns the table of the metrics, for docs/reference/controlplane.md.
func MetricsReference() string {
	var b strings.Builder
	b.WriteString("| metric | kind | tags | meaning |\n|---|---|---|---|\n")
	for _, m := range metricTable() {
		b.WriteString("| `" + m.name + "` | " + m.kind + " | " + strings.Join(m.tags, ", ") + " | " + m.doc + " |\n")
	}
	return b.String()
}

// metrics holds every series from the start, so that a rate is seen from the first event on.
type metrics struct {
	registry *prometheus.Registry
	closer   io.Closer

	services, takeovers, replicas, rootExpires tally.Gauge
	streams                                    [2]tally.Gauge // of sidecars, of others
	sidecars                                   map[api.State]tally.Gauge
	policyUpdates, policyProblems              tally.Counter
	answers                                    map[[2]bool]tally.Counter // of policies, accepted
	refused                                    map[xds.Cause]tally.Counter
	issued                                     map[api.Result]tally.Counter
}

// reportEvery is how far what is scraped may lie behind.
const reportEvery = time.Second

func newMetrics(version string) *metrics {
	registry := prometheus.NewRegistry()
	registry.MustRegister(collectors.NewGoCollector(), collectors.NewProcessCollector(collectors.ProcessCollectorOpts{}))
	reporter := tallyprom.NewReporter(tallyprom.Options{Registerer: registry})
	scope, closer := tally.NewRootScope(tally.ScopeOptions{Prefix: "txmesh_controlplane", Separator: "_", CachedReporter: reporter,
		SanitizeOptions: &tallyprom.DefaultSanitizerOpts, OmitCardinalityMetrics: true}, reportEvery)
	tag := func(key, value string) tally.Scope { return scope.Tagged(map[string]string{key: value}) }
	m := &metrics{registry: registry, closer: closer, services: scope.Gauge("services"), takeovers: scope.Gauge("takeovers"),
		replicas: scope.Gauge("replicas_connected"), rootExpires: scope.Gauge("root_expires_seconds"),
		policyUpdates: scope.Counter("policy_updates_total"), policyProblems: scope.Counter("policy_problems_total"),
		sidecars: map[api.State]tally.Gauge{}, answers: map[[2]bool]tally.Counter{}, refused: map[xds.Cause]tally.Counter{},
		issued: map[api.Result]tally.Counter{}}
	scope.Tagged(map[string]string{"version": version, "go": runtime.Version()}).Gauge("build_info").Update(1)
	for i, kind := range []string{"sidecar", "other"} {
		m.streams[i] = tag("kind", kind).Gauge("streams")
	}
	for _, s := range []api.State{api.Rejected, api.Frozen, api.Stale, api.Accepted} {
		m.sidecars[s] = tag("state", string(s)).Gauge("sidecars")
	}
	for policies, resources := range map[bool]string{true: "policies", false: "other"} {
		for accepted, answer := range map[bool]string{true: "ack", false: "nack"} {
			m.answers[[2]bool{policies, accepted}] = scope.Tagged(map[string]string{"resources": resources, "answer": answer}).Counter("answers_total")
		}
	}
	for _, cause := range []xds.Cause{xds.CauseUnknown, xds.CauseMismatch, xds.CauseNode, xds.CauseTypes} {
		m.refused[cause] = tag("cause", string(cause)).Counter("streams_refused_total")
	}
	for _, r := range []api.Result{api.Joined, api.Renewed, api.Refused, api.Failed} {
		m.issued[r] = tag("result", string(r)).Counter("certificates_total")
	}
	return m
}

func (m *metrics) handler() http.Handler {
	return promhttp.HandlerFor(m.registry, promhttp.HandlerOpts{MaxRequestsInFlight: 4, Timeout: 10 * time.Second})
}

// The hooks of the parts. Their arguments are closed sets.

func (m *metrics) onAnswered(policies, accepted bool) { m.answers[[2]bool{policies, accepted}].Inc(1) }
func (m *metrics) onRefused(cause xds.Cause)          { m.refused[cause].Inc(1) }
func (m *metrics) onIssued(r api.Result)              { m.issued[r].Inc(1) }

func (m *metrics) gauges(c *ControlPlane) {
	sidecars, others := c.xds.Streams()
	m.streams[0].Update(float64(sidecars))
	m.streams[1].Update(float64(others))
	m.rootExpires.Update(time.Until(c.authority.Expires()).Seconds())
	if !c.takeRecount() {
		return
	}
	st, states := c.status(), map[api.State]int{}
	for _, s := range st.Sidecars {
		states[s.State]++
	}
	for state, g := range m.sidecars {
		g.Update(float64(states[state]))
	}
	connected := 0
	for _, r := range st.Replicas {
		if r.Connected {
			connected++
		}
	}
	m.replicas.Update(float64(connected))
}

// takeRecount reports whether what the gauges count may be another since it was last called.
func (c *ControlPlane) takeRecount() bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	recount := c.recount
	c.recount = false
	return recount
}
