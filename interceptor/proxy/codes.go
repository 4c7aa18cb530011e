package proxy

import "txmesh/interceptor/proxy/h2"

// Code is one row of the table of errors that this package answers by itself.
type Code struct {
	Code   string // stable, sent in the header tx-error
	Title  string
	Status int
	Remedy string // what the reader can do
}

// fault indexes the table.
type fault uint8

const (
	faultMalformed fault = iota
	faultFraming
	faultHeaderSize
	faultHeaderCount
	faultVersion
	faultCoding
	faultHost
	faultHeaderTime
	faultBody
	faultBodySize
	faultConns
	faultForm
	faultScheme
	faultConnect
	faultMalformed2
	faultLoop
	faultStalled
	faultBodyTime
	faultUnreachable
	faultBroken
	faultAnswer
	faultTime
	faultClientGone
	faultQueue
	faultNotHTTP2
	faultRefused
	faultProtocol2
	faultFlood
	faultStreams
	faultConnect2
	faultFull
	faultWaited
	faultNowhere
)

// Codes returns the table of TXM0200 to TXM0249, in order of their numbers. The caller owns the slice.
func Codes() []Code { return append(clientCodes(), endpointCodes()...) }

// clientCodes are those that blame the request.
func clientCodes() []Code {
	return []Code{
		faultMalformed: {"TXM0200", "malformed request", 400,
			"send the request as RFC 9112 has it: CRLF line ends, one space in the request line, no folded lines"},
		faultFraming: {"TXM0201", "ambiguous length of the request", 400,
			"send either one Content-Length or `Transfer-Encoding: chunked`, never both and never twice"},
		faultHeaderSize: {"TXM0202", "request header too large", 431,
			"send fewer or shorter header fields, or raise the limit of header bytes"},
		faultHeaderCount: {"TXM0203", "too many header fields", 431,
			"send fewer header fields, or raise the limit of header fields"},
		faultVersion: {"TXM0204", "HTTP version not served here", 505, "speak HTTP/1.1 to this port"},
		faultCoding: {"TXM0205", "transfer coding not understood", 501,
			"use `Transfer-Encoding: chunked` alone; compress with Content-Encoding"},
		faultHost: {"TXM0206", "missing or ambiguous host", 400, "send exactly one valid Host field"},
		faultHeaderTime: {"TXM0207", "request header came too slowly", 408,
			"send the whole header at once, or raise the time limit for reading it"},
		faultBody: {"TXM0208", "malformed request body", 400, "repair the chunked coding or the trailers of the request"},
		faultBodySize: {"TXM0209", "request body too large", 413,
			"send a smaller body, or raise the limit of body bytes"},
		faultConns: {"TXM0210", "too many connections", 503,
			"use fewer connections, keep them alive, or raise the limit of connections"},
		faultForm: {"TXM0211", "not a proxy request", 400,
			"send the full URL in the request line (GET http://host/path) as HTTP_PROXY clients do, or CONNECT"},
		faultScheme: {"TXM0212", "scheme not served by the forward proxy", 501,
			"use http:// in the request line; for https:// use CONNECT"},
		faultConnect: {"TXM0213", "CONNECT not served here", 405, "send CONNECT to the forward proxy port"},
		faultMalformed2: {h2.CodeMalformed, "malformed HTTP/2 message", 400,
			"send fields and DATA as RFC 9113 has them: lower-case names, one value for each pseudo-field, as many bytes as content-length says"},
		faultLoop: {"TXM0215", "endpoint is this sidecar itself", 508,
			"call the service by its own address; a port of this sidecar that forwards would send the request round for ever"},
		faultStalled: {h2.CodeStalled, "client takes nothing of the answer", 499,
			"read the answer as it comes, or raise the time limit for taking it; the effect of the request is unknown"},
		faultBodyTime: {"TXM0217", "request body came too slowly", 408,
			"send the body without long pauses, or raise the time limit for reading it"},
	}
}

// endpointCodes are those of the way to the endpoint and of HTTP/2.
func endpointCodes() []Code {
	const first = faultUnreachable
	return []Code{
		faultUnreachable - first: {"TXM0220", "endpoint unreachable", 503,
			"nothing was sent, so the request may be repeated; check that the endpoint listens"},
		faultBroken - first: {"TXM0221", "endpoint broke off", 502,
			"the request was sent and its effect is unknown; look into the log of the endpoint before repeating it"},
		faultAnswer - first: {"TXM0222", "malformed response from the endpoint", 502,
			"the request was sent and its effect is unknown; repair the response of the endpoint"},
		faultTime - first: {"TXM0223", "endpoint did not answer in time", 504,
			"the request was sent and its effect is unknown; look into the log of the endpoint, or raise the time limit"},
		faultClientGone - first: {"TXM0224", "client went away", 499,
			"nobody is left to read this answer; the effect of the request is unknown"},
		faultQueue - first: {h2.CodeQueue, "too many requests wait for the endpoint", 503,
			"nothing was sent, so the request may be repeated; let the endpoint take more streams, or give it replicas"},
		faultNotHTTP2 - first: {h2.CodeNotHTTP2, "endpoint does not speak HTTP/2", 503,
			"nothing was sent; let the endpoint serve HTTP/2 with prior knowledge, or call it with HTTP/1.1: the protocol is kept"},
		faultRefused - first: {h2.CodeRefused, "endpoint refused the stream", 503,
			"the endpoint has not looked at the request, so it may be repeated"},
		faultProtocol2 - first: {h2.CodeProtocol, "HTTP/2 connection broke the rules", 400,
			"repair the client; the debug data of GOAWAY say what was wrong"},
		faultFlood - first: {h2.CodeFlood, "HTTP/2 connection asked for too much", 429,
			"give up fewer streams, and send fewer frames that carry nothing"},
		faultStreams - first: {h2.CodeStreams, "too many streams on one connection", 503,
			"keep to SETTINGS_MAX_CONCURRENT_STREAMS, or raise the limit of streams"},
		faultConnect2 - first: {h2.CodeConnect, "protocol not served in CONNECT over HTTP/2", 501,
			"name websocket as :protocol, or none for a plain CONNECT; send other upgrades over HTTP/1.1"},
		faultFull - first: {"TXM0236", "too many requests to one service", 503,
			"nothing was sent: repeat after the time in Retry-After; raise connections in the TrafficPolicy if the service can take more"},
		faultWaited - first: {"TXM0237", "waited too long for a turn", 503,
			"nothing was sent: repeat after the time in Retry-After; raise connections or timeouts.connect in the TrafficPolicy if the service can take more"},
		faultNowhere - first: {"TXM0238", "no endpoint of the service is known", 503,
			"nothing was sent: name endpoints in upstreams, or start a sidecar of the service that the peers or the control plane know"},
	}
}
