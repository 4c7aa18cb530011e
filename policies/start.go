package policies

import (
	"fmt"

	"google.golang.org/grpc/codes"
)

// Reads says which bodies Key, Commits and the root's own branch look into.
func (r *Start) Reads() Reads {
	out := Reads{RequestBody: r.reads.readsBody("request"), ResponseBody: r.reads.readsBody("response")}
	if r.Own != nil {
		own := r.Own.Reads()
		out.RequestBody = out.RequestBody || own.RequestBody
		out.ResponseBody = out.ResponseBody || own.ResponseBody
	}
	return out
}

// Key is what makes a repeat of the root request the same transaction: the policy's key, else the Idempotency-Key
// header. "" means none.
func (r *Start) Key(req *Message) (string, error) {
	return evalKey(r.key, r.reads, r.match.pattern, req.as(r.match.grpc.input()))
}

// Commits reports whether the root's answer commits the transaction. An error, such as a value that commitWhen
// reads and the answer does not have, means that it does not.
func (r *Start) Commits(req, res *Message) (bool, error) {
	switch {
	case r.commitWhen != nil:
	case res.isGRPC():
		return res.grpcStatus() == codes.OK, nil
	case req.isGRPC():
		return false, fmt.Errorf("evaluate commitWhen: a call of gRPC was answered %d without being gRPC", res.Status)
	default:
		return res.Status > 0 && res.Status < 400, nil
	}
	req, res = req.as(r.match.grpc.input()), res.as(r.match.grpc.output())
	s, err := r.reads.request(req, r.match.pattern)
	if err != nil {
		return false, fmt.Errorf("evaluate commitWhen: %w", err)
	}
	answered, err := r.reads.response(res)
	if err != nil {
		return false, fmt.Errorf("evaluate commitWhen: %w", err)
	}
	for k, v := range answered {
		s[k] = v
	}
	yes, err := r.commitWhen.evalBool(s)
	if err != nil {
		return false, fmt.Errorf("evaluate commitWhen: %w", err)
	}
	return yes, nil
}
