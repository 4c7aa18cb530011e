package policies

import (
	"encoding/json"
	"fmt"
	"slices"
	"strconv"
	"time"
)

const (
	connectionsMost = 1_000_000
	attemptsMost    = 10
)

// trafficReader compiles one TrafficPolicy.
type trafficReader struct {
	policyReader
	t       *Traffic
	roots   map[string]*branch[*TrafficRoute]
	retried bool // spec has retries
}

// readTraffic returns nil where the destination cannot be known.
func (c *compiler) readTraffic(d *document, given grants) *Traffic {
	f := c.fields(d.spec, d.specAt, "spec", "to", "host", "timeouts", "connections", "circuitBreaker", "retries", "loadBalancing", "routes")
	if f.n == nil {
		return nil
	}
	r := &trafficReader{policyReader: policyReader{compiler: c, d: d, grants: given, names: map[string]pos{}},
		t: &Traffic{Policy: d.namespace + "/" + d.name, at: d.at}}
	t := r.t
	t.rank = precedence{created: d.created, name: t.Policy}
	r.destination(f)
	timeouts := r.fields(f.get("timeouts"), f.place("timeouts"), "spec.timeouts", "connect", "request", "idle")
	t.Connect, t.Idle = timeouts.duration("connect", connectDefault), timeouts.duration("idle", 0)
	t.rest.Request = timeouts.duration("request", 0)
	r.connections(f)
	r.breaker(f)
	t.Balance = Balance(f.choice("loadBalancing", 0, "LeastOutstanding", "RoundRobin"))
	r.retries(f)
	for i, n := range f.list("routes") {
		r.route(n, fmt.Sprintf("routes[%d]", i))
	}
	t.routes = r.roots[""]
	if t.Service == "" && t.Host == "" {
		return nil
	}
	return t
}

// destination reads exactly one of to and host.
func (r *trafficReader) destination(f fields) {
	switch {
	case f.has("to") == f.has("host"):
		r.fault(f.place("host"), codeMatch, "spec has to and host, or neither; give the service that is called, or the host of a third party")
	case f.has("to"):
		r.t.Service = r.service(f, "to")
	default:
		r.t.Host = r.host(f)
	}
}

func (r *trafficReader) connections(f fields) {
	g := r.fields(f.get("connections"), f.place("connections"), "spec.connections", "max", "maxPending", "maxRequests")
	c := &r.t.Connections
	c.Max, c.MaxRequests = g.whole("max", 0, 1, connectionsMost), g.whole("maxRequests", 0, 1, connectionsMost)
	c.MaxPending = g.whole("maxPending", 100, 0, connectionsMost)
	if g.has("maxPending") && c.Max == 0 && c.MaxRequests == 0 {
		r.fault(g.place("maxPending"), codeMissing, "%s without max or maxRequests: nothing would ever wait", g.path("maxPending"))
	}
	if c.Max == 0 && c.MaxRequests == 0 {
		c.MaxPending = 0
	}
}

func (r *trafficReader) breaker(f fields) {
	if !f.has("circuitBreaker") {
		return
	}
	g := r.fields(f.get("circuitBreaker"), f.place("circuitBreaker"), "spec.circuitBreaker", "consecutiveErrors", "interval", "ejectFor", "maxEjectedPercent")
	r.t.Breaker = &Breaker{Errors: g.whole("consecutiveErrors", 5, 1, 1000), Interval: g.duration("interval", 10*time.Second),
		EjectFor: g.duration("ejectFor", 30*time.Second), MaxEjected: g.whole("maxEjectedPercent", 50, 1, 100)}
}

