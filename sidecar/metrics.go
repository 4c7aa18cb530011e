package sidecar

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

	"txmesh/interceptor/proxy"
	"txmesh/interceptor/redirect"
	"txmesh/policies"
	"txmesh/sidecar/identity"
	"txmesh/sidecar/xds"
	"txmesh/txn"
)

// metric is one row of the table of metrics. Tags are closed sets.
type metric struct {
	name string
	kind string // counter, gauge or histogram
	tags []string
	doc  string
}

// metricTable lists all metrics under their names in Prometheus. docs/reference/metrics.md is printed from it.
func metricTable() []metric {
	table := []metric{
		{"txmesh_build_info", "gauge", []string{"go", "version"}, "always 1"},
		{"txmesh_oldest_non_terminal_seconds", "gauge", nil, "age of the oldest transaction that has not ended; a stuck one answers 2xx, only this shows it"},
		{"txmesh_oldest_orphan_seconds", "gauge", nil, "how long the oldest barrier row is overdue whose owner does not answer"},
		{"txmesh_orphans", "gauge", nil, "overdue barrier rows whose owner does not answer"},
		{"txmesh_open_transactions", "gauge", nil, "transactions that have not ended"},
		{"txmesh_accepting", "gauge", nil, "1 while the journal takes new transactions, 0 while it lacks space or is broken"},
		{"txmesh_peers_silent", "gauge", nil, "configured peers that did not answer when asked last"},
		{"txmesh_transactions_begun_total", "counter", []string{"mode"}, "transactions begun"},
		{"txmesh_decisions_total", "counter", []string{"decision"}, "transactions decided: commit or abort"},
		{"txmesh_transactions_total", "counter", []string{"mode", "end"}, "transactions ended: committed, aborted or stopped by an operator"},
		{"txmesh_transaction_age_seconds", "histogram", []string{"end"}, "from begin to end"},
		{"txmesh_halted_total", "counter", []string{"op"}, "ops that began to wait for an operator"},
		{"txmesh_calls_total", "counter", []string{"op", "outcome"}, "calls made by the engine"},
		{"txmesh_call_seconds", "histogram", []string{"op"}, "their durations"},
		{"txmesh_appends_total", "counter", nil, "appends to the journal"},
		{"txmesh_append_entries_total", "counter", nil, "records in them"},
		{"txmesh_append_errors_total", "counter", nil, "appends that failed"},
		{"txmesh_append_seconds", "histogram", []string{"sync"}, "their durations, with and without sync"},
		{"txmesh_requests_total", "counter", []string{"direction", "tagged"}, "requests that passed the Gate, by whether they belong to a transaction or were answered by the Gate"},
		{"txmesh_refused_total", "counter", []string{"code"}, "requests, connections and exchanges that a port of the data path ended by itself, by the code of the error; TXM0210 counts the other ports as well. See docs/guide/hardening.md"},
		{"txmesh_redirected_total", "counter", []string{"direction", "way"}, "connections that transparent mode or a port of protocol auto took, by what became of them: http (to the Gate), raw (no policy names the port), tls, other or server_first (passed raw after a look), loop, unknown or full (refused), gone (ended first)"},
		{"txmesh_raw_connections", "gauge", []string{"direction"}, "connections that pass as bytes"},
		{"txmesh_raw_connections_total", "counter", []string{"direction", "end"}, "those that ended: closed, reset, idle (too long), unreachable (the endpoint), full (too many), cut (by the end of the sidecar)"},
		{"txmesh_raw_bytes_total", "counter", []string{"direction", "way"}, "their bytes, counted at their end: spliced (stayed in the kernel) or copied"},
		{"txmesh_context_lost_total", "counter", nil, "calls that a rule names and that had no context while transactions were in flight"},
		{"txmesh_context_ambiguous_total", "counter", nil, "calls that could belong to more than one transaction"},
		{"txmesh_context_forged_total", "counter", nil, "contexts without a valid signature"},
		{"txmesh_context_carrier_overflow_total", "counter", nil, "requests whose baggage had no room for the context"},
		{"txmesh_barrier_verdicts_total", "counter", []string{"verdict"}, "what the barrier said"},
		{"txmesh_shadowed_total", "counter", nil, "requests that a rule in mode Shadow would have taken"},
		{"txmesh_journals_adopted_total", "counter", nil, "journals of other sidecars that this one has taken over in a shared store"},
		{"txmesh_journals_fenced_total", "counter", nil, "journals that another sidecar has taken from this one"},
		{"txmesh_peer_refused_total", "counter", []string{"cause"}, "messages of peers that were not believed: requests that were unsigned, large, forged, stale or replayed, and either side of a connection that named another service than its certificate (mismatch)"},
		{"txmesh_denied_total", "counter", []string{"act", "reason"}, "what callers were not allowed to do: not_authorised by an access policy, no_certificate, or no token of the API"},
		{"txmesh_tls_refused_total", "counter", []string{"by", "reason"}, "TLS handshakes of the mesh that were ended, by this side (self) or the other"},
		{"txmesh_certificates_total", "counter", []string{"result"}, "certificates put in force (ok), and tries that brought none (failed)"},
		{"txmesh_certificate_seconds", "gauge", nil, "time until this sidecar's certificate expires; 0: it has none"},
		{"txmesh_xds_connected", "gauge", nil, "1 while the control plane is connected and has told everything; 0 as well without a control plane"},
		{"txmesh_xds_stale", "gauge", nil, "1 while there is a control plane and what is in force may be older than what it wants"},
		{"txmesh_xds_last_ack_seconds", "gauge", []string{"type"}, "how long ago configuration of this type was last accepted: runtime has the heartbeat and is never older than some seconds, the others change when they change"},
		{"txmesh_xds_nacks_total", "counter", []string{"type"}, "configuration of the control plane that was refused; the last good one stays"},
		{"txmesh_policy_reloads_total", "counter", nil, "policy sets taken over after a change"},
		{"txmesh_policy_reload_errors_total", "counter", nil, "changed policies that were refused; the last good set stays"},
	}
	return append(table, trafficMetrics()...)
}

