package admin

import (
	"encoding/json"
	"net/http"

	"txmesh/interceptor"
	"txmesh/txn"
)

// Code is one row of the table of refusals: TXM0300 to TXM0349. docs/reference/codes.md has a paragraph for each.
type Code struct {
	Code   string
	Status int
	Title  string
	Remedy string
}

// The codes. A number is for ever.
const (
	codeUnauthorized = "TXM0300"
	codeMalformed    = "TXM0301"
	codeValue        = "TXM0302"
	codeNotFound     = "TXM0303"
	codeDecided      = "TXM0304"
	codeRooted       = "TXM0305"
	codeNotWaiting   = "TXM0306"
	codeNoOp         = "TXM0307"
	codeNotTaking    = "TXM0308"
	codeJournal      = "TXM0309"
	codeRoute        = "TXM0310"
	codeMethod       = "TXM0311"
	codeTooLarge     = "TXM0312"
	codeNotReady     = "TXM0313"
	codeMode         = "TXM0314"
	codeRepeated     = "TXM0315"
	codeBranches     = "TXM0316"
	codeForeign      = "TXM0317"
	codeDenied       = "TXM0318"
	codeUnreadable   = "TXM0319"
	codeHead         = "TXM0320"
	codeSlow         = "TXM0321"
	codeBroken       = "TXM0322"
)

// Codes returns the table, in the order of the numbers.
func Codes() []Code {
	return []Code{
		{codeUnauthorized, 401, "the API needs its token", "send Authorization: Bearer with the content of token-file; the sidecar logs its path at start"},
		{codeMalformed, 400, "request body is malformed", "send the JSON object that docs/reference/api.md shows"},
		{codeValue, 400, "a value is not allowed", "correct the value that the detail names"},
		{codeNotFound, 404, "no such transaction", "check the id; finished transactions are forgotten after the retention"},
		{codeDecided, 409, "transaction is already decided otherwise", "read its status; a decision never changes"},
		{codeRooted, 409, "transaction is decided by its own door", "let its root request, its branches or its own client decide, or abort it"},
		{codeNotWaiting, 409, "op does not wait for an operator", "read the transaction again: the op is done, in flight or not yet due"},
		{codeNoOp, 404, "no such branch, op or act", "read the transaction: it lists its branches with their ops; acts are retry and skip"},
		{codeNotTaking, 503, "no new transactions are taken", "retry later; open transactions go on"},
		{codeJournal, 503, "journal does not answer", "retry later; look at the sidecar's log and disk"},
		{codeRoute, 404, "no such resource", "see docs/reference/api.md"},
		{codeMethod, 405, "method is not allowed here", "use a method of the Allow header"},
		{codeTooLarge, 413, "request body is too large", "send at most 1 MiB"},
		{codeNotReady, 503, "sidecar is not ready", "wait; the detail says for what"},
		{codeMode, 409, "the mode of this transaction has no such act", "see docs/guide/modes.md for what each mode takes"},
		{codeRepeated, 422, "repeated with other content", "repeat the first request byte for byte, or use a new key or id"},
		{codeBranches, 409, "transaction has too many branches", "begin another one, or raise max-branches"},
		{codeForeign, 409, "transaction of another server cannot be taken over", "let it end where it is; see docs/guide/migrate-dtm.md"},
		{codeDenied, 403, "the client's certificate does not grant this", "let an AccessPolicy of the service's namespace allow it, or send the token"},
		{codeUnreadable, 400, "request is not one of HTTP/1.1", "send the request as RFC 9112 has it; the detail says where it is not"},
		{codeHead, 431, "request head is too large", "send fewer or shorter header fields, 32 KiB in all"},
		{codeSlow, 408, "request came too slowly", "send the head within 10 s and its body within 30 s after it"},
		{codeBroken, 500, "the sidecar failed in this request", "read the transaction again, its effect is unknown; report what the sidecar's log says of the panic"},
	}
}

// fault is an RFC 9457 answer.
type fault struct {
	Type      string `json:"type"`
	Title     string `json:"title"`
	Status    int    `json:"status"`
	Detail    string `json:"detail,omitempty"`
	Code      string `json:"code"`
	Tx        txn.ID `json:"tx,omitempty"`
	Remedy    string `json:"remedy"`
	Retryable bool   `json:"retryable"`
}

func problem(code, detail string, id txn.ID) fault {
	for _, c := range Codes() {
		if c.Code == code {
			return fault{"https://txmesh.io/codes#" + code, c.Title, c.Status, detail, code, id, c.Remedy, c.Status == 503}
		}
	}
	panic("admin: code without a row: " + code)
}

func write(w http.ResponseWriter, f fault) {
	body, err := json.Marshal(f)
	if err != nil {
		panic("admin: problem that is not JSON: " + err.Error())
	}
	w.Header().Set("Content-Type", "application/problem+json")
	w.Header().Set(interceptor.HeaderError, f.Code)
	if f.Tx != "" {
		w.Header().Set(interceptor.HeaderID, string(f.Tx))
	}
	if f.Status == http.StatusServiceUnavailable {
		w.Header().Set("Retry-After", "1")
	}
	w.WriteHeader(f.Status)
	// A client that went away cannot be told.
	_, _ = w.Write(append(body, '\n'))
}

// Refuse answers a request that no handler answers: 400 for one that is no HTTP, 408 for one that came too slowly, 431
// for a head that is too large, 500 for one whose handler panicked.
func (*Server) Refuse(w http.ResponseWriter, status int, detail string) {
	code := codeUnreadable
	switch status {
	case http.StatusRequestTimeout:
		code = codeSlow
	case http.StatusRequestHeaderFieldsTooLarge:
		code = codeHead
	case http.StatusInternalServerError:
		code = codeBroken
	}
	write(w, problem(code, detail, ""))
}
