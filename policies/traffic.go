package policies

import (
	"fmt"
	"math"
	"slices"
	"strings"
	"time"
)

// Traffic is what a TrafficPolicy says of one destination, with every default filled in. It never changes and is safe
// for many goroutines.
type Traffic struct {
	Policy      string // namespace/name; empty: nobody wrote one
	Service     string // namespace/name; empty: by Host
	Host        string
	Connect     time.Duration // to get a connection, the time in the queue included
	Idle        time.Duration // of a connection that is kept; 0: that of the proxy
	Connections Connections
	Breaker     *Breaker // nil: no endpoint is ejected
	Balance     Balance
	Budget      Budget // of the repeats on all routes

	routes *branch[*TrafficRoute]
	rest   TrafficRoute // of what no route matches
	rank   precedence
	at     pos
}

// Connections bounds what a destination is given at a time. 0 is no limit.
type Connections struct {
	Max         int // connections to one endpoint
	MaxRequests int // requests to all endpoints
	MaxPending  int // requests that wait where one of the two is reached; 0: none may
}

// Breaker says when an endpoint is left out for a while.
type Breaker struct {
	Errors     int           // so many failures, one after the other
	Interval   time.Duration // with less than this between two of them
	EjectFor   time.Duration // doubled each time that it fails again on its return, up to EjectGrowth times
	MaxEjected int           // percent of the endpoints
}

// EjectGrowth is how many times its first length an ejection may become.
const EjectGrowth = 16

// Balance is how an endpoint is chosen.
type Balance uint8

// LeastOutstanding takes the one of two that has fewer requests running, RoundRobin each in its turn.
const (
	LeastOutstanding Balance = iota
	RoundRobin
)

// String is the word used in documents.
func (b Balance) String() string { return word(b, "LeastOutstanding", "RoundRobin") }

// Budget bounds the repeats of a destination: a share of its requests, and some a second beside them.
type Budget struct {
	Percent      int
	MinPerSecond int
}

// TrafficRoute is what holds for some requests of a destination.
type TrafficRoute struct {
	Name    string        // empty: what no route of the policy matches
	Request time.Duration // of a whole exchange; 0: no limit of its own
	Retries Retries
}

// Retries says which requests are sent again, of those that may be.
type Retries struct {
	Attempts int // repeats at most
	On       RetryOn
	PerTry   time.Duration // to the head of an answer; 0: no limit of its own
}

// RetryOn is a set of reasons for a repeat.
type RetryOn uint8

// After ConnectFailure every request may be repeated: it had no effect. After the others only what is idempotent may be.
// NotSent is among those: the header that says it can have come through an application, from a sidecar behind it.
const (
	ConnectFailure RetryOn = 1 << iota // no connection, or it took no byte of the request
	NotSent                            // 503 of a sidecar, which says that it has forwarded nothing
	Reset                              // the connection broke before an answer began
	GatewayError                       // 502, 503 or 504
	TimedOut                           // no answer within perTryTimeout
)

func retryWords() []string {
	return []string{"connect-failure", "not-sent", "reset", "gateway-error", "timeout"}
}

// String lists the words used in documents.
func (r RetryOn) String() string {
	var out []string
	for i, w := range retryWords() {
		if r&(1<<i) != 0 {
			out = append(out, w)
		}
	}
	return strings.Join(out, ", ")
}

// Harmless reports whether a request certainly had no effect where this was the reason to repeat it.
func (r RetryOn) Harmless() bool { return r == ConnectFailure }

// Idempotent reports whether a method can be repeated although it may have taken effect (RFC 9110, 9.2.2).
func Idempotent(method string) bool {
	switch method {
	case "GET", "HEAD", "OPTIONS", "TRACE", "PUT", "DELETE":
		return true
	}
	return false
}

const connectDefault = 5 * time.Second

// EachEndpoint as Attempts tries each of the other endpoints once.
const EachEndpoint = math.MaxInt32

// NoTraffic is what holds for a destination that no TrafficPolicy names: the least busy of two endpoints, and each of
// the others once where no connection can be made. The caller must not change it.
func NoTraffic() *Traffic {
	return &Traffic{Connect: connectDefault, Budget: Budget{Percent: 100, MinPerSecond: math.MaxInt32},
		rest: TrafficRoute{Retries: Retries{Attempts: EachEndpoint, On: ConnectFailure}}}
}