// MetricsReference returns docs/reference/metrics.md.
func MetricsReference() string {
	var b strings.Builder
	b.WriteString("# Metrics of txmesh-sidecar\n\nServed at `/metrics` of the API port, in the format of Prometheus. Beside these there are the usual\n`go_*` and `process_*`. Printed from the table in sidecar/metrics.go by\n`go test ./sidecar -run Reference -rewrite`.\n\n| metric | kind | tags | meaning |\n|---|---|---|---|\n")
	for _, m := range metricTable() {
		b.WriteString("| `" + m.name + "` | " + m.kind + " | " + strings.Join(m.tags, ", ") + " | " + m.doc + " |\n")
	}
	b.WriteString("\nWatch `txmesh_oldest_non_terminal_seconds` and `txmesh_oldest_orphan_seconds` first: both are 0 when all is well, and\nnothing else shows a transaction that hangs. Values lie at most a second behind; the `_sum` of a histogram is made from the\nbounds of its buckets and is therefore rounded up.\n")
	return b.String()
}

// ends is how many phases end a transaction; they are the last ones.
const ends = int(txn.Ceased-txn.Committed) + 1

func endWord(i int) string { return (txn.Committed + txn.Phase(i)).String() }

// metrics holds every series from the start, so that a rate is seen from the first event on.
type metrics struct {
	registry *prometheus.Registry
	scope    tally.Scope
	closer   io.Closer

	oldest, orphanAge, orphans, open, accepting, silent tally.Gauge

	begun                             map[txn.Mode]tally.Counter
	ended                             map[txn.Mode][ends]tally.Counter
	decisions                         [2]tally.Counter
	age                               [ends]tally.Histogram
	calls                             [txn.NumOps][txn.Unknown + 1]tally.Counter
	callTime                          [txn.NumOps]tally.Histogram
	halted                            [txn.NumOps]tally.Counter
	appends, entries, appendErrors    tally.Counter
	appendTime                        [2]tally.Histogram
	requests                          [2][2]tally.Counter // direction, tagged
	lost, ambiguous, forged, overflow tally.Counter
	shadowed, reloads, reloadErrors   tally.Counter
	adopted, fenced                   tally.Counter
	verdicts, refused, xdsNacks       map[string]tally.Counter
	refusedCodes                      map[string]tally.Counter
	xdsConnected, xdsStale            tally.Gauge
	xdsLastAck                        map[string]tally.Gauge

	denials      map[policies.Act]map[string]tally.Counter
	raw          [2]rawMetrics                      // by direction
	redirected   [2][redirect.NumWays]tally.Counter // direction, way
	certificate  tally.Gauge
	certificates [2]tally.Counter
	tlsRefused   map[identity.By]map[identity.Reason]tally.Counter
}

// reportEvery is how far what is scraped may lie behind.
const reportEvery = time.Second

