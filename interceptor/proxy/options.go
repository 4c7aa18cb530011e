package proxy

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"strconv"
	"time"

	"txmesh/interceptor"
	"txmesh/interceptor/traffic"
)

// Gate is told of every request and of the end of those it gave a ticket. Both may block; many goroutines call.
type Gate interface {
	// Before sees the request without its hop-by-hop fields. It may change its header and read its body.
	Before(ctx context.Context, p interceptor.Port, r interceptor.Request) interceptor.Verdict
	// After is called exactly once for each ticket, with an answer or with the error that took its place. A
	// non-nil Answer replaces the response where nothing of it has left: with Ticket.Hold, or with err. What happened
	// must be told also while shutting down: ctx may have ended.
	After(ctx context.Context, t *interceptor.Ticket, res interceptor.Response, err error) *interceptor.Answer
}

// Options is what all three proxies have in common. The zero value works: a plain proxy without a Gate.
type Options struct {
	Gate   Gate         // nil: no request is ever tagged
	Log    *slog.Logger // nil: silence
	Limits Limits
	// Traffic knows the endpoints; nil: they are this proxy's own, and no policy is in force.
	Traffic *traffic.Clusters
	// Trusted says which senders may begin transactions by tx-start; nil: none. It sets Port.Trusted.
	Trusted func(remote net.Addr) bool
	// Refused is told the code of each error of the table in Codes as it happens; nil: nobody. It must not block.
	Refused func(code string)
	// Dial opens connections to endpoints; nil: TCP. It must keep to the context's deadline. ErrLoop says that the
	// endpoint is this process.
	Dial func(ctx context.Context, network, address string) (net.Conn, error)
	// DialHTTP2 is Dial for connections that will speak HTTP/2; nil: Dial.
	DialHTTP2 func(ctx context.Context, network, address string) (net.Conn, error)
}

// Limits bounds what one peer can take. A zero field takes the default.
type Limits struct {
	HeaderBytes  int           // of a request or response head; 32 KiB
	HeaderFields int           // in one head; 256
	BodyBytes    int64         // of a request, as on the wire; 0: no limit
	Conns        int           // from clients, at a time; 10000
	HeaderTime   time.Duration // from the first byte of a request head to its last; 10 s
	BufferTime   time.Duration // of a read of the Gate from a request body; of a body whose answer is complete; 30 s
	BodyIdle     time.Duration // of silence within a request body that streams; 5 min
	WriteIdle    time.Duration // of a peer that takes nothing of what is written to it; looked at once in that time; 1 min
	Idle         time.Duration // of a client connection between requests; 2 min
	EndpointIdle time.Duration // of a kept connection to an endpoint; 30 s
	EndpointKept int           // idle connections per endpoint; 256
	DialTime     time.Duration // to connect to an endpoint; 5 s
	Exchange     time.Duration // of a request with an endpoint, if its ticket says nothing; 0: no limit

	Streams       int           // HTTP/2: of one client connection at a time; 250
	EndpointConns int           // HTTP/2: connections to one endpoint; 8
	EndpointQueue int           // HTTP/2: requests that wait for a stream to one endpoint; 1024
	PingAfter     time.Duration // HTTP/2: of silence with streams open, after which the peer is asked whether it lives; 30 s
}

// checked fills in the defaults, or names all fields that make no sense in one error.
func (o Options) checked() (Options, error) {
	l := &o.Limits
	errs := []error{
		bound("HeaderBytes", &l.HeaderBytes, 32<<10),
		bound("HeaderFields", &l.HeaderFields, 256),
		bound("Conns", &l.Conns, 10000),
		bound("EndpointKept", &l.EndpointKept, 256),
		bound("HeaderTime", &l.HeaderTime, 10*time.Second),
		bound("BufferTime", &l.BufferTime, 30*time.Second),
		bound("BodyIdle", &l.BodyIdle, 5*time.Minute),
		bound("WriteIdle", &l.WriteIdle, time.Minute),
		bound("Idle", &l.Idle, 2*time.Minute),
		bound("EndpointIdle", &l.EndpointIdle, 30*time.Second),
		bound("DialTime", &l.DialTime, 5*time.Second),
		bound("BodyBytes", &l.BodyBytes, 0),
		bound("Exchange", &l.Exchange, 0),
		bound("Streams", &l.Streams, 250),
		bound("EndpointConns", &l.EndpointConns, 8),
		bound("EndpointQueue", &l.EndpointQueue, 1024),
		bound("PingAfter", &l.PingAfter, 30*time.Second),
	}
	if o.Log == nil {
		o.Log = slog.New(slog.DiscardHandler)
	}
	if o.Traffic == nil {
		o.Traffic = traffic.New(traffic.Options{})
	}
	if o.Dial == nil {
		o.Dial = new(net.Dialer).DialContext
	}
	if o.DialHTTP2 == nil {
		o.DialHTTP2 = o.Dial
	}
	if o.Refused == nil {
		o.Refused = func(string) {}
	}
	return o, errors.Join(errs...)
}

func bound[T int | int64 | time.Duration](name string, v *T, standard T) error {
	if *v < 0 {
		return fmt.Errorf("limit %s is %v: give a positive value, or 0 for the default %v", name, *v, standard)
	}
	if *v == 0 {
		*v = standard
	}
	return nil
}

// checkEndpoint wants host:port.
func checkEndpoint(s string) error {
	host, port, err := net.SplitHostPort(s)
	if err != nil || host == "" {
		return fmt.Errorf("endpoint %q is not host:port", s)
	}
	if n, err := strconv.Atoi(port); err != nil || n < 1 || n > 65535 {
		return fmt.Errorf("endpoint %q has no port between 1 and 65535", s)
	}
	return nil
}

func checkEndpoints(endpoints []string) error {
	if len(endpoints) == 0 {
		return errors.New("no endpoint: give at least one host:port")
	}
	var errs []error
	for _, e := range endpoints {
		errs = append(errs, checkEndpoint(e))
	}
	return errors.Join(errs...)
}
