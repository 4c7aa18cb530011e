package policies

import (
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"maps"

	"txmesh/txn"
)

// Outcome judges the answer of one op: the rule's own outcome rules first, then the built-in table. req is the
// request of a forward call and may be nil for the other ops; without it a forward whose rules read the request is
// Unknown. res is nil when no answer came. The cause is for people; it is empty for OK.
func (c *Call) Outcome(o txn.Op, req, res *Message) (out txn.Outcome, cause string) {
	var asked scope
	if o == txn.Forward && req != nil {
		var err error
		if asked, err = c.reads.request(req.as(c.match.grpc.input()), c.match.pattern); err != nil {
			return txn.Unknown, err.Error()
		}
	}
	return c.judge(o, asked, res, c.isGRPC(o) || o == txn.Forward && req.isGRPC())
}

// RecordedOutcome is Outcome for a forward call whose answer is found later, when only the record of its request is
// left.
func (c *Call) RecordedOutcome(request []byte, res *Message) (out txn.Outcome, cause string) {
	asked, err := c.recall(request, nil)
	if err != nil {
		return txn.Unknown, err.Error()
	}
	return c.judge(txn.Forward, asked, res, c.isGRPC(txn.Forward))
}

// isGRPC reports whether an op is a call of gRPC whatever its request looked like.
func (c *Call) isGRPC(o txn.Op) bool {
	return o == txn.Forward && c.match.grpc != nil || c.Has(o) && c.ops[o].grpc != nil
}

// answerType is the type of the answer to an op; nil: not known, or none of gRPC.
func (c *Call) answerType(o txn.Op) *messageType {
	switch {
	case o == txn.Forward:
		return c.match.grpc.output()
	case !c.Has(o):
		return nil
	case c.ops[o].grpc == nil && c.Kind == Hold && o == txn.Commit:
		return c.match.grpc.output() // the held call itself
	}
	return c.ops[o].grpc.output()
}

// judge applies the outcome rules of an op to its answer, and to its request where that is known. An answer that is not
// gRPC to a call that is came from somebody on the way, and a success of HTTP says nothing then.
func (c *Call) judge(o txn.Op, asked scope, res *Message, grpc bool) (out txn.Outcome, cause string) {
	switch {
	case res == nil:
		return txn.Unknown, "no answer"
	case grpc && !res.isGRPC() && res.Status < 400:
		return txn.Unknown, res.Said() + " to a call of gRPC, without being gRPC"
	}
	res = res.as(c.answerType(o))
	rules, reads := c.rulesOf(o)
	if asked == nil && (reads.reads("request") || reads.reads("path")) {
		return txn.Unknown, res.Said() + "; the outcome rules read the request, which is not at hand"
	}
	s := scope{}
	if len(rules) > 0 {
		answered, err := reads.response(res)
		if err != nil {
			return txn.Unknown, fmt.Sprintf("%s; %v", res.Said(), err)
		}
		maps.Copy(s, asked)
		maps.Copy(s, answered)
	}
	for _, r := range rules {
		yes, err := r.when.evalBool(s)
		if errors.Is(err, errMissing) {
			continue
		}
		if err != nil {
			return txn.Unknown, fmt.Sprintf("%s; outcome rule: %v", res.Said(), err)
		}
		if yes {
			return r.is, because(r.is, fmt.Sprintf("%s and %s", res.Said(), r.when.text))
		}
	}
	out = c.table(o, res)
	return out, because(out, res.Said())
}

func because(out txn.Outcome, cause string) string {
	if out == txn.OK {
		return ""
	}
	return cause
}

// rulesOf returns the outcome rules of an op and what they read.
func (c *Call) rulesOf(o txn.Op) ([]outcomeRule, *tree) {
	switch {
	case o == txn.Forward:
		return c.outcome, c.reads
	case c.Has(o):
		return c.ops[o].outcome, c.ops[o].reads
	}
	return nil, nil
}

// table picks the built-in table of an op. A held call is taken as soon as it is accepted, as a forward is.
func (c *Call) table(o txn.Op, res *Message) txn.Outcome {
	switch {
	case res.isGRPC():
		return grpcOutcome(o, res.grpcStatus())
	case o == txn.Forward && c.root:
		return rootOutcome(res.Status)
	case o == txn.Forward, o == txn.Commit && c.Kind == Hold:
		return forwardOutcome(res.Status)
	case o == txn.Ask:
		return askOutcome(res.Status)
	}
	return settleOutcome(res.Status)
}

// forwardOutcome is the table for the work itself. What could have taken effect is never refused.
func forwardOutcome(code int) txn.Outcome {
	switch {
	case code >= 200 && code <= 299:
		return txn.OK
	case code == 425:
		return txn.Pending
	case code == 408, code == 429:
		return txn.Unknown
	case code >= 400 && code <= 499:
		return txn.Refused
	}
	return txn.Unknown
}