// asWritten leaves the values of tags alone: a/b-c and a-b/c are two services. Prometheus takes any text.
func asWritten() *tally.SanitizeOptions {
	o := tallyprom.DefaultSanitizerOpts
	o.ValueCharacters = tally.ValidCharacters{Ranges: []tally.SanitizeRange{{'!', '~'}}}
	return &o
}

func newMetrics(version string) *metrics {
	registry := prometheus.NewRegistry()
	registry.MustRegister(collectors.NewGoCollector(), collectors.NewProcessCollector(collectors.ProcessCollectorOpts{}))
	reporter := tallyprom.NewReporter(tallyprom.Options{Registerer: registry})
	scope, closer := tally.NewRootScope(tally.ScopeOptions{Prefix: "txmesh", Separator: "_", CachedReporter: reporter,
		SanitizeOptions: asWritten(), OmitCardinalityMetrics: true}, reportEvery)
	m := &metrics{registry: registry, scope: scope, closer: closer,
		oldest: scope.Gauge("oldest_non_terminal_seconds"), orphanAge: scope.Gauge("oldest_orphan_seconds"),
		orphans: scope.Gauge("orphans"), open: scope.Gauge("open_transactions"), accepting: scope.Gauge("accepting"),
		silent: scope.Gauge("peers_silent"), appends: scope.Counter("appends_total"),
		entries: scope.Counter("append_entries_total"), appendErrors: scope.Counter("append_errors_total"),
		lost: scope.Counter("context_lost_total"), ambiguous: scope.Counter("context_ambiguous_total"),
		forged: scope.Counter("context_forged_total"), overflow: scope.Counter("context_carrier_overflow_total"),
		shadowed: scope.Counter("shadowed_total"), reloads: scope.Counter("policy_reloads_total"),
		reloadErrors: scope.Counter("policy_reload_errors_total"),
		adopted:      scope.Counter("journals_adopted_total"), fenced: scope.Counter("journals_fenced_total"),
		xdsConnected: scope.Gauge("xds_connected"), xdsStale: scope.Gauge("xds_stale"),
		xdsLastAck: map[string]tally.Gauge{}, xdsNacks: map[string]tally.Counter{},
		verdicts: map[string]tally.Counter{}, refused: map[string]tally.Counter{}, refusedCodes: map[string]tally.Counter{},
		denials:     map[policies.Act]map[string]tally.Counter{},
		certificate: scope.Gauge("certificate_seconds"), tlsRefused: map[identity.By]map[identity.Reason]tally.Counter{},
		begun: map[txn.Mode]tally.Counter{}, ended: map[txn.Mode][ends]tally.Counter{}}
	scope.Tagged(map[string]string{"version": version, "go": runtime.Version()}).Gauge("build_info").Update(1)
	m.tagged()
	return m
}

func (m *metrics) tagged() {
	tag := func(kv ...string) tally.Scope {
		tags := make(map[string]string)
		for i := 0; i < len(kv); i += 2 {
			tags[kv[i]] = kv[i+1]
		}
		return m.scope.Tagged(tags)
	}
	ages := tally.MustMakeExponentialDurationBuckets(10*time.Millisecond, 4, 10)
	times := tally.MustMakeExponentialDurationBuckets(250*time.Microsecond, 4, 9)
	for mode := range txn.Modes() {
		m.begun[mode] = tag("mode", string(mode)).Counter("transactions_begun_total")
		var ended [ends]tally.Counter
		for i := range ended {
			ended[i] = tag("mode", string(mode), "end", endWord(i)).Counter("transactions_total")
		}
		m.ended[mode] = ended
	}
	for i := range m.age {
		m.age[i] = tag("end", endWord(i)).Histogram("transaction_age_seconds", ages)
	}
	for i := range m.decisions {
		m.decisions[i] = tag("decision", []string{"abort", "commit"}[i]).Counter("decisions_total")
		m.appendTime[i] = tag("sync", []string{"false", "true"}[i]).Histogram("append_seconds", times)
		for j, direction := range []string{"inbound", "outbound"} {
			m.requests[j][i] = tag("direction", direction, "tagged", []string{"false", "true"}[i]).Counter("requests_total")
		}
	}
	for op := range m.calls {
		m.halted[op] = tag("op", txn.Op(op).String()).Counter("halted_total")
		m.callTime[op] = tag("op", txn.Op(op).String()).Histogram("call_seconds", times)
		for out := range m.calls[op] {
			m.calls[op][out] = tag("op", txn.Op(op).String(), "outcome", txn.Outcome(out).String()).Counter("calls_total")
		}
	}
	for _, v := range []string{"run", "replay", "empty", "absent", "refuse", "early", "resolve"} {
		m.verdicts[v] = tag("verdict", v).Counter("barrier_verdicts_total")
	}
	for _, kind := range xds.Kinds() {
		m.xdsLastAck[kind] = tag("type", kind).Gauge("xds_last_ack_seconds")
		m.xdsNacks[kind] = tag("type", kind).Counter("xds_nacks_total")
	}
	for _, c := range proxy.Codes() {
		m.refusedCodes[c.Code] = tag("code", c.Code).Counter("refused_total")
	}
	for _, c := range []string{"unsigned", "large", "forged", "stale", "replayed", "mismatch"} {
		m.refused[c] = tag("cause", c).Counter("peer_refused_total")
	}
	m.security(tag)
	m.connections(tag)
}

