package dtm

import (
	"bytes"
	"encoding/json"
	"fmt"
	"net/http"
	"net/url"
	"strings"
	"sync"

	"github.com/oklog/ulid/v2"
	"google.golang.org/protobuf/encoding/protowire"

	"txmesh/interceptor"
	"txmesh/txn"
)

// Codes of gRPC and JSON-RPC that say more than "an error".
const (
	grpcOK                 = 0
	grpcFailedPrecondition = 9
	grpcAborted            = 10

	rpcFailure = -32901
	rpcOngoing = -32902
)

// asked is one call in DTM's words.
type asked struct {
	gid, transType, branch, op string
	protocol                   string
	body                       []byte
	headers                    map[string]string
}

// askedOf translates a call of the engine.
func (s *Service) askedOf(c txn.Call) (asked, error) {
	n, err := s.notes.get(c.TxNote)
	if err != nil {
		return asked{}, err
	}
	a := asked{gid: string(c.Tx), transType: typeOf(c.Mode), branch: c.Branch, protocol: n.Protocol, body: c.Note,
		headers: n.Options.BranchHeaders}
	switch {
	case c.Op == txn.Ask && c.Branch == "" && c.Mode == txn.Workflow:
		var w workflowData
		if err := json.Unmarshal([]byte(n.CustomData), &w); err != nil {
			return a, fmt.Errorf("custom_data of the workflow: %w", err)
		}
		a.branch, a.op, a.body = askBranch, w.Name, w.Data
	case c.Op == txn.Ask && c.Branch == "":
		a.branch, a.op, a.body = askBranch, opMsg, nil
	default:
		if a.op = wordOf(a.transType, c.Op); a.op == "" {
			return a, fmt.Errorf("%s is not asked of a branch of a %s", c.Op, a.transType)
		}
		if a.transType == typeXA {
			a.body = nil
		}
	}
	return a, nil
}

// workflowData is what custom_data of a workflow says.
type workflowData struct {
	Name string `json:"name"`
	Data []byte `json:"data"` // base64 on the wire
}

func wordOf(transType string, op txn.Op) string {
	k, _ := kindOf(transType)
	for _, o := range k.ops() {
		if o.op == op {
			return o.word
		}
	}
	return ""
}

// Request implements interceptor.Door.
func (s *Service) Request(c txn.Call) (*interceptor.Direct, error) {
	a, err := s.askedOf(c)
	if err != nil {
		return nil, err
	}
	to := string(c.Target)
	isURL := strings.HasPrefix(to, "http://") || strings.HasPrefix(to, "https://")
	switch {
	case a.protocol == protocolJSONRPC && strings.Contains(to, "method"):
		return a.jsonRPC(to)
	case a.protocol == "" || a.protocol == protocolHTTP || isURL:
		return a.http(to), nil
	default:
		return a.grpc(to), nil
	}
}

// notes keeps decoded notes: those of one client are mostly the same bytes.
type notes struct {
	mu     sync.Mutex // guards byText
	byText map[string]note
}

// What is kept: so many notes, and none with data of its own transaction.
const (
	notesMax     = 1000
	noteBytesMax = 256
)

// get decodes a note. What it returns is shared and read only.
func (ns *notes) get(text []byte) (note, error) {
	ns.mu.Lock()
	defer ns.mu.Unlock()
	if n, ok := ns.byText[string(text)]; ok {
		return n, nil
	}
	n, err := decodeNote(text)
	if err != nil || len(text) > noteBytesMax {
		return n, err
	}
	if ns.byText == nil || len(ns.byText) >= notesMax {
		ns.byText = map[string]note{}
	}
	ns.byText[string(text)] = n
	return n, nil
}

// http adds who calls to the query. Without a body the verb is GET, but of xa.
func (a asked) http(to string) *interceptor.Direct {
	base, _, _ := strings.Cut(to, "#")
	separator := "?"
	if strings.Contains(base, "?") {
		separator = "&"
	}
	full := base + separator + "branch_id=" + url.QueryEscape(a.branch) + "&gid=" + url.QueryEscape(a.gid) +
		"&op=" + url.QueryEscape(a.op) + "&trans_type=" + url.QueryEscape(a.transType)
	d := &interceptor.Direct{Method: http.MethodGet, URL: full, Body: a.body, Header: a.jsonHeaders()}
	if len(a.body) > 0 || a.transType == typeXA {
		d.Method = http.MethodPost
	}
	return d
}

func (a asked) jsonHeaders() http.Header {
	h := http.Header{"Content-Type": {"application/json"}, "Accept": {"application/json"}}
	for name, value := range a.headers {
		h.Set(name, value)
	}
	return h
}

