package dtm

import (
	"encoding/json"
	"fmt"
	"strings"
	"time"

	"golang.org/x/net/http/httpguts"

	"txmesh/txn"
)

// The words of the protocol.
const (
	typeSaga     = "saga"
	typeTCC      = "tcc"
	typeXA       = "xa"
	typeMsg      = "msg"
	typeWorkflow = "workflow"

	statusPrepared  = "prepared"
	statusSubmitted = "submitted"
	statusAborting  = "aborting"
	statusSucceed   = "succeed"
	statusFailed    = "failed"

	opAction     = "action"
	opCompensate = "compensate"
	opConfirm    = "confirm"
	opCancel     = "cancel"
	opCommit     = "commit"
	opRollback   = "rollback"
	opMsg        = "msg"

	wordSuccess = "SUCCESS"
	wordFailure = "FAILURE"
	wordOngoing = "ONGOING"

	protocolHTTP    = "http"
	protocolGRPC    = "grpc"
	protocolJSONRPC = "json-rpc"

	topicPrefix = "topic://"
	askBranch   = "00" // the branch id of a question to the initiator
)

// kind is a transaction type as data: which row of the engine's table it is, and what the ops of a branch are called.
type kind struct {
	mode  txn.Mode
	rows  [2]opName
	count int
}

type opName struct {
	word string
	op   txn.Op
}

func kindOf(transType string) (k kind, ok bool) {
	switch transType {
	case typeSaga:
		return kind{txn.Saga, [2]opName{{opCompensate, txn.Undo}, {opAction, txn.Forward}}, 2}, true
	case typeTCC:
		return kind{txn.TCC, [2]opName{{opCancel, txn.Undo}, {opConfirm, txn.Commit}}, 2}, true
	case typeXA:
		return kind{txn.XA, [2]opName{{opRollback, txn.Undo}, {opCommit, txn.Commit}}, 2}, true
	case typeMsg:
		return kind{txn.Msg, [2]opName{{opAction, txn.Commit}}, 1}, true
	case typeWorkflow:
		return kind{mode: txn.Workflow}, true
	default:
		return kind{}, false
	}
}

// ops are the rows of a branch in the order in which a query lists them.
func (k *kind) ops() []opName { return k.rows[:k.count] }

// typeOf is the inverse of kindOf.
func typeOf(m txn.Mode) string {
	if m == txn.SagaGraph {
		return typeSaga
	}
	return string(m)
}

// plan is the row of the engine's table, in the order that DTM keeps: confirms and cancels run from the last branch to the
// first.
func plan(t *transaction, mode txn.Mode) txn.Plan {
	p := mode.Plan()
	switch t.Type {
	case typeTCC:
		p.Chain, p.Backward = true, true
	case typeMsg:
		p.Chain = !t.Concurrent
	case typeSaga:
		if t.RetryLimit > 0 {
			p.ForwardLimit = int(t.RetryLimit) + 1
		}
	}
	return p
}

// status is the word for where a transaction stands.
func status(st *txn.State) string {
	switch st.Phase {
	case txn.Open:
		if st.Spec.Plan.Drives {
			return statusSubmitted
		}
		return statusPrepared
	case txn.Committing:
		return statusSubmitted
	case txn.Aborting:
		return statusAborting
	case txn.Stuck:
		if st.Commit {
			return statusSubmitted
		}
		return statusAborting
	case txn.Committed:
		return statusSucceed
	case txn.Aborted, txn.Ceased:
		return statusFailed
	default:
		panic("dtm: phase " + st.Phase.String())
	}
}

// phases are those that a status word selects in a listing; some select more than they mean and are looked at again.
func phases(word string) []txn.Phase {
	switch word {
	case statusPrepared:
		return []txn.Phase{txn.Open}
	case statusSubmitted:
		return []txn.Phase{txn.Open, txn.Committing, txn.Stuck}
	case statusAborting:
		return []txn.Phase{txn.Aborting, txn.Stuck}
	case statusSucceed:
		return []txn.Phase{txn.Committed}
	case statusFailed:
		return []txn.Phase{txn.Aborted, txn.Ceased}
	default:
		return nil
	}
}

// transaction is the body of prepare, submit, abort and prepareWorkflow. Unknown fields are ignored, null is taken for
// every field.
type transaction struct {
	GID           string              `json:"gid"`
	Type          string              `json:"trans_type"`
	Steps         []map[string]string `json:"steps"`
	Payloads      []string            `json:"payloads"`
	CustomData    string              `json:"custom_data"`
	QueryPrepared string              `json:"query_prepared"`
	Protocol      string              `json:"protocol"`
	Concurrent    bool                `json:"concurrent"`

	RollbackReason string            `json:"rollback_reason"`
	ReqExtra       map[string]string `json:"req_extra"`
	options

	binPayloads [][]byte // of gRPC, instead of Payloads
}

