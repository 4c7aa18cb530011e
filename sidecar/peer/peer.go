// Package peer lets the sidecars of a mesh talk to each other: a downstream sidecar relays Enlist and Returned to
// the owner of a transaction, an owner has a branch settled at its barrier's home, and homes ask owners about
// transactions that they have not heard of for long. It carries messages and says who is where; it decides nothing
// and never retries what is not repeatable. Start at Relay; Directory says where an owner lives.
//
// The protocol is version 1: HTTP/1.1 with JSON bodies between peer ports. Unknown fields are ignored, so that a
// later release may add some; a change of meaning gets a new path. Byte slices are base64, durations nanoseconds,
// times RFC 3339, and ops, outcomes and the like the numbers of package txn, which are for ever.
//
//	GET  /v1/identity                               -> {owner, incarnation, service, inbound, tls, spiffe}
//	POST /v1/enlist   {tx, branch, calling, ...}    -> {branch, home}
//	POST /v1/returned {tx, branch, op, outcome, ..} -> {}
//	POST /v1/settle   {home, branch, op, ...}       -> {outcome, reply, by_query, cause}
//	POST /v1/status   {ids}                         -> {phases: {id: phase or "unknown"}}
//	POST /v1/do       {owner, tx, kind, event}      -> {}   to who holds the owner's journal in a shared store
//	POST /v1/offer    {owner, epoch}                -> {}   the journal was released for who is told
//
// A refusal is {code, text} under a status of 4xx or 5xx; the codes are decided, conflict, unknown, document, busy,
// branches, misdirected, denied, mismatch, malformed, unauthorized, large and failed. "document" asks for the same enlist with the policy document in it.
//
// Where the mesh has certificates, all this goes over TLS 1.3 with a certificate on both sides; what follows is the second
// factor then, and the only one else. Both sides name their service, the one who asks in txmesh-service and the other in
// its identity: where the certificate names another one, that is a mismatch and the end of it.
//
// Every request carries txmesh-time (Unix milliseconds), txmesh-nonce and txmesh-mac, an HMAC-SHA256 with the mesh
// secret over method, path, time, nonce and body. Requests older or newer than 30 s and repeated nonces are refused.
// txmesh-head signs the same but for the body, of which it has the length: only a sender that shows it, or a certificate,
// may send more than 256 KiB. Every reply carries a txmesh-mac over the request's nonce, the status and the body.
package peer

import (
	"context"
	"errors"

	"txmesh/interceptor"
	"txmesh/policies"
	"txmesh/sidecar/engine"
	"txmesh/txn"
)

// Errors that callers branch on, beside those of package txn.
var (
	ErrUnreachable = errors.New("peer: not reachable")
	ErrMisdirected = errors.New("peer: another sidecar is responsible")
	ErrDocument    = errors.New("peer: the policy document is not known there")
)

// Identity is what a sidecar says of itself.
type Identity struct {
	Owner       string `json:"owner"`
	Incarnation string `json:"incarnation"` // new with every start of the process
	Service     string `json:"service"`
	Inbound     string `json:"inbound"`          // host:port; an unspecified host stands for that of the peer port
	TLS         bool   `json:"tls,omitempty"`    // the inbound port takes TLS of the mesh
	SPIFFE      string `json:"spiffe,omitempty"` // id of its certificate; empty: it has none
	Home        string `json:"home,omitempty"`   // where its barrier's rows live; empty: with the owner
}

// home is where the barrier's rows of this sidecar live.
func (i Identity) home() string {
	if i.Home != "" {
		return i.Home
	}
	return i.Owner
}

// Local is what runs the journals that this sidecar holds, as far as peers may use it.
type Local interface {
	// Holds reports whether the journal of an owner is run here.
	Holds(owner string) bool
	Do(ctx context.Context, id txn.ID, e txn.Event) (txn.State, error)
	// DoAndSee is Do for who wants little of the state: see may not keep the branches.
	DoAndSee(ctx context.Context, id txn.ID, e txn.Event, see func(txn.State)) error
	// Post feeds an event without waiting; a later Do of the same transaction does not overtake it.
	Post(id txn.ID, e txn.Event)
	State(ctx context.Context, id txn.ID) (txn.State, error)
}

// Documents keeps policy documents under their hash for as long as a transaction may need them.
type Documents interface {
	// Get returns a document, or an error that wraps ErrDocument.
	Get(ctx context.Context, hash string) (policies.Source, error)
	// Keep returns when the document is durable.
	Keep(ctx context.Context, hash string, doc policies.Source) error
}

// Home settles branches whose barrier row this sidecar keeps.
type Home interface {
	Settle(ctx context.Context, c interceptor.HomeCall) interceptor.HomeReply
}

// refusal pairs an error with its form on the wire.
type refusal struct {
	code   string
	status int
	err    error
}

func refusals() []refusal {
	return []refusal{
		{"decided", 409, txn.ErrDecided},
		{"conflict", 409, txn.ErrConflict},
		{"unknown", 404, txn.ErrUnknown},
		{"document", 412, ErrDocument},
		{"busy", 503, engine.ErrBusy},
		{"branches", 422, interceptor.ErrBranches},
		{"misdirected", 421, ErrMisdirected},
		{"denied", 403, interceptor.ErrDenied},
		{causeMismatch, 403, interceptor.ErrMismatch},
	}
}
