package sidecar

import (
	"strings"

	"txmesh/interceptor/traffic"
)

// traffic makes the series of one destination. Destinations are named by the configuration and by policies, so that
// there are few.
func (m *metrics) traffic(destination string) *traffic.Observer {
	tag := func(k, v string) map[string]string { return map[string]string{"destination": destination, k: v} }
	states := traffic.States()
	picks := make([]func(int64), len(states))
	for i, s := range states {
		picks[i] = m.scope.Tagged(tag("endpoint", s.String())).Counter("picks_total").Inc
	}
	var retries, refused [2]func(int64)
	for i := range retries {
		retries[i] = m.scope.Tagged(tag("granted", []string{"false", "true"}[i])).Counter("retries_total").Inc
		refused[i] = m.scope.Tagged(tag("op", []string{"false", "true"}[i])).Counter("refused_by_limit_total").Inc
	}
	alone := m.scope.Tagged(map[string]string{"destination": destination})
	ejections, pending := alone.Counter("ejections_total"), alone.Gauge("pending_requests")
	return &traffic.Observer{
		Picked:  func(s traffic.State) { picks[s](1) },
		Ejected: func() { ejections.Inc(1) },
		Retried: func(granted bool) { retries[index(granted)](1) },
		Refused: func(first bool) { refused[index(first)](1) },
		Waiting: func(n int) { pending.Update(float64(n)) },
	}
}

// trafficMetrics are its rows of the table.
func trafficMetrics() []metric {
	var states []string
	for _, s := range traffic.States() {
		states = append(states, s.String())
	}
	return []metric{
		{"txmesh_picks_total", "counter", []string{"destination", "endpoint"}, "endpoints chosen, by how they were then: " + strings.Join(states, ", ") + "; trial is the first after an ejection, panic one of a destination whose endpoints are all ejected. The destination is a service as namespace/name, the host of a policy, or application: the own one"},
		{"txmesh_ejections_total", "counter", []string{"destination"}, "endpoints left out for a while by a circuit breaker"},
		{"txmesh_retries_total", "counter", []string{"destination", "granted"}, "requests sent again at another endpoint, and those that the budget did not allow (granted=false)"},
		{"txmesh_pending_requests", "gauge", []string{"destination"}, "requests that wait for their turn"},
		{"txmesh_refused_by_limit_total", "counter", []string{"destination", "op"}, "requests answered 503 because too many ran and waited; op=true: ops of transactions, which go first"},
	}
}
