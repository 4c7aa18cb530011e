package admin

import (
	"encoding/json"
	"fmt"
	"net/http"
	"strconv"
	"time"

	"google.golang.org/grpc/codes"

	"txmesh/interceptor"
	"txmesh/policies"
	"txmesh/txn"
)

// DoorName is Spec.Door of transactions that the API began with targets of their own.
const DoorName = "api"

// contextLife is how long the signed context of a settling call lives. It opens nothing.
const contextLife = time.Minute

// Door makes the requests of those transactions and reads their answers: by the built-in table of the policies, and by
// the decision that an initiator was asked for. It implements interceptor.Door.
type Door struct{ Keys *interceptor.Keys }

// Request implements interceptor.Door.
func (d Door) Request(c txn.Call) (*interceptor.Direct, error) {
	t, err := decodeTarget(c.Target)
	if err != nil {
		return nil, err
	}
	r := &interceptor.Direct{Method: t.Method, URL: t.Place, Header: http.Header{}, Body: t.Body}
	switch {
	case t.GRPC:
		r.Protocol = interceptor.GRPC
	case t.Query != "":
		r.URL += "?" + t.Query
	}
	for _, h := range t.Header {
		r.Header.Set(h[0], h[1])
	}
	if !t.GRPC {
		r.Header.Set("User-Agent", "txmesh-sidecar")
	}
	d.dress(r.Header, c)
	return r, nil
}

// dress gives a call the headers of the protocol. A settling call carries a signed context, so that a sidecar on its
// way believes them and what the participant calls meanwhile is no branch. A forward call carries none: nothing that
// it causes could join a transaction whose branches are not made by policies.
func (d Door) dress(h http.Header, c txn.Call) {
	name, op := string(c.Tx), opWord(c)
	if c.Branch != "" {
		name = interceptor.BranchName(c.Tx, c.Branch)
		h.Set(interceptor.HeaderBranch, name)
		if c.Op != txn.Forward {
			h.Set(interceptor.HeaderContext, d.Keys.Sign(interceptor.Context{ID: c.Tx, Expires: time.Now().Add(contextLife)}))
		}
	}
	h.Set(interceptor.HeaderID, string(c.Tx))
	h.Set(interceptor.HeaderOp, op)
	h.Set(interceptor.HeaderAttempt, strconv.Itoa(c.Attempt))
	if c.Op == txn.Tell {
		h.Set(interceptor.HeaderStatus, endWord(c))
	}
	if c.Op != txn.Ask {
		// A question is asked anew each time: who keeps answers by their keys would say "pending" for ever.
		h.Set(interceptor.HeaderIdempotency, `"`+name+"-"+op+`"`)
	}
}

func opWord(c txn.Call) string {
	switch c.Op {
	case txn.Forward:
		return interceptor.OpForward
	case txn.Commit:
		if c.Mode == txn.Msg {
			return interceptor.OpDeliver
		}
		return interceptor.OpConfirm
	case txn.Undo:
		return interceptor.OpUndo
	case txn.Ask:
		return interceptor.OpQuery
	case txn.Tell:
		return interceptor.OpTell
	default:
		panic("admin: call of an op without a word: " + c.Op.String())
	}
}

func endWord(c txn.Call) string {
	if c.Commit {
		return txn.Committed.String()
	}
	return txn.Aborted.String()
}

// Judge implements interceptor.Door.
func (d Door) Judge(c txn.Call, a interceptor.DirectAnswer) (txn.Outcome, []byte, string) {
	if a.Err != nil {
		return txn.Unknown, nil, a.Err.Error()
	}
	t, err := decodeTarget(c.Target)
	if err != nil {
		return txn.Unknown, nil, err.Error()
	}
	status, said := a.Reply.Status, fmt.Sprintf("answered %d", a.Reply.Status)
	if t.GRPC {
		status, said = statusOf(codes.Code(a.Code)), fmt.Sprintf("answered %v %.200s", codes.Code(a.Code), a.Message)
	}
	if code := a.Reply.Header.Get(interceptor.HeaderError); code != "" {
		out := txn.Unknown
		if status == http.StatusTooEarly {
			out = txn.Pending
		}
		return out, nil, "a sidecar " + said + " " + code
	}
	var out txn.Outcome
	switch {
	case c.Op == txn.Ask:
		out, said = decision(c.Mode, status, a.Reply.Body, said)
	case c.Op == txn.Tell || c.Op == txn.Commit && c.Mode == txn.Msg:
		out, _ = policies.BuiltinOutcome(txn.Forward, &policies.Message{Status: status}) // a message is taken as soon as it is accepted
	default:
		out, _ = policies.BuiltinOutcome(c.Op, &policies.Message{Status: status})
	}
	if out == txn.OK {
		said = ""
	}
	return out, nil, said
}

// decision reads what the initiator says of its transaction: {"decision": "commit"}, "abort" or "pending"; where the
// body is silent, 409 is abort, 202 and 425 are pending, and an empty 2xx is commit. A workflow that was resumed has
// decided nothing by answering: only the word counts. All else is unknown, a 404 above all.
func decision(mode txn.Mode, status int, body []byte, said string) (txn.Outcome, string) {
	var v struct {
		Decision string `json:"decision"`
	}
	good := status >= 200 && status <= 299
	if good || status == http.StatusConflict {
		// A body that is no JSON says nothing.
		_ = json.Unmarshal(body, &v)
	}
	switch v.Decision {
	case "":
	case "commit":
		return txn.OK, said
	case "abort":
		return txn.Refused, said + " and decided abort"
	case "pending":
		return txn.Pending, said + " and decided pending"
	default:
		return txn.Unknown, fmt.Sprintf("%s and decided %.40q: want commit, abort or pending", said, v.Decision)
	}
	switch {
	case status == http.StatusAccepted, status == http.StatusTooEarly, good && mode == txn.Workflow:
		return txn.Pending, said + ": not decided yet"
	case mode == txn.Workflow:
		return txn.Unknown, said
	case status == http.StatusConflict:
		return txn.Refused, said
	case good && len(body) == 0:
		return txn.OK, said
	case good:
		return txn.Unknown, said + " with a body without decision"
	default:
		return txn.Unknown, said
	}
}

// statusOf gives a code of gRPC the status of HTTP that means the same, so that one table judges both. What may have
// happened although the call failed stays unknown.
func statusOf(c codes.Code) int {
	switch c {
	case codes.OK:
		return http.StatusOK
	case codes.InvalidArgument, codes.OutOfRange, codes.FailedPrecondition, codes.AlreadyExists:
		return http.StatusBadRequest
	case codes.Unauthenticated:
		return http.StatusUnauthorized
	case codes.PermissionDenied:
		return http.StatusForbidden
	case codes.NotFound:
		return http.StatusNotFound
	case codes.Aborted:
		return http.StatusConflict
	case codes.ResourceExhausted:
		return http.StatusTooManyRequests
	case codes.Canceled, codes.Unknown, codes.DeadlineExceeded, codes.Unimplemented, codes.Internal, codes.Unavailable, codes.DataLoss:
		return http.StatusInternalServerError
	default:
		return http.StatusInternalServerError // a code of a later release
	}
}
