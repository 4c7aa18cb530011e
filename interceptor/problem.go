package interceptor

import (
	"encoding/json"
	"slices"
	"strconv"

	"txmesh/txn"
)

// Code is a stable number of a refusal; docs/reference/codes.md has a paragraph for each.
type Code string

// Codes of the Gate. Numbers are never given twice.
const (
	CodeForged      Code = "TXM0101"
	CodeExpired     Code = "TXM0102"
	CodeLost        Code = "TXM0103"
	CodeAmbiguous   Code = "TXM0104"
	CodeDecided     Code = "TXM0105"
	CodeConflict    Code = "TXM0106"
	CodeJournal     Code = "TXM0107"
	CodeOwner       Code = "TXM0108"
	CodeTooLarge    Code = "TXM0109"
	CodeNotHome     Code = "TXM0110"
	CodeLate        Code = "TXM0111"
	CodeRunning     Code = "TXM0112"
	CodeCrashed     Code = "TXM0113"
	CodeInProgress  Code = "TXM0114"
	CodeOtherInput  Code = "TXM0115"
	CodeAborted     Code = "TXM0116"
	CodeUnanswered  Code = "TXM0117"
	CodeStillUndo   Code = "TXM0118"
	CodeStuck       Code = "TXM0119"
	CodeNested      Code = "TXM0120"
	CodeUnjudgeable Code = "TXM0121"
	CodeRule        Code = "TXM0122"
	CodeNotTaking   Code = "TXM0123"
	CodeBadHeader   Code = "TXM0124"
	CodeUpgrade     Code = "TXM0125"
	CodePeerUnknown Code = "TXM0126"
	CodeBranches    Code = "TXM0127"
	CodeDenied      Code = "TXM0128"
	CodeUnary       Code = "TXM0129"
	CodeTypes       Code = "TXM0130"
	CodeMismatch    Code = "TXM0131"
)

// Explanation is what a code means and what to do about it.
type Explanation struct {
	Code   Code
	Status int
	Title  string
	Remedy string
}

// Explain returns what a code of the table means; a code that is not there explains nothing.
func Explain(code Code) Explanation {
	for _, x := range Codes() {
		if x.Code == code {
			return x
		}
	}
	return Explanation{}
}

// Codes returns the table, in order of the codes.
func Codes() []Explanation {
	return []Explanation{
		{CodeForged, 400, "transaction context is not signed by this mesh", "send the tx-context or baggage that the request came with, unchanged; give all sidecars the same mesh secret"},
		{CodeExpired, 409, "transaction context has expired", "begin a new transaction; raise the timeout of the start rule if the work takes longer"},
		{CodeLost, 428, "call without its transaction context", "pass traceparent or baggage from the request on to the call, or set required: Never on the rule"},
		{CodeAmbiguous, 409, "call could belong to more than one transaction", "pass baggage on to the call, or use a trace-id per request"},
		{CodeDecided, 409, "transaction is already decided", "do not call after the request was answered; set async: Detach on the rule to let such calls pass outside of the transaction"},
		{CodeConflict, 422, "call repeated with other content", "use a new Idempotency-Key for a new call"},
		{CodeJournal, 503, "journal does not answer", "retry later; look at the sidecar's log and disk"},
		{CodeOwner, 503, "sidecar that owns the transaction does not answer", "retry later; see /readyz of the sidecar named in tx-id"},
		{CodeTooLarge, 413, "body is larger than the rule's buffer", "send less, raise max-body, or let the rule read headers only"},
		{CodeNotHome, 503, "another sidecar keeps this branch", "send the call to the endpoint that was chosen first; take load balancers out from between the sidecars"},
		{CodeLate, 409, "call came after its transaction had given it up", "nothing to do: it was not forwarded"},
		{CodeRunning, 425, "a call of this branch is still running", "retry after a moment"},
		{CodeCrashed, 503, "outcome of the first call of this branch is not known", "give the rule a query, or barrier: Key if the service keeps answers by Idempotency-Key"},
		{CodeInProgress, 409, "request with this key is still being served", "retry after the time in Retry-After"},
		{CodeOtherInput, 422, "key was used for another request", "use a new Idempotency-Key for a new request"},
		{CodeAborted, 409, "transaction was aborted", "nothing was kept: the request may be made again with a new key"},
		{CodeUnanswered, 502, "service did not answer, transaction aborted", "nothing was kept: the request may be made again with a new key"},
		{CodeStillUndo, 202, "transaction is still settling", "ask for its status with the id in tx-id"},
		{CodeStuck, 500, "transaction needs an operator", "run `txmesh tx show` with the id in tx-id, then retry or skip the op it names"},
		{CodeNested, 409, "request came with a transaction of its own", "send it without context, or set nested: Join or New on the start rule"},
		{CodeUnjudgeable, 502, "answer could not be judged", "let the rule read headers only, or raise max-body"},
		{CodeRule, 500, "rule could not be evaluated", "mend the rule with `txmesh policy test`"},
		{CodeNotTaking, 503, "no new transactions are taken", "free disk space or wait; open transactions go on"},
		{CodeBadHeader, 400, "header of the transaction protocol is malformed", "see docs/reference/headers.md"},
		{CodeUpgrade, 400, "an upgraded connection cannot be part of a transaction", "match a narrower path or method in the rule, so that the upgrade passes beside it"},
		{CodePeerUnknown, 503, "sidecar that would keep this branch is not known yet", "start the sidecars named in peers, or take out those that are gone; set barrier: None where the service has no sidecar"},
		{CodeBranches, 422, "transaction has as many branches as are allowed", "make fewer calls in one transaction, or raise max-branches"},
		{CodeDenied, 403, "caller may not do this", "let an AccessPolicy of the service's namespace allow it, or call with a certificate that one allows"},
		{CodeUnary, 400, "only a unary call of gRPC can be part of a transaction", "name the unary methods in match.grpc, so that streams pass beside the rule"},
		{CodeTypes, 503, "types of a gRPC call are not known", "let the service serve reflection, or put spec.descriptors into the policy"},
		{CodeMismatch, 403, "sidecar names another service than its certificate", "set service at the sidecar that is named to that of its certificate, or give it one with the id spiffe://DOMAIN/ns/NAMESPACE/sa/NAME of its service"},
	}
}

// problem makes an RFC 9457 answer. id may be empty.
func problem(code Code, detail string, id txn.ID, extra ...[2]string) *Answer {
	x := Explain(code)
	body, err := json.Marshal(struct {
		Type      string `json:"type"`
		Title     string `json:"title"`
		Status    int    `json:"status"`
		Detail    string `json:"detail,omitempty"`
		Code      Code   `json:"code"`
		Tx        txn.ID `json:"tx,omitempty"`
		Remedy    string `json:"remedy"`
		Retryable bool   `json:"retryable"`
	}{"https://txmesh.io/codes#" + string(code), x.Title, x.Status, detail, code, id, x.Remedy,
		x.Status == 503 || x.Status == 425 || code == CodeInProgress})
	if err != nil {
		panic(err) // strings and integers always marshal
	}
	a := &Answer{Status: x.Status, Body: body, Header: [][2]string{{"content-type", "application/problem+json"},
		{"content-length", strconv.Itoa(len(body))}, {HeaderError, string(code)}}}
	if id != "" {
		a.Header = append(a.Header, [2]string{HeaderID, string(id)})
	}
	a.Header = append(a.Header, extra...)
	if x.Status == 503 && !slices.ContainsFunc(extra, func(h [2]string) bool { return h[0] == "retry-after" }) {
		a.Header = append(a.Header, [2]string{"retry-after", "1"})
	}
	return a
}
