package h2

import (
	"context"
	"log/slog"
	"net"
	"time"

	"golang.org/x/net/http2"

	"txmesh/interceptor"
	"txmesh/interceptor/traffic"
	"txmesh/policies"
)

// Codes of the failures that this package tells of. The table with their titles and remedies is proxy.Codes.
const (
	CodeHeaderSize  = "TXM0202"
	CodeHeaderCount = "TXM0203"
	CodeHost        = "TXM0206"
	CodeSlow        = "TXM0207"
	CodeBodySize    = "TXM0209"
	CodeMalformed   = "TXM0214"
	CodeStalled     = "TXM0216"
	CodeUnreachable = "TXM0220"
	CodeBroken      = "TXM0221"
	CodeAnswer      = "TXM0222"
	CodeTime        = "TXM0223"
	CodeGone        = "TXM0224"
	CodeQueue       = "TXM0225"
	CodeNotHTTP2    = "TXM0226"
	CodeRefused     = "TXM0227"
	CodeProtocol    = "TXM0228"
	CodeFlood       = "TXM0229"
	CodeStreams     = "TXM0230"
	CodeConnect     = "TXM0231"
)

// Failure is what went wrong with one exchange.
type Failure struct {
	Code     string
	Endpoint string // host:port; empty: the client is to blame
	Sent     bool   // the endpoint may have processed something of it
	Detail   string
	Cause    error

	// reset is the code by which the endpoint itself ended the stream; the client is told the same.
	reset   http2.ErrCode
	isReset bool
}

// Gate is that of package proxy.
type Gate interface {
	Before(ctx context.Context, p interceptor.Port, r interceptor.Request) interceptor.Verdict
	After(ctx context.Context, t *interceptor.Ticket, res interceptor.Response, err error) *interceptor.Answer
}

// Concerner is a Gate that can tell at once, without blocking and without reading a body, that Before of a request will
// not block. Requests of other Gates, and those it is concerned with, get a goroutine of their own.
type Concerner interface {
	Concerns(p interceptor.Port, r interceptor.Request) bool
}

// Target is where a request goes. With a Cluster, that chooses Port.Endpoint.
type Target struct {
	Port    interceptor.Port
	Cluster *traffic.Cluster
}

// Client is what a server knows of the other side of a connection.
type Client struct {
	Trusted bool   // Port.Trusted
	Caller  string // Port.Caller
	// Route says where a request for that authority goes. It is called once for each request and must not block.
	Route func(authority string) (Target, *Failure)
	// Connect is Route for a plain CONNECT.
	Connect func(authority string) (Target, *Failure)
}

// Options is what a Server works with. NoPlace, Judge and Explain are required; zero limits mean the defaults of package proxy,
// which fills them in.
type Options struct {
	Gate Gate // nil: no request is ever tagged
	Log  *slog.Logger
	Dial func(ctx context.Context, network, address string) (net.Conn, error)
	// DialPlain is Dial for connections that will not speak HTTP/2.
	DialPlain func(ctx context.Context, network, address string) (net.Conn, error)
	// NoPlace says why the cluster of a service gave no endpoint.
	NoPlace func(service string, err error) *Failure
	// Judge says what an answer of 5xx tells of its endpoint, and which reason it is to repeat the request; 0: none. code is
	// its tx-error.
	Judge func(status int, code string) (traffic.Outcome, policies.RetryOn)
	// Explain makes the error that Gate.After is told, and the answer for the client.
	Explain func(Failure) (error, *interceptor.Answer)
	// Refused counts what was refused, by its code; nil: nobody does.
	Refused func(code string)
	Limits  Limits
}

// Limits bounds what one peer can take.
type Limits struct {
	HeaderBytes   int           // of one list of fields, as RFC 9113 counts them
	HeaderFields  int           // in one list
	BodyBytes     int64         // of a request; 0: no limit
	HeaderTime    time.Duration // from the first byte of a header block to its last, and for the first frame of a connection
	BufferTime    time.Duration // of silence while the Gate reads a body
	WriteIdle     time.Duration // of a side of a tunnel that takes nothing of what waits for it; looked at once in that time
	Idle          time.Duration // of a client connection without streams
	EndpointIdle  time.Duration // of a connection to an endpoint without streams
	DialTime      time.Duration // to connect to an endpoint and to see that it speaks HTTP/2
	Exchange      time.Duration // of a request with an endpoint, if its ticket says nothing; 0: no limit
	Streams       int           // of one client connection at a time
	EndpointConns int           // connections to one endpoint
	EndpointQueue int           // requests that wait for a stream to one endpoint
	PingAfter     time.Duration // of silence with streams open, after which the peer is asked whether it lives
}

const (
	streamWindow = 128 << 10 // bytes of one stream that may wait here
	connWindow   = 1 << 20   // announced for a connection; returned on receipt, so that one stream never stops another
	frameMax     = 16 << 10  // payload of a frame, both ways
	outMax       = 64 << 10  // DATA goes into a connection's buffer up to here
	outFull      = 256 << 10 // a client that leaves so much unread is not read from
	outLost      = 1 << 20   // an endpoint that leaves so much unread gets no new streams
	writeTime    = 30 * time.Second
	lingerTime   = 500 * time.Millisecond
	replayMax    = 16 << 10 // bytes sent of a request that are kept so that it can go to another endpoint
	movesMax     = 3        // times that it goes to the same endpoint again
)