// rootOutcome is the table for the root's own writes: a service that answers with a redirect has done its work.
func rootOutcome(code int) txn.Outcome {
	if code >= 300 && code <= 399 {
		return txn.OK
	}
	return forwardOutcome(code)
}

// settleOutcome is the table for undo, confirm and cancel: gone counts as done, accepted as not yet done.
func settleOutcome(code int) txn.Outcome {
	switch code {
	case 410:
		return txn.OK
	case 202:
		return txn.Pending
	}
	return forwardOutcome(code)
}

// askOutcome is the table for a query, whose refusal means that the forward had no effect. Only "not found" and
// "gone" say so; a query that was itself turned away says nothing.
func askOutcome(code int) txn.Outcome {
	switch {
	case code == 404, code == 410:
		return txn.Refused
	case code == 202, code == 425:
		return txn.Pending
	case code >= 200 && code <= 299:
		return txn.OK
	}
	return txn.Unknown
}

// Query reads a query's answer. OK means that the forward took effect, and answer is what RecordAnswer would have
// kept of its lost response. Refused means that it was not found, which may still be early: see AbsentAfter. The
// cause is for people. An error means that the record itself cannot be read.
func (c *Call) Query(request []byte, res *Message) (out txn.Outcome, answer []byte, cause string, err error) {
	s, err := c.recall(request, nil)
	if err != nil {
		return txn.Unknown, nil, "", fmt.Errorf("read the query's answer for %s: %w", c.Name, err)
	}
	out, cause = c.Outcome(txn.Ask, nil, res)
	if out != txn.OK {
		return out, nil, cause, nil
	}
	res = res.as(c.answerType(txn.Ask))
	found, out, cause := c.selected(s, res)
	if out != txn.OK {
		return out, nil, cause, nil
	}
	values, err := c.standIn(found, res)
	if err != nil {
		return txn.Unknown, nil, fmt.Sprintf("%s; %v", res.Said(), err), nil
	}
	answer, err = encodeJSON(values)
	if err != nil {
		return txn.Unknown, nil, "", fmt.Errorf("keep the query's answer for %s: %w", c.Name, err)
	}
	return txn.OK, answer, "", nil
}

// selected applies `answer`. Nothing is found when a list is too short or the last field is not there; an answer of
// another shape is no answer.
func (c *Call) selected(s scope, res *Message) (found, txn.Outcome, string) {
	body, err := decodeBody(res)
	if err != nil && !errors.Is(err, errUndescribed) { // then nothing reads it
		return found{}, txn.Unknown, fmt.Sprintf("%s; read response.body: %v", res.Said(), err)
	}
	whole := found{value: body, whole: true}
	if c.answer == nil {
		return whole, txn.OK, ""
	}
	seen, err := c.answer.reads.response(res)
	if err != nil {
		return found{}, txn.Unknown, fmt.Sprintf("%s; %v", res.Said(), err)
	}
	for k, v := range s {
		if k != "response" {
			seen[k] = v
		}
	}
	v, err := c.answer.eval(seen)
	switch {
	case err != nil && isAbsent(err):
		return found{}, txn.Refused, fmt.Sprintf("%s selects nothing", c.answer.text)
	case err != nil:
		return found{}, txn.Unknown, fmt.Sprintf("%s; answer: %v", res.Said(), err)
	}
	switch v := v.(type) {
	case nil:
		return found{}, txn.Refused, fmt.Sprintf("%s is null", c.answer.text)
	case bool:
		if !v {
			return found{}, txn.Refused, fmt.Sprintf("%s is false", c.answer.text)
		}
		return whole, txn.OK, ""
	case []any:
		if len(v) == 0 {
			return found{}, txn.Refused, fmt.Sprintf("%s is empty", c.answer.text)
		}
	case json.Number, string, map[string]any:
	}
	return found{value: v}, txn.OK, ""
}

// found is what stands in for the body of a lost answer: the whole body of the query's answer, or a part of it.
type found struct {
	value any
	whole bool
}

func isAbsent(err error) bool {
	if m, ok := errors.AsType[*missing](err); ok {
		return m.item || m.last
	}
	return errors.Is(err, errItem)
}

// standIn puts what the query found in the place of the forward's response body. The bytes of a message stand in as
// well where all of it does.
func (c *Call) standIn(f found, res *Message) (map[string]any, error) {
	stand := *res
	body, err := encodeJSON(f.value)
	if err != nil {
		return nil, err
	}
	stand.Body, stand.of = body, nil
	stand.Header = func(name string) string {
		switch name {
		case "content-type":
			return "application/json"
		case "content-encoding":
			return ""
		}
		return res.header(name)
	}
	values, err := c.recorded.response(&stand)
	if err != nil {
		return nil, err
	}
	if f.whole && res.isGRPC() && c.recorded.reads("response", "message") {
		message, err := UnaryMessage(res.Body, res.header("grpc-encoding"))
		if err != nil {
			return nil, err
		}
		values["response"].(map[string]any)["message"] = base64.StdEncoding.EncodeToString(message)
	}
	return values, c.judgeUndo(values, &stand)
}
