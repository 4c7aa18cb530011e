package proxy

import (
	"errors"
	"io"
	"net"
	"os"
	"strconv"
	"syscall"
)

// errClientGone ends an exchange whose client closed its connection before the answer was complete.
var errClientGone = errors.New("client closed the connection before the answer was complete")

// ErrLoop is returned by Options.Dial for an endpoint that is a port of this process which would forward to itself.
var ErrLoop = errors.New("the endpoint is a forwarding port of this sidecar")

// errStalled ends a write of which the other side takes nothing.
var errStalled = errors.New("the other side takes nothing")

// errStreamed is returned by Response.Body when the body has already gone to the client.
var errStreamed = errors.New("body was streamed: only a ticket with Hold can read it")

// Error is a failure of the proxy or of its upstream, as it is handed to Gate.After and told to the client.
type Error struct {
	Endpoint string // host:port; empty: the client is to blame
	fault    fault
	sent     bool
	counted  bool
	detail   string
	cause    error
}

// Code returns the stable code of the error, such as TXM0220.
func (e *Error) Code() string { return e.row().Code }

// NotSent reports that no byte of the request reached the endpoint: the call certainly had no effect there.
func (e *Error) NotSent() bool { return !e.sent }

func (e *Error) Unwrap() error { return e.cause }

func (e *Error) Error() string {
	text := e.row().Title
	if e.Endpoint != "" {
		text += ": endpoint " + e.Endpoint
	}
	if e.detail != "" {
		text += ": " + e.detail
	}
	if e.cause != nil {
		text += ": " + reason(e.cause)
	}
	return text
}

func (e *Error) row() Code { return Codes()[e.fault] }

// told is the detail, or else the title.
func (e *Error) told() string {
	if e.detail == "" {
		return e.row().Title
	}
	return e.detail
}

// refuse blames the request.
func refuse(f fault, detail string) *Error { return &Error{fault: f, detail: detail} }

// quoted shows input in an error, cut to a length that a person reads.
func quoted(b []byte) string {
	if len(b) > 64 {
		return strconv.QuoteToASCII(string(b[:64])) + "..."
	}
	return strconv.QuoteToASCII(string(b))
}

// reason tells a network error without the addresses and ports that differ from run to run.
func reason(err error) string {
	var sys syscall.Errno
	var dns *net.DNSError
	switch {
	case errors.As(err, &sys):
		return sys.Error()
	case errors.As(err, &dns):
		return "no such host " + dns.Name
	case errors.Is(err, io.EOF) || errors.Is(err, io.ErrUnexpectedEOF):
		return "connection closed"
	case isTimeout(err):
		return "time limit exceeded"
	}
	return err.Error()
}

func isTimeout(err error) bool {
	var t net.Error
	return errors.Is(err, os.ErrDeadlineExceeded) || errors.As(err, &t) && t.Timeout()
}
