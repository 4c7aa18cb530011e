package dtm

import (
	"io"
	"net/http"
	"runtime/debug"
	"strings"
	"sync"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/promhttp"
	"github.com/uber-go/tally/v4"
	tallyprom "github.com/uber-go/tally/v4/prometheus"

	"txmesh/txn"
)

// metrics are those of DTM, under its names, for the dashboards that people have. Tags are closed sets: the api is a name of
// the list of endpoints, never a query.
type metrics struct {
	registry *prometheus.Registry
	scope    tally.Scope
	closer   io.Closer

	mu   sync.RWMutex // guards apis and ops
	apis map[apiKey]*apiMetrics
	ops  map[opKey]tally.Counter
}

// apiKey and opKey are tags; making a series costs more than counting, so it is kept.
type apiKey struct {
	transport, api string
	ok             bool
}

type apiMetrics struct {
	count tally.Counter
	time  tally.Histogram
}

type opKey struct {
	model string
	op    txn.Op
	ok    bool
}

// kept returns what is kept under k, made by mk when it is asked for first.
func kept[K comparable, V any](mu *sync.RWMutex, m map[K]V, k K, mk func() V) V {
	mu.RLock()
	v, ok := m[k]
	mu.RUnlock()
	if ok {
		return v
	}
	mu.Lock()
	defer mu.Unlock()
	if v, ok = m[k]; !ok {
		v = mk()
		m[k] = v
	}
	return v
}

func word(ok bool) string {
	if ok {
		return "ok"
	}
	return "fail"
}

func newMetrics() *metrics {
	registry := prometheus.NewRegistry()
	reporter := tallyprom.NewReporter(tallyprom.Options{Registerer: registry})
	scope, closer := tally.NewRootScope(tally.ScopeOptions{Prefix: "dtm", Separator: "_", CachedReporter: reporter,
		SanitizeOptions: &tallyprom.DefaultSanitizerOpts, OmitCardinalityMetrics: true}, time.Second)
	scope.Tagged(map[string]string{"gin_version": "", "grpc_version": grpcVersion()}).Gauge("server_info").Update(1)
	return &metrics{registry: registry, scope: scope, closer: closer, apis: map[apiKey]*apiMetrics{}, ops: map[opKey]tally.Counter{}}
}

func grpcVersion() string {
	info, ok := debug.ReadBuildInfo()
	if !ok {
		return ""
	}
	for _, m := range info.Deps {
		if m.Path == "google.golang.org/grpc" {
			return strings.TrimPrefix(m.Version, "v")
		}
	}
	return ""
}

func buckets() tally.Buckets { return tally.MustMakeExponentialDurationBuckets(time.Millisecond, 4, 8) }

// served counts one request to the door.
func (m *metrics) served(transport, api string, ok bool, took time.Duration) {
	a := kept(&m.mu, m.apis, apiKey{transport, api, ok}, func() *apiMetrics {
		return &apiMetrics{
			m.scope.Tagged(map[string]string{"type": transport, "api": api, "status": word(ok)}).Counter("server_process_total"),
			m.scope.Tagged(map[string]string{"type": transport, "api": api}).Histogram("server_response_duration", buckets())}
	})
	a.count.Inc(1)
	a.time.RecordDuration(took)
}

// branch counts one call of the engine.
func (m *metrics) branch(model string, op txn.Op, out txn.Outcome) {
	ok := out == txn.OK
	kept(&m.mu, m.ops, opKey{model, op, ok}, func() tally.Counter {
		return m.scope.Tagged(map[string]string{"model": model, "branchid": "", "branchtype": wordOf(model, op), "status": word(ok)}).
			Counter("branch_process_total")
	}).Inc(1)
}

// Finished counts a transaction that has ended.
func (s *Service) Finished(mode txn.Mode, end txn.Phase, age time.Duration) {
	m, model, ok := s.metrics, typeOf(mode), end == txn.Committed
	a := kept(&m.mu, m.apis, apiKey{"", model, ok}, func() *apiMetrics {
		return &apiMetrics{
			m.scope.Tagged(map[string]string{"model": model, "status": word(ok)}).Counter("transaction_process_total"),
			m.scope.Tagged(map[string]string{"model": model}).Histogram("transaction_handled_duration", buckets())}
	})
	a.count.Inc(1)
	a.time.RecordDuration(age)
}

func (m *metrics) handler() http.Handler {
	return promhttp.HandlerFor(m.registry, promhttp.HandlerOpts{})
}
