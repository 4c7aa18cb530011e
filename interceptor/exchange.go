package interceptor

import (
	"errors"
	"time"
)

// ErrBodyTooLarge is returned by Body when a message is longer than the caller's bound.
var ErrBodyTooLarge = errors.New("body is larger than the buffer")

// Direction says which side of the application a request was met on.
type Direction uint8

// Inbound requests come from the network to the application, Outbound ones leave it.
const (
	Inbound Direction = iota
	Outbound
)

// Port is where a request was met and where it goes if nobody objects.
type Port struct {
	Direction Direction
	Service   string // namespace/name of the service called; empty: known by its host only
	Endpoint  string // host:port chosen by the forwarder
	Trusted   bool   // the sender may begin transactions by tx-start: a gateway named in the configuration
	Caller    string // SPIFFE id that the sender's certificate proves; empty: none
}

// Request is one request as the Gate sees it. Names of headers are compared without case. Strings that it
// returns stay valid after the exchange. It is used by one goroutine.
type Request interface {
	Method() string
	Host() string
	Path() string  // as on the wire, still encoded, without the query
	Query() string // without '?'
	Header(name string) string
	Headers(name string) []string
	SetHeader(name, value string)
	DelHeader(name string)
	EachHeader(f func(name, value string))
	// Body buffers the whole body, at most max bytes, and returns it; the forwarder then sends the buffer. The
	// slice is valid until the exchange ends.
	Body(max int) ([]byte, error)
}

// Response is the answer as the Gate sees it.
type Response interface {
	Status() int
	Header(name string) string
	// Trailer returns a field that follows the body, such as gRPC's status; "" before the body has ended, and where the
	// forwarder passes trailers unread.
	Trailer(name string) string
	SetHeader(name, value string)
	DelHeader(name string)
	EachHeader(f func(name, value string))
	// Body buffers the whole body, at most max bytes. On ErrBodyTooLarge nothing is lost: the forwarder sends
	// what was read and then the rest. Any other error means that the message broke off.
	Body(max int) ([]byte, error)
}

// Answer is a response made by the sidecar itself, or one that takes the place of the application's.
type Answer struct {
	Status int
	Header [][2]string // in order
	Body   []byte
	// Trailer follows the body, in order: where gRPC has its status. HTTP/1 leaves it out.
	Trailer [][2]string
}

// Verdict is what Before says of a request. The zero value lets it pass untouched: both bodies stream and After
// is not called.
type Verdict struct {
	Answer *Answer // answer this, forward nothing
	Ticket *Ticket // forward, then call After exactly once, whatever happened
}

// Ticket is the Gate's memory of one request between Before and After.
type Ticket struct {
	Endpoint string        // send here; empty: to the port's own choice
	Timeout  time.Duration // for the whole exchange with the upstream; 0: the forwarder's own
	// Hold keeps the response back until After has returned. Without it the response streams and After is
	// called when its last byte has arrived.
	Hold bool
	// First says that this is an op of a transaction, made by an engine: where something is limited, it goes before new
	// work.
	First bool
	// Outlive keeps the exchange with the upstream going when the client goes away.
	Outlive bool

	state any // the Gate's own
}
