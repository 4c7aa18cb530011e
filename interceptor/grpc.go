package interceptor

import (
	"context"
	"errors"
	"strconv"
	"strings"
	"time"

	"txmesh/policies"
)

// isGRPC reports whether a request or a response is one of gRPC.
func isGRPC(m interface{ Header(name string) string }) bool {
	return policies.IsGRPC(m.Header("content-type"))
}

// statusOf is what a response of gRPC says in its trailers, or in its header where it has nothing else: how the call
// ended, in the order of Answer.Trailer. It is empty for other responses, and before the body has ended.
func statusOf(res Response) [][2]string {
	if !isGRPC(res) {
		return nil
	}
	from := res.Trailer
	if from("grpc-status") == "" {
		from = res.Header
	}
	var out [][2]string
	for _, name := range [...]string{"grpc-status", "grpc-message", "grpc-status-details-bin"} {
		if v := from(name); v != "" {
			out = append(out, [2]string{name, v})
		}
	}
	return out
}

// notUnary answers a request that is no unary call, before it leaves: a stream has no end at which a branch could be
// judged. nil: it is one.
func notUnary(r Request, body []byte, err error) *Answer {
	if err == nil {
		err = policies.CheckUnary(body)
	} else {
		err = errors.New("the request does not end: " + err.Error())
	}
	if err == nil {
		return nil
	}
	return problem(CodeUnary, strings.TrimPrefix(r.Path(), "/")+": "+err.Error(), "")
}

// heldAnswer answers a call that is sent later.
func heldAnswer(r Request, header ...[2]string) *Answer {
	if isGRPC(r) {
		return emptyMessage(header...)
	}
	return &Answer{Status: 202, Header: append([][2]string{{"content-length", "0"}}, header...)}
}

// emptyMessage is a success of gRPC that says nothing: every field of its message has the default.
func emptyMessage(header ...[2]string) *Answer {
	return &Answer{Status: 200, Header: append([][2]string{{"content-type", "application/grpc"}}, header...),
		Body: policies.UnaryBody(nil), Trailer: [][2]string{{"grpc-status", "0"}}}
}

// sooner is a timeout, or what the caller of gRPC waits for if that is less.
func sooner(timeout time.Duration, r Request) time.Duration {
	if !isGRPC(r) {
		return timeout
	}
	if d, ok := grpcTimeout(r.Header("grpc-timeout")); ok && d < timeout {
		return max(d, time.Millisecond) // 0 would be none
	}
	return timeout
}

// grpcTimeout reads the header of that name: at most eight digits, and a unit.
func grpcTimeout(v string) (time.Duration, bool) {
	if len(v) < 2 || len(v) > 9 {
		return 0, false
	}
	n, err := strconv.ParseUint(v[:len(v)-1], 10, 32)
	if err != nil {
		return 0, false
	}
	switch v[len(v)-1] {
	case 'H':
		return time.Duration(min(n, 24*365)) * time.Hour, true // 99,999,999 hours would not fit
	case 'M':
		return time.Duration(n) * time.Minute, true
	case 'S':
		return time.Duration(n) * time.Second, true
	case 'm':
		return time.Duration(n) * time.Millisecond, true
	case 'u':
		return time.Duration(n) * time.Microsecond, true
	case 'n':
		return time.Duration(n), true
	}
	return 0, false
}

// describedCall gives a rule the types that its document lacks. They go into a document of its own, so that every later
// op can be rendered without the service.
func (g *Gate) describedCall(ctx context.Context, p Port, rule *policies.Call, j joined) (*policies.Call, *Answer) {
	need := rule.Undescribed()
	if len(need) == 0 {
		return rule, nil
	}
	if g.Types == nil {
		return nil, problem(CodeTypes, "rule "+rule.Name+" needs "+strings.Join(need, " and "), j.context.ID)
	}
	described, err := g.Types.Call(ctx, p.Endpoint, rule)
	if err != nil {
		return nil, undescribed(rule.Name, err)
	}
	return described, nil
}

func (g *Gate) describedStart(ctx context.Context, rule *policies.Start) (*policies.Start, *Answer) {
	need := rule.Undescribed()
	if len(need) == 0 {
		return rule, nil
	}
	if g.Types == nil {
		return nil, problem(CodeTypes, "rule "+rule.Name+" needs "+strings.Join(need, " and "), "")
	}
	described, err := g.Types.Start(ctx, rule)
	if err != nil {
		return nil, undescribed(rule.Name, err)
	}
	return described, nil
}

// undescribed tells a rule that does not fit its service from a service that does not answer.
func undescribed(rule string, err error) *Answer {
	if findings, ok := errors.AsType[policies.Findings](err); ok {
		return problem(CodeRule, "rule "+rule+": "+findings[0].Code+": "+findings[0].Text, "")
	}
	return problem(CodeTypes, "rule "+rule+": "+err.Error(), "")
}
