package interceptor

import (
	"context"
	"errors"
	"net/http"
	"strings"
	"time"

	"txmesh/policies"
	"txmesh/txn"
)

// ErrBranches says that a transaction has as many branches as its owner allows. Branches wraps it.
var ErrBranches = errors.New("too many branches in one transaction")

// ErrDenied says that a caller may not do what it asked for. Branches wraps it.
var ErrDenied = errors.New("not allowed by an access policy")

// ErrMismatch says that a sidecar names another service than its certificate proves. Branches wraps it.
var ErrMismatch = errors.New("not the service of the certificate")

// ErrTooLarge says that an event is larger than the journal takes.
var ErrTooLarge = errors.New("too large for the journal")

// ErrRefused says that a transaction of another server cannot be taken over, and must stay where it is.
var ErrRefused = errors.New("it cannot be taken over")

// Coordinator is the machine room of this sidecar: the engine that decides the transactions it owns.
type Coordinator interface {
	// Do feeds one event and returns when what it recorded is durable.
	Do(ctx context.Context, id txn.ID, e txn.Event) (txn.State, error)
	// Wait returns as soon as the predicate holds, or the context's error.
	Wait(ctx context.Context, id txn.ID, until func(txn.State) bool) (txn.State, error)
	// State returns an open or a finished transaction, or txn.ErrUnknown.
	State(ctx context.Context, id txn.ID) (txn.State, error)
	// Find returns the newest transaction begun under a Spec.Key, or txn.ErrUnknown.
	Find(ctx context.Context, key string) (txn.ID, error)
}

// Branches reaches the owner of a transaction, this sidecar or a peer, one hop away at most.
type Branches interface {
	// Enlist returns when the branch is durable at the owner.
	Enlist(ctx context.Context, id txn.ID, e txn.Enlist) (Placed, error)
	// Returned reports an answer. With durable it returns when the answer is; else it returns as soon as later
	// events of this sidecar cannot overtake it.
	Returned(ctx context.Context, id txn.ID, e txn.Returned, durable bool) error
}

// Placed is what the owner says of an enlisted branch.
type Placed struct {
	Branch string // number within the transaction
	Home   string // where its barrier row lives, as the first Enlist settled it
}

// Peers knows the other sidecars.
type Peers interface {
	// HomeOf returns where the sidecar that listens on this inbound endpoint keeps its barrier's rows: its owner id or a
	// SharedHome; "" if none listens there; false: not known yet, a peer that was never heard of may listen there.
	HomeOf(endpoint string) (home string, known bool)
	// EndpointOf returns the inbound endpoint of an owner; false: not known at present.
	EndpointOf(owner string) (endpoint string, ok bool)
}

// Rows keeps the barrier's rows, in the sidecar's own store or in one that the replicas of the service share.
type Rows interface {
	Load(ctx context.Context, branch string) (row []byte, found bool, err error)
	// Save replaces the row old, which Load gave or Save wrote, nil for none; with sync it survives a power cut when Save
	// returns. A nil row deletes. In a shared store a row that another replica has changed since is an error, and nothing
	// is written; in the sidecar's own store nobody else writes.
	Save(ctx context.Context, branch string, old, row []byte, sync bool) error
	// Each yields all rows until f returns false.
	Each(ctx context.Context, f func(branch string, row []byte) bool) error
}

// Runners tells the replicas that share the barrier's rows apart: a call that one of them runs is no crashed one to the
// others.
type Runners interface {
	// Name names this life of this sidecar; an error says why it may start no call at present.
	Name() (string, error)
	// Gone reports whether the sidecar of this name can be believed to run nothing any more.
	Gone(ctx context.Context, name string) bool
}

// SharedHome is the home of branches whose rows the replicas of a service share: any of them settles.
func SharedHome(service string) string { return "~" + service }

// IsSharedHome reports whether a home is not one sidecar but all replicas of a service.
func IsSharedHome(home string) bool { return strings.HasPrefix(home, "~") }

// App sends a request to the application beside this sidecar.
type App interface {
	Send(ctx context.Context, r *Outgoing) (*Reply, error)
}

