package peer

import (
	"net/http"
	"time"

	"txmesh/interceptor"
	"txmesh/txn"
)

// The bodies. Their fields are those of the types that they carry, name by name, so that the compiler refuses the
// conversion when one is added there and forgotten here.

type wireBranch struct {
	ID         string             `json:"id,omitempty"`
	Key        string             `json:"key,omitempty"`
	After      []string           `json:"after,omitempty"`
	Ops        [txn.NumOps][]byte `json:"ops"`
	Home       string             `json:"home,omitempty"`
	Print      string             `json:"print,omitempty"`
	Timeout    time.Duration      `json:"timeout,omitempty"`
	Unanswered txn.Resolve        `json:"unanswered,omitempty"`
	KeepAnswer bool               `json:"keep_answer,omitempty"`
	InOrder    bool               `json:"in_order,omitempty"`
	Retry      txn.Retry          `json:"retry,omitzero"`
	Join       []string           `json:"join,omitempty"`
	Name       string             `json:"name,omitempty"`
	Note       []byte             `json:"note,omitempty"`
}

type wireEnlist struct {
	Tx       txn.ID        `json:"tx"`
	Branch   wireBranch    `json:"branch"`
	Calling  bool          `json:"calling,omitempty"`
	Answered txn.Outcome   `json:"answered,omitempty"`
	Result   []byte        `json:"result,omitempty"`
	Call     string        `json:"call,omitempty"`
	Document *wireDocument `json:"document,omitempty"`
}

type wireDocument struct {
	Hash string `json:"hash"`
	Name string `json:"name"`
	Data []byte `json:"data"`
}

type wirePlaced struct {
	Branch string `json:"branch"`
	Home   string `json:"home"`
}

type wireReturned struct {
	Branch  string      `json:"branch"`
	Op      txn.Op      `json:"op"`
	Outcome txn.Outcome `json:"outcome"`
	Result  []byte      `json:"result,omitempty"`
	Cause   string      `json:"cause,omitempty"`
	Call    string      `json:"call,omitempty"`
}

type wireReturn struct {
	Tx      txn.ID       `json:"tx"`
	Answer  wireReturned `json:"answer"`
	Durable bool         `json:"durable,omitempty"`
}

type wireOutgoing struct {
	Method string      `json:"method"`
	Host   string      `json:"host,omitempty"`
	Path   string      `json:"path"`
	Query  string      `json:"query,omitempty"`
	Header http.Header `json:"header,omitempty"`
	Body   []byte      `json:"body,omitempty"`
}

type wireSettle struct {
	Home     string        `json:"home"`
	Branch   string        `json:"branch"`
	Op       txn.Op        `json:"op"`
	Known    txn.Outcome   `json:"known"`
	Attempt  int           `json:"attempt"`
	Deadline time.Time     `json:"deadline,omitzero"`
	Judged   bool          `json:"judged,omitempty"`
	Request  *wireOutgoing `json:"request,omitempty"`
}

type wireReply struct {
	Status  int         `json:"status"`
	Header  http.Header `json:"header,omitempty"`
	Body    []byte      `json:"body,omitempty"`
	Trailer http.Header `json:"trailer,omitempty"`
}

type wireSettled struct {
	Outcome txn.Outcome `json:"outcome"`
	Reply   *wireReply  `json:"reply,omitempty"`
	ByQuery bool        `json:"by_query,omitempty"`
	Cause   string      `json:"cause,omitempty"`
}

type wireStatus struct {
	IDs []txn.ID `json:"ids"`
}

type wirePhases struct {
	Phases map[txn.ID]string `json:"phases"`
}

type wireRefusal struct {
	Code string `json:"code"`
	Text string `json:"text"`
}

func settleToWire(c interceptor.HomeCall) wireSettle {
	return wireSettle{Home: c.Home, Branch: c.Branch, Op: c.Op, Known: c.Known, Attempt: c.Attempt, Deadline: c.Deadline,
		Judged: c.Judged, Request: (*wireOutgoing)(c.Request)}
}

func settleFromWire(w wireSettle) interceptor.HomeCall {
	return interceptor.HomeCall{Home: w.Home, Branch: w.Branch, Op: w.Op, Known: w.Known, Attempt: w.Attempt, Deadline: w.Deadline,
		Judged: w.Judged, Request: (*interceptor.Outgoing)(w.Request)}
}

func settledToWire(r interceptor.HomeReply) wireSettled {
	return wireSettled{Outcome: r.Outcome, Reply: (*wireReply)(r.Reply), ByQuery: r.ByQuery, Cause: r.Cause}
}

func settledFromWire(w wireSettled) interceptor.HomeReply {
	return interceptor.HomeReply{Outcome: w.Outcome, Reply: (*interceptor.Reply)(w.Reply), ByQuery: w.ByQuery, Cause: w.Cause}
}

// documentOf returns the hash of the policy document that the branch's note names; empty: none.
func documentOf(note []byte) string {
	n, err := interceptor.DecodeNote(note)
	if err != nil {
		return "" // another door's note
	}
	return n.Document
}
