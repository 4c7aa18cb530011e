package sidecar

import (
	"time"

	"txmesh/interceptor/proxy"
)

// off is the value of a limit that there is not.
const off = "off"

// limitKeys are the keys of what one client, or one endpoint, can take from a port of the data path. Their names are
// those that users of nginx and Envoy look for.
func limitKeys() []key {
	return []key{
		{name: "max-headers-size", kind: size, def: "32KiB", doc: "largest head of a request or response: its first line and all fields. 1KiB to 1MiB"},
		{name: "max-headers-count", kind: number, def: "256", doc: "most fields in one head"},
		{name: "max-request-body", kind: sizeOrOff, def: off, doc: "largest body of a request, as on the wire, buffered or streamed. What rules read has `max-body` besides"},
		{name: "headers-timeout", kind: duration, def: "10s", doc: "from the first byte of a request head to its last"},
		{name: "body-timeout", kind: duration, def: "30s", doc: "silence within a request body that a rule reads, or whose answer is complete"},
		{name: "body-idle-timeout", kind: duration, def: "5m", doc: "silence within a request body that streams"},
		{name: "send-timeout", kind: duration, def: "1m", doc: "how long a client, an endpoint or a side of a tunnel may take nothing of what is written to it. Looked at once in that time, so that up to twice as much may pass. It does not run while nothing waits to be written: long polls, event streams and WebSockets may be silent for ever"},
		{name: "keepalive-timeout", kind: duration, def: "2m", doc: "idle time of a client's connection between requests"},
		{name: "request-timeout", kind: durationOrOff, def: off, doc: "from the end of the Gate's decision to the last byte of the endpoint's answer, where the rule of a call says nothing. Event streams end with it too"},
		{name: "connect-timeout", kind: duration, def: "5s", doc: "longest time to connect to an endpoint"},
		{name: "upstream-keepalive", kind: number, def: "256", doc: "idle connections that are kept for each endpoint"},
		{name: "upstream-keepalive-timeout", kind: duration, def: "30s", doc: "how long they are kept; less than the endpoint keeps them"},
		{name: "http2-max-streams", kind: number, def: "250", doc: "streams at a time of one client connection of HTTP/2"},
		{name: "http2-upstream-connections", kind: number, def: "8", doc: "connections of HTTP/2 to one endpoint"},
		{name: "http2-upstream-queue", kind: number, def: "1024", doc: "requests that wait for a stream of HTTP/2 to one endpoint; more are refused"},
		{name: "http2-ping-after", kind: duration, def: "30s", doc: "silence of a connection of HTTP/2 with open streams, after which the peer is asked whether it lives"},
	}
}

// limits reads them. Their zero is the proxy's default, or no limit where the key says off.
func (p *problems) limits(one func(string) string) proxy.Limits {
	l := proxy.Limits{HeaderBytes: int(p.size("max-headers-size", one("max-headers-size"))), HeaderFields: p.number("max-headers-count", one("max-headers-count")),
		HeaderTime: p.duration("headers-timeout", one("headers-timeout")), BufferTime: p.duration("body-timeout", one("body-timeout")),
		BodyIdle: p.duration("body-idle-timeout", one("body-idle-timeout")), WriteIdle: p.duration("send-timeout", one("send-timeout")),
		Idle: p.duration("keepalive-timeout", one("keepalive-timeout")), DialTime: p.duration("connect-timeout", one("connect-timeout")),
		EndpointKept: p.number("upstream-keepalive", one("upstream-keepalive")), EndpointIdle: p.duration("upstream-keepalive-timeout", one("upstream-keepalive-timeout")),
		Streams: p.number("http2-max-streams", one("http2-max-streams")), EndpointConns: p.number("http2-upstream-connections", one("http2-upstream-connections")),
		EndpointQueue: p.number("http2-upstream-queue", one("http2-upstream-queue")), PingAfter: p.duration("http2-ping-after", one("http2-ping-after"))}
	if n := l.HeaderBytes; n != 0 && (n < 1<<10 || n > 1<<20) {
		p.add("max-headers-size", one("max-headers-size"), "is not between 1KiB and 1MiB", "write for example 32KiB; large values belong into the body")
	}
	if v := one("max-request-body"); v != off {
		n := len(p.list)
		l.BodyBytes = p.size("max-request-body", v)
		p.orOff(n)
	}
	if v := one("request-timeout"); v != off {
		n := len(p.list)
		l.Exchange = p.duration("request-timeout", v)
		p.orOff(n)
	}
	return l
}

// orOff adds to the remedy of the problems from the n-th on that there need be no limit.
func (p *problems) orOff(n int) {
	for i := range p.list[n:] {
		p.list[n+i].Remedy += ", or " + off
	}
}

// The ports that stand on the standard library or on fasthttp have fixed limits: nobody but this project speaks to them.
const (
	serverHeaderTime = 10 * time.Second
	serverReadTime   = 30 * time.Second
	serverIdle       = 2 * time.Minute
	serverHeaders    = 32 << 10
)