// jsonRPC puts who calls among the params; the method is a query parameter of the URL.
func (a asked) jsonRPC(to string) (*interceptor.Direct, error) {
	u, err := url.Parse(to)
	if err != nil {
		return nil, err
	}
	params := map[string]json.RawMessage{}
	if len(a.body) > 0 {
		if err := json.Unmarshal(a.body, &params); err != nil {
			return nil, fmt.Errorf("payload of branch %s: want a JSON object for a JSON-RPC call: %w", a.branch, err)
		}
	}
	for name, value := range map[string]string{"gid": a.gid, "trans_type": a.transType, "branch_id": a.branch, "op": a.op} {
		params[name] = jsonText(value)
	}
	body, err := json.Marshal(map[string]any{"jsonrpc": "2.0", "id": ulid.Make().String(),
		"method": u.Query().Get("method"), "params": params})
	if err != nil {
		return nil, err
	}
	return &interceptor.Direct{Method: http.MethodPost, URL: to, Body: body, Header: a.jsonHeaders()}, nil
}

func jsonText(s string) json.RawMessage {
	b, err := json.Marshal(s)
	if err != nil {
		panic("dtm: text that is no JSON: " + err.Error())
	}
	return b
}

func (a asked) grpc(to string) *interceptor.Direct {
	h := http.Header{"dtm-gid": {a.gid}, "dtm-trans_type": {a.transType}, "dtm-branch_id": {a.branch}, "dtm-op": {a.op},
		"dtm-dtm": {""}}
	for name, value := range a.headers {
		h[strings.ToLower(name)] = []string{value}
	}
	body := a.body
	if a.transType == typeWorkflow {
		body = workflowMessage(body)
	}
	return &interceptor.Direct{Protocol: interceptor.GRPC, URL: to, Header: h, Body: body}
}

// Judge implements interceptor.Door: first the dialect's reading of the answer, then what it means for the op.
func (s *Service) Judge(c txn.Call, a interceptor.DirectAnswer) (txn.Outcome, []byte, string) {
	out, cause := read(c, a)
	if out != txn.OK {
		s.alerts.failed(c, cause)
	}
	s.metrics.branch(typeOf(c.Mode), c.Op, out)
	if c.Op == txn.Ask && c.Mode == txn.Workflow && (out == txn.OK || out == txn.Refused) {
		// What a workflow answers decides nothing: it submits its end by itself. Until then it is asked again.
		return txn.Pending, nil, "called again; it has not submitted its end yet"
	}
	return out, nil, cause
}

// read classifies an answer. The order is the protocol's: "ongoing" by status or word, then "failure", then errors.
func read(c txn.Call, a interceptor.DirectAnswer) (txn.Outcome, string) {
	switch {
	case a.Err != nil:
		return txn.Unknown, a.Err.Error()
	case a.Reply.Status == 0:
		return readGRPC(a)
	}
	body := a.Reply.Body
	switch {
	case a.Reply.Status == http.StatusTooEarly || bytes.Contains(body, []byte(wordOngoing)):
		return txn.Pending, clip(string(body))
	case a.Reply.Status == http.StatusConflict || bytes.Contains(body, []byte(wordFailure)):
		return txn.Refused, clip(string(body))
	case a.Reply.Status != http.StatusOK:
		return txn.Unknown, fmt.Sprintf("answered %d: %s", a.Reply.Status, clip(string(body)))
	case bytes.Contains(c.Target, []byte("method")):
		if n, err := decodeNote(c.TxNote); err != nil {
			return txn.Unknown, err.Error()
		} else if n.Protocol == protocolJSONRPC {
			return readJSONRPC(a.Reply.Body)
		}
	}
	return txn.OK, ""
}

func readJSONRPC(body []byte) (txn.Outcome, string) {
	var r struct {
		Error *struct {
			Code    int             `json:"code"`
			Message json.RawMessage `json:"message"`
		} `json:"error"`
	}
	switch err := json.Unmarshal(body, &r); {
	case err != nil:
		return txn.Unknown, "answer is no JSON-RPC: " + err.Error()
	case r.Error == nil:
		return txn.OK, ""
	}
	message := clip(string(r.Error.Message))
	if text := ""; json.Unmarshal(r.Error.Message, &text) == nil {
		message = clip(text)
	}
	switch r.Error.Code {
	case rpcFailure:
		return txn.Refused, message
	case rpcOngoing:
		return txn.Pending, message
	default:
		return txn.Unknown, fmt.Sprintf("error %d: %s", r.Error.Code, message)
	}
}

// readGRPC reads a status. Before release 1.10 "ongoing" was an Aborted with that word.
func readGRPC(a interceptor.DirectAnswer) (txn.Outcome, string) {
	switch {
	case a.Code == grpcOK:
		return txn.OK, ""
	case a.Code == grpcFailedPrecondition, a.Code == grpcAborted && a.Message == wordOngoing:
		return txn.Pending, clip(a.Message)
	case a.Code == grpcAborted:
		return txn.Refused, clip(a.Message)
	default:
		return txn.Unknown, fmt.Sprintf("answered %d: %s", a.Code, clip(a.Message))
	}
}

// causeMax bounds what is kept of an answer.
const causeMax = 1024

func clip(s string) string {
	if len(s) > causeMax {
		s = strings.ToValidUTF8(s[:causeMax], "")
	}
	return s
}

// workflowMessage is workflow.WorkflowData{Data}, field 1 of type bytes.
func workflowMessage(data []byte) []byte {
	return protowire.AppendBytes(protowire.AppendTag(nil, 1, protowire.BytesType), data)
}