// security makes the series of certificates and of what callers may not do.
func (m *metrics) security(tag func(kv ...string) tally.Scope) {
	for _, act := range policies.Acts() {
		m.denials[act] = map[string]tally.Counter{}
		for _, r := range []string{"not_authorised", "no_certificate", "no_token"} {
			m.denials[act][r] = tag("act", act.String(), "reason", r).Counter("denied_total")
		}
	}
	for i, r := range []string{"failed", "ok"} {
		m.certificates[i] = tag("result", r).Counter("certificates_total")
	}
	for _, by := range []identity.By{identity.Self, identity.Other} {
		m.tlsRefused[by] = map[identity.Reason]tally.Counter{}
		for _, r := range identity.Reasons() {
			m.tlsRefused[by][r] = tag("by", string(by), "reason", string(r)).Counter("tls_refused_total")
		}
	}
}

func (m *metrics) handler() http.Handler {
	return promhttp.HandlerFor(m.registry, promhttp.HandlerOpts{MaxRequestsInFlight: 4, Timeout: 10 * time.Second})
}

// The hooks of the parts.

func (m *metrics) onBegun(mode txn.Mode) {
	if c, ok := m.begun[mode]; ok {
		c.Inc(1)
	}
}

func (m *metrics) onDecided(_ txn.Mode, commit bool) { m.decisions[index(commit)].Inc(1) }

func (m *metrics) onHalted(_ txn.Mode, op txn.Op) { m.halted[op].Inc(1) }

func (m *metrics) onFinished(mode txn.Mode, end txn.Phase, age time.Duration) {
	i := end - txn.Committed
	m.age[i].RecordDuration(age)
	if c, ok := m.ended[mode]; ok {
		c[i].Inc(1)
	}
}

func (m *metrics) onCalled(op txn.Op, out txn.Outcome, took time.Duration) {
	m.calls[op][min(out, txn.Unknown)].Inc(1)
	m.callTime[op].RecordDuration(took)
}

func (m *metrics) onAppended(entries int, sync bool, took time.Duration, err error) {
	m.appends.Inc(1)
	m.entries.Inc(int64(entries))
	m.appendTime[index(sync)].RecordDuration(took)
	if err != nil {
		m.appendErrors.Inc(1)
	}
}

func (m *metrics) onVerdict(v string) {
	if c, ok := m.verdicts[v]; ok {
		c.Inc(1)
	}
}

func (m *metrics) onRefused(cause string) {
	if c, ok := m.refused[cause]; ok {
		c.Inc(1)
	}
}

// onRefusedCode counts by the code of an error of the data path.
func (m *metrics) onRefusedCode(code string) {
	if c, ok := m.refusedCodes[code]; ok {
		c.Inc(1)
	}
}

// onDenied counts what an access policy does not allow.
func (m *metrics) onDenied(act policies.Act, caller string) {
	if caller == "" {
		m.denied(act, "no_certificate")
		return
	}
	m.denied(act, "not_authorised")
}

func (m *metrics) denied(act policies.Act, reason string) { m.denials[act][reason].Inc(1) }

func (m *metrics) onTLSRefused(by identity.By, r identity.Reason) { m.tlsRefused[by][r].Inc(1) }

func (m *metrics) onRenewed(ok bool)    { m.certificates[index(ok)].Inc(1) }
func (m *metrics) onNacked(kind string) { m.xdsNacks[kind].Inc(1) }

func index(yes bool) int {
	if yes {
		return 1
	}
	return 0
}