// Policies gives the policy set in force. It may change between two calls.
type Policies interface {
	Current() *policies.Set
}

// Types learns what the messages of gRPC look like from the services themselves, for rules whose documents do not say it.
type Types interface {
	// Call returns the rule in a document of its own that describes what the rule reads and makes, as the service at this
	// endpoint describes it.
	Call(ctx context.Context, endpoint string, rule *policies.Call) (*policies.Call, error)
	// Start is Call for a start rule: the application beside this sidecar is asked.
	Start(ctx context.Context, rule *policies.Start) (*policies.Start, error)
}

// Documents keeps policy documents for as long as a transaction needs them.
type Documents interface {
	// Keep returns when the document is durable under its hash.
	Keep(ctx context.Context, hash string, doc policies.Source) error
}

// Door makes the requests of transactions that its own clients began, and reads their answers. It is called by many
// goroutines and does no I/O.
type Door interface {
	// Request makes the request of a call out of the targets and notes that the door wrote. An error says that no
	// repeat can make it right.
	Request(c txn.Call) (*Direct, error)
	// Judge says what an answer means.
	Judge(c txn.Call, a DirectAnswer) (out txn.Outcome, result []byte, cause string)
}

// Protocol is how a Direct request travels.
type Protocol uint8

// The protocols. A body of gRPC is passed as it is, without knowing its type.
const (
	HTTP Protocol = iota
	GRPC
)

// Direct is a request to a URL that a client of a door named, past policies and barriers.
type Direct struct {
	Protocol Protocol
	Method   string      // of HTTP
	URL      string      // absolute; of gRPC: host:port/package.Service/Method
	Header   http.Header // of gRPC: metadata
	Body     []byte
}

// DirectAnswer is what came back: an answer of HTTP, or a gRPC status, or Err, after which the request may have
// arrived or not.
type DirectAnswer struct {
	Reply   *Reply // of gRPC: its Body alone
	Code    uint32 // of gRPC
	Message string // of gRPC, beside a Code that is not 0
	Err     error
}

// Outgoing is a request made by a sidecar on its own account.
type Outgoing struct {
	Method string
	Host   string      // for the Host header
	Path   string      // encoded
	Query  string      // without '?'
	Header http.Header // canonical names
	Body   []byte
}

// Reply is a complete answer, its body bounded by the sender's limit.
type Reply struct {
	Status  int
	Header  http.Header
	Body    []byte
	Trailer http.Header // of gRPC
}

// Message is the answer as policies read it.
func (r *Reply) Message() *policies.Message {
	return &policies.Message{Status: r.Status, Header: r.Header.Get, Trailer: r.Trailer.Get, Body: r.Body}
}

// HomeCall asks the home of a branch to settle it: Undo, Commit or Ask.
type HomeCall struct {
	Home     string // owner id of the sidecar that must keep the row, or a SharedHome
	Branch   string // <transaction>-<n>
	Op       txn.Op
	Known    txn.Outcome // what the owner knows of the forward call
	Attempt  int
	Deadline time.Time // of the transaction: a row made by an early undo must outlive it
	Judged   bool      // the owner judges the answer by a rule: only it can tell that the op is done
	Request  *Outgoing // what to send to the application; for Ask the policy's query, nil if it has none
}

// HomeReply is its answer. Reply is the application's, recorded or fresh; nil where the application was not asked.
// ByQuery says that Reply answers the query, not the forward call.
type HomeReply struct {
	Outcome txn.Outcome // None of an Ask: nobody can ever know
	Reply   *Reply
	ByQuery bool
	Cause   string
}

// Fact is one record of a transaction, and when it was decided.
type Fact struct {
	At     time.Time
	Record txn.Record
}

// Title is a transaction in a listing. Next continues the listing behind it.
type Title struct {
	ID   txn.ID
	Mode txn.Mode
	Next string
}

// TitleQuery selects transactions of one door. Zero fields select all.
type TitleQuery struct {
	Door   string
	Phases []txn.Phase
	Begun  struct{ After, Before time.Time } // After is inclusive
	From   string                            // Title.Next
}