// Traffic returns what governs a destination, that of its service before that of its host; nil: no policy does. The
// policy of the service's own namespace goes first, then the oldest document, then the first name.
func (s *Set) Traffic(service, host string) *Traffic {
	if t := s.traffic[service]; t != nil {
		return t
	}
	t, _ := rootOf(s.trafficHosts, host)
	return t
}

// TrafficPolicies counts the destinations that are governed.
func (s *Set) TrafficPolicies() int { return len(s.traffic) + len(s.trafficHosts) }

// Route returns what holds for one request. It does not allocate.
func (t *Traffic) Route(method, path string) *TrafficRoute {
	if t.routes != nil {
		if path, ok := strings.CutPrefix(path, "/"); ok {
			if c := t.routes.find(path, true, Target{Method: method}); c != nil {
				return c.rule
			}
		}
	}
	return &t.rest
}

// TrafficPlan is a TrafficPolicy with every default written out, for people and tools.
type TrafficPlan struct {
	Policy         string `json:"policy"`
	Route          string `json:"route,omitempty"`
	To             string `json:"to"`
	Balance        string `json:"loadBalancing"`
	Connect        string `json:"connect"`
	Request        string `json:"request"`
	Idle           string `json:"idle"`
	Connections    string `json:"connections"`
	CircuitBreaker string `json:"circuitBreaker"`
	Retries        string `json:"retries"`
}

// Plan writes out what holds for one request.
func (t *Traffic) Plan(method, path string) TrafficPlan {
	r := t.Route(method, path)
	p := TrafficPlan{Policy: t.Policy, Route: r.Name, To: orElse(t.Service, "host "+t.Host), Balance: t.Balance.String(),
		Connect: t.Connect.String(), Request: durationOr(r.Request, "no limit"), Idle: durationOr(t.Idle, "that of the proxy"),
		Connections: t.Connections.words(), CircuitBreaker: "none", Retries: "none"}
	if b := t.Breaker; b != nil {
		p.CircuitBreaker = fmt.Sprint(b.Errors, " errors less than ", b.Interval, " apart eject for ", b.EjectFor, ", at most ", b.MaxEjected, "% of the endpoints")
	}
	if r.Retries.Attempts > 0 {
		on := r.Retries.On
		if !Idempotent(method) {
			on &= ConnectFailure
		}
		p.Retries = fmt.Sprint("at most ", r.Retries.Attempts, " on ", orElse(on.String(), "nothing that this method allows"),
			", each ", durationOr(r.Retries.PerTry, "without limit"), ", budget ", t.Budget.Percent, "% and ", t.Budget.MinPerSecond,
			" a second; never of a branch")
		if r.Retries.Attempts == EachEndpoint {
			p.Retries = "each other endpoint once on connect-failure; never of a branch"
		}
	}
	return p
}

func (c Connections) words() string {
	limit := func(n int) string {
		if n == 0 {
			return "no limit"
		}
		return fmt.Sprint(n)
	}
	return fmt.Sprint("per endpoint ", limit(c.Max), ", requests ", limit(c.MaxRequests), ", waiting ", c.MaxPending)
}

// trafficBefore orders policies of the same destination: the owner's first.
func trafficBefore(a, b *Traffic) int {
	own := func(t *Traffic) bool {
		policy, _, _ := strings.Cut(t.Policy, "/")
		service, _, _ := strings.Cut(t.Service, "/")
		return t.Service != "" && policy == service
	}
	if own(a) != own(b) {
		if own(a) {
			return -1
		}
		return 1
	}
	return a.rank.compare(b.rank)
}

// placed keeps the first policy of each destination, and warns of the others.
func (c *compiler) placed(all []*Traffic) (services, hosts map[string]*Traffic) {
	services, hosts = map[string]*Traffic{}, map[string]*Traffic{}
	slices.SortStableFunc(all, trafficBefore)
	for _, t := range all {
		into, key := services, t.Service
		if key == "" {
			into, key = hosts, t.Host
		}
		if first := into[key]; first != nil {
			c.warn(t.at, codeSameMatch, "%s is for the same destination as %s, which holds", t.Policy, first.Policy)
			continue
		}
		into[key] = t
	}
	return services, hosts
}
