package dtm

import (
	"io"
	"net/http"
	"runtime/debug"
	"strings"
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
}

func newMetrics() *metrics {
	registry := prometheus.NewRegistry()
	reporter := tallyprom.NewReporter(tallyprom.Options{Registerer: registry})
	scope, closer := tally.NewRootScope(tally.ScopeOptions{Prefix: "dtm", Separator: "_", CachedReporter: reporter,
		SanitizeOptions: &tallyprom.DefaultSanitizerOpts, OmitCardinalityMetrics: true}, time.Second)
	scope.Tagged(map[string]string{"gin_version": "", "grpc_version": grpcVersion()}).Gauge("server_info").Update(1)
	return &metrics{registry: registry, scope: scope, closer: closer}
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
	word := "ok"
	if !ok {
		word = "fail"
	}
	m.scope.Tagged(map[string]string{"type": transport, "api": api, "status": word}).Counter("server_process_total").Inc(1)
	m.scope.Tagged(map[string]string{"type": transport, "api": api}).Histogram("server_response_duration", buckets()).RecordDuration(took)
}

// branch counts one call of the engine.
func (m *metrics) branch(model string, op txn.Op, out txn.Outcome) {
	word := "fail"
	if out == txn.OK {
		word = "ok"
	}
	m.scope.Tagged(map[string]string{"model": model, "branchid": "", "branchtype": wordOf(model, op), "status": word}).
		Counter("branch_process_total").Inc(1)
}

// Finished counts a transaction that has ended.
func (s *Service) Finished(mode txn.Mode, end txn.Phase, age time.Duration) {
	word := "ok"
	if end != txn.Committed {
		word = "fail"
	}
	m, model := s.metrics, typeOf(mode)
	m.scope.Tagged(map[string]string{"model": model, "status": word}).Counter("transaction_process_total").Inc(1)
	m.scope.Tagged(map[string]string{"model": model}).Histogram("transaction_handled_duration", buckets()).RecordDuration(age)
}

func (m *metrics) handler() http.Handler {
	return promhttp.HandlerFor(m.registry, promhttp.HandlerOpts{})
}
