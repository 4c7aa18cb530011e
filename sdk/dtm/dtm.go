// Package dtm is a client of the DTM protocol over HTTP: it begins sagas, TCC and XA transactions, two-phase messages
// and workflows at a DTM door, and answers the calls that the door makes. It decides nothing about a transaction and
// keeps nothing; the local halves, barrier and XA, are in dtmsql and dtmredis. Start at NewSaga, or at Handle for a
// participant.
package dtm

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"strings"
	"time"
)

// What a call has come to, if it was not a success. An error that is none of these is of unknown outcome and repeated.
var (
	ErrFailure    = errors.New("FAILURE")    // it was refused: the transaction is rolled back
	ErrOngoing    = errors.New("ONGOING")    // it is not decided yet: ask again
	ErrDuplicated = errors.New("DUPLICATED") // the message of this gid was decided before: its business must not run
	ErrNotFound   = errors.New("the door knows no such transaction")
)

// The words of the protocol that callers meet in a Branch.
const (
	OpTry        = "try"
	OpConfirm    = "confirm"
	OpCancel     = "cancel"
	OpAction     = "action"
	OpCompensate = "compensate"
	OpCommit     = "commit"
	OpRollback   = "rollback"
	OpMsg        = "msg"

	TypeSaga     = "saga"
	TypeTCC      = "tcc"
	TypeXA       = "xa"
	TypeMsg      = "msg"
	TypeWorkflow = "workflow"
)

// msgBranch is the id under which the sender of a message takes part itself.
const msgBranch = "00"

// abortMax bounds an abort or the question about a message, which are made even if the caller's context has ended.
const abortMax = 30 * time.Second

// Options are common to all transactions; the zero value leaves each to the door. Times go out in whole seconds,
// rounded up. RetryLimit counts for sagas only.
type Options struct {
	WaitResult     bool // Submit returns when the door has tried everything once; Query tells failed from unfinished
	TimeoutToFail  time.Duration
	RetryInterval  time.Duration
	RequestTimeout time.Duration // of each call to a branch, and of each call to the door
	RetryLimit     int
	BranchHeaders  map[string]string // sent with every call to a branch
}

// Global names one transaction at one door. Nothing of it may change once the transaction was begun.
type Global struct {
	Server string       // base URL of the door, such as http://localhost:36789/api/dtmsvr
	HTTP   *http.Client // nil means http.DefaultClient
	GID    string
	Options
}

// body is a transaction on the wire, in the dialect of the Go client: the first four always, others if they say something.
type body struct {
	GID        string `json:"gid"`
	TransType  string `json:"trans_type"`
	Protocol   string `json:"protocol"`
	Concurrent bool   `json:"concurrent"`

	Steps          []map[string]string `json:"steps,omitempty"`
	Payloads       []string            `json:"payloads,omitempty"`
	CustomData     string              `json:"custom_data,omitempty"`
	QueryPrepared  string              `json:"query_prepared,omitempty"`
	WaitResult     bool                `json:"wait_result,omitempty"`
	TimeoutToFail  int64               `json:"timeout_to_fail,omitempty"`
	RequestTimeout int64               `json:"request_timeout,omitempty"`
	RetryInterval  int64               `json:"retry_interval,omitempty"`
	RetryLimit     int                 `json:"retry_limit,omitempty"`
	BranchHeaders  map[string]string   `json:"branch_headers,omitempty"`
	RollbackReason string              `json:"rollback_reason,omitempty"`
	ReqExtra       map[string]string   `json:"req_extra,omitempty"`
}

func (g *Global) body(transType string) body {
	return body{
		GID: g.GID, TransType: transType,
		WaitResult: g.WaitResult, TimeoutToFail: seconds(g.TimeoutToFail), RequestTimeout: seconds(g.RequestTimeout),
		RetryInterval: seconds(g.RetryInterval), RetryLimit: g.RetryLimit, BranchHeaders: g.BranchHeaders,
	}
}

func seconds(d time.Duration) int64 { return int64((d + time.Second - 1) / time.Second) }

// post sends one transaction to the door.
func (g *Global) post(ctx context.Context, verb string, b body) ([]byte, error) {
	if g.GID == "" {
		return nil, fmt.Errorf("%s %s: gid is empty; get one from Client.NewGID or choose your own", verb, b.TransType)
	}
	ctx, stop := g.bound(ctx)
	defer stop()
	answer, err := Client{Server: g.Server, HTTP: g.HTTP}.post(ctx, verb, b)
	if err != nil {
		return nil, fmt.Errorf("%s %s %s: %w", verb, b.TransType, g.GID, err)
	}
	return answer, nil
}

func (g *Global) bound(ctx context.Context) (context.Context, context.CancelFunc) {
	if g.RequestTimeout == 0 {
		return context.WithCancel(ctx)
	}
	return context.WithTimeout(ctx, g.RequestTimeout)
}

// register tells the door of a branch before it is called.
func (g *Global) register(ctx context.Context, transType, branch string, fields map[string]string) error {
	fields["gid"], fields["trans_type"], fields["branch_id"] = g.GID, transType, branch
	ctx, stop := g.bound(ctx)
	defer stop()
	if _, err := (Client{Server: g.Server, HTTP: g.HTTP}).post(ctx, "registerBranch", fields); err != nil {
		return fmt.Errorf("register branch %s of %s %s: %w", branch, transType, g.GID, err)
	}
	return nil
}

// run is the frame of TCC and XA: whatever ends fn but success aborts, even a panic or a cancelled context.
func (g *Global) run(ctx context.Context, transType string, fn func(context.Context) error) error {
	if _, err := g.post(ctx, "prepare", g.body(transType)); err != nil {
		return err
	}
	returned := false
	defer func() {
		if !returned {
			_ = g.abort(ctx, transType, "panic") // the panic says more; without the abort the door's deadline decides
		}
	}()
	err := fn(ctx)
	returned = true
	if err != nil {
		return errors.Join(err, g.abort(ctx, transType, err.Error()))
	}
	_, err = g.post(ctx, "submit", g.body(transType))
	return err
}

func (g *Global) abort(ctx context.Context, transType, reason string) error {
	const reasonBytesMax = 1023 // some doors keep no more
	if len(reason) > reasonBytesMax {
		reason = strings.ToValidUTF8(reason[:reasonBytesMax], "")
	}
	ctx, stop := context.WithTimeout(context.WithoutCancel(ctx), abortMax)
	defer stop()
	b := g.body(transType)
	b.RollbackReason = reason
	_, err := g.post(ctx, "abort", b)
	return err
}

// payloadText is a payload as the door keeps it: bytes as they are, nil as nothing, all else as JSON. The door calls
// a branch without payload with GET.
func payloadText(payload any) (string, error) {
	switch p := payload.(type) {
	case nil:
		return "", nil
	case []byte:
		return string(p), nil
	case json.RawMessage:
		return string(p), nil
	}
	text, err := json.Marshal(payload)
	return string(text), err
}
