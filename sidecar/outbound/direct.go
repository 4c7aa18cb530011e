package outbound

import (
	"context"
	"errors"
	"fmt"
	"net/url"
	"strings"

	"txmesh/interceptor"
	"txmesh/txn"
)

// callDirect makes a call of a transaction that a door began: the door makes the request and reads the answer.
func (c *Caller) callDirect(ctx context.Context, call txn.Call) verdict {
	door := c.opt.Doors[call.Door]
	if door == nil {
		return impossible(call.Op, fmt.Errorf("the door %q, which began this transaction, is not open: configure it again", call.Door))
	}
	req, err := door.Request(call)
	if err != nil {
		return impossible(call.Op, err)
	}
	var a interceptor.DirectAnswer
	switch req.Protocol {
	case interceptor.HTTP:
		a = c.directHTTP(ctx, req)
	case interceptor.GRPC:
		a = c.grpc.call(ctx, req)
	default:
		panic(fmt.Sprintf("outbound: protocol %d", req.Protocol))
	}
	if errors.Is(a.Err, errForbidden) {
		return impossible(call.Op, a.Err)
	}
	v := verdict{}
	v.out, v.result, v.cause = door.Judge(call, a)
	return v
}

func (c *Caller) directHTTP(ctx context.Context, d *interceptor.Direct) interceptor.DirectAnswer {
	u, err := url.Parse(d.URL)
	if err == nil && (u.Scheme != "http" && u.Scheme != "https" || u.Host == "") {
		err = errors.New("want http://host:port/path")
	}
	if err != nil {
		return interceptor.DirectAnswer{Err: fmt.Errorf("%w: url %q: %w", errForbidden, d.URL, err)}
	}
	reply, err := c.wire.transport.exchange(ctx, u, d)
	if err != nil {
		err = fmt.Errorf("%s %s: %w", d.Method, d.URL, err)
	}
	return interceptor.DirectAnswer{Reply: reply, Err: err}
}

func withPort(u *url.URL) string {
	switch {
	case u.Port() != "":
		return u.Host
	case u.Scheme == "https":
		return u.Host + ":443"
	default:
		return u.Host + ":80"
	}
}

// Lane names the destination of a call, for the engine: what hangs there must not keep other calls waiting.
func (c *Caller) Lane(call txn.Call) string {
	if call.Door != "" {
		target, _, _ := strings.Cut(string(call.Target), "?")
		return target
	}
	note, err := interceptor.DecodeNote(call.Note)
	if err != nil {
		return ""
	}
	return note.Service + " " + note.Host + " " + note.Rule
}