// options is what a client may set. Times are whole seconds on the wire.
type options struct {
	WaitResult     bool    `json:"wait_result,omitempty" cbor:"1,keyasint,omitempty"`
	TimeoutToFail  int64   `json:"timeout_to_fail,omitempty" cbor:"2,keyasint,omitempty"`
	RequestTimeout int64   `json:"request_timeout,omitempty" cbor:"3,keyasint,omitempty"`
	RetryInterval  int64   `json:"retry_interval,omitempty" cbor:"4,keyasint,omitempty"`
	BranchHeaders  headers `json:"branch_headers,omitempty" cbor:"5,keyasint,omitempty"`
	RetryLimit     int64   `json:"retry_limit,omitempty" cbor:"6,keyasint,omitempty"`
}

// headers is a map; PHP writes an empty one as [].
type headers map[string]string

// UnmarshalJSON implements json.Unmarshaler.
func (h *headers) UnmarshalJSON(b []byte) error {
	if string(b) == "[]" {
		return nil
	}
	return json.Unmarshal(b, (*map[string]string)(h))
}

// secondsMax bounds what a client may wish for: a year.
const secondsMax = 366 * 24 * 3600

func seconds(n int64, otherwise time.Duration) time.Duration {
	if n <= 0 {
		return otherwise
	}
	return time.Duration(n) * time.Second
}

// check refuses what nobody could carry out, naming the field and the remedy.
func (t *transaction) check() error {
	if err := checkGID(t.GID); err != nil {
		return err
	}
	if _, ok := kindOf(t.Type); !ok {
		return invalid("trans_type %q: want saga, tcc, xa, msg or workflow", t.Type)
	}
	switch t.Protocol {
	case "", protocolHTTP, protocolGRPC, protocolJSONRPC:
	default:
		return invalid("protocol %q: want http, grpc or json-rpc", t.Protocol)
	}
	for _, f := range []struct {
		name string
		v    int64
	}{{"timeout_to_fail", t.TimeoutToFail}, {"request_timeout", t.RequestTimeout}, {"retry_interval", t.RetryInterval},
		{"retry_limit", t.RetryLimit}} {
		if f.v < 0 || f.v > secondsMax {
			return invalid("%s %d: want 0 to %d", f.name, f.v, secondsMax)
		}
	}
	if err := t.checkHeaders(); err != nil {
		return err
	}
	if t.Type == typeSaga || t.Type == typeMsg {
		return t.checkSteps()
	}
	return nil
}

// checkHeaders refuses what no call could carry: it would be repeated for ever. Metadata of gRPC, in which the gid travels too,
// is printable ASCII.
func (t *transaction) checkHeaders() error {
	for name, value := range t.BranchHeaders {
		if !httpguts.ValidHeaderFieldName(name) || !httpguts.ValidHeaderFieldValue(value) {
			return invalid("branch_headers: %q: %q is no header", name, value)
		}
		if t.Protocol == protocolGRPC && (strings.Trim(strings.ToLower(name), metadataName) != "" || !printable(value)) {
			return invalid("branch_headers: %q: %q is no metadata of gRPC: want printable ASCII", name, value)
		}
	}
	if t.Protocol == protocolGRPC && !printable(t.GID) {
		return invalid("gid %q cannot be metadata of gRPC: want printable ASCII", t.GID)
	}
	return nil
}

// metadataName is what names of gRPC metadata are made of.
const metadataName = "0123456789abcdefghijklmnopqrstuvwxyz-_."

func printable(s string) bool {
	return !strings.ContainsFunc(s, func(r rune) bool { return r < ' ' || r > '~' })
}

func (t *transaction) checkSteps() error {
	for i, step := range t.Steps {
		_, own := step["data"]
		if !own && i >= max(len(t.Payloads), len(t.binPayloads)) {
			return invalid("payloads: %d for %d steps; give each step one, it may be empty", max(len(t.Payloads), len(t.binPayloads)), len(t.Steps))
		}
	}
	return nil
}

// gidMax keeps ids within what the journal indexes.
const gidMax = 256

func checkGID(gid string) error {
	switch {
	case gid == "":
		return invalid("gid is empty: get one from newGid, or choose one")
	case len(gid) > gidMax:
		return invalid("gid has %d bytes, at most %d", len(gid), gidMax)
	}
	return nil
}

// cleanGID removes what DTM removes from the ids of HTTP clients.
func cleanGID(gid string) string {
	if !strings.ContainsAny(gid, "\n\r;") {
		return gid
	}
	return strings.NewReplacer("\n", "", "\r", "", ";", "").Replace(gid)
}

// payload returns the body of step i.
func (t *transaction) payload(i int) []byte {
	switch own, ok := t.Steps[i]["data"]; {
	case ok:
		return []byte(own)
	case i < len(t.binPayloads):
		return t.binPayloads[i]
	default:
		return []byte(t.Payloads[i])
	}
}

// branchID is the id of the branch with this number: two digits to a level.
func branchID(i int) string { return fmt.Sprintf("%02d", i+1) }