// retries reads what holds for all routes. Without the key an unreachable endpoint is still passed over.
func (r *trafficReader) retries(f fields) {
	none := NoTraffic()
	r.t.rest.Retries, r.t.Budget = none.rest.Retries, none.Budget
	if r.retried = f.has("retries"); !r.retried {
		return
	}
	g := r.fields(f.get("retries"), f.place("retries"), "spec.retries", "attempts", "on", "perTryTimeout", "budget")
	r.t.rest.Retries = r.attempts(g, Retries{Attempts: 2, On: ConnectFailure | NotSent | Reset}, r.t.rest.Request)
	b := r.fields(g.get("budget"), g.place("budget"), "spec.retries.budget", "percent", "minPerSecond")
	r.t.Budget = Budget{Percent: b.whole("percent", 20, 0, 100), MinPerSecond: b.whole("minPerSecond", 3, 0, connectionsMost)}
}

func (r *trafficReader) attempts(g fields, def Retries, request time.Duration) Retries {
	out := Retries{Attempts: g.whole("attempts", def.Attempts, 0, attemptsMost), On: def.On, PerTry: g.duration("perTryTimeout", def.PerTry)}
	if g.has("on") {
		out.On = 0
		for _, n := range g.strings("on") {
			i := slices.Index(retryWords(), n.text())
			if i < 0 {
				r.fault(n.at, codeValue, "%s is %q%s", g.path("on"), n.text(), choices(n.text(), retryWords()))
				continue
			}
			out.On |= 1 << i
		}
	}
	if g.has("perTryTimeout") && request > 0 && out.PerTry >= request {
		r.fault(g.place("perTryTimeout"), codeValue, "%s is %v, but the whole request may take only %v", g.path("perTryTimeout"), out.PerTry, request)
	}
	if out.On&TimedOut != 0 && out.PerTry == 0 {
		r.fault(g.place("on"), codeMissing, "%s has timeout, but there is no perTryTimeout", g.path("on"))
	}
	return out
}

func (r *trafficReader) route(n *node, what string) {
	f := r.fields(n, n.at, what, "name", "match", "timeouts", "retries")
	if f.n == nil {
		return
	}
	route := &TrafficRoute{Name: r.ruleName(f)}
	if !f.has("match") {
		r.fault(f.at, codeMissing, "%s has no match", what)
	}
	g := r.fields(f.get("match"), f.place("match"), f.path("match"), "method", "path")
	m := match{method: r.method(g, "method", ""), pattern: &pattern{any: true}}
	if p := g.text("path"); p != nil {
		parsed, err := parsePattern(p.text())
		if err != nil {
			r.fault(p.at, codePattern, "%s: %v", g.what, err)
			return
		}
		m.pattern = parsed
	}
	m.weight = m.pattern.weight()
	timeouts := r.fields(f.get("timeouts"), f.place("timeouts"), f.path("timeouts"), "request")
	route.Request = timeouts.duration("request", r.t.rest.Request)
	def := r.t.rest.Retries
	if f.has("retries") && !r.retried {
		r.fault(f.place("retries"), codeMissing, "%s without spec.retries, which has the budget", f.path("retries"))
	}
	retries := r.fields(f.get("retries"), f.place("retries"), f.path("retries"), "attempts", "on", "perTryTimeout")
	route.Retries = r.attempts(retries, def, route.Request)
	r.roots = plant(r.roots, "", candidate[*TrafficRoute]{rule: route, match: m, rank: precedence{name: route.Name}})
}

// whole reads a whole number within bounds, def when it is not given.
func (f fields) whole(key string, def, least, most int) int {
	n := f.get(key)
	if n == nil {
		return def
	}
	number, ok := n.scalar.(json.Number)
	v, err := strconv.Atoi(string(number))
	switch {
	case n.kind != scalar || !ok || err != nil:
		f.r.fault(n.at, codeType, "%s is %s, not a whole number", f.path(key), shapeName(n))
	case v < least || v > most:
		f.r.fault(n.at, codeValue, "%s is %d; allowed: %d to %d", f.path(key), v, least, most)
	default:
		return v
	}
	return def
}

func durationOr(d time.Duration, none string) string {
	if d == 0 {
		return none
	}
	return d.String()
}
