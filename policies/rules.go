package policies

import (
	"time"

	"txmesh/txn"
)

// Message is one request or response as rules see it. Header compares names without case and returns "" for what
// is absent; "host" gives the request's host. Body is needed only where Reads says so, and is not kept.
type Message struct {
	Method, Path, Query string // of a request; Path still encoded, Query without '?'
	Status              int    // of a response
	Header              func(name string) string
	Trailer             func(name string) string // of a response of gRPC; nil: none
	Body                []byte                   // of gRPC: its messages, each with its head

	of *messageType // of the body, where a rule knows it
}

// as gives a message of gRPC its type, as far as that is known.
func (m *Message) as(t *messageType) *Message {
	if m == nil || t == nil {
		return m
	}
	typed := *m
	typed.of = t
	return &typed
}

func (m *Message) header(name string) string {
	if m == nil || m.Header == nil {
		return ""
	}
	return m.Header(name)
}

// Reads says which bodies a rule looks into; the others may stream.
type Reads struct {
	RequestBody  bool
	ResponseBody bool
}

// When says at what moment the root's client is answered.
type When uint8

// AtDecision is as soon as the decision is durable, AfterConfirm when every branch is confirmed, AfterUndo when
// every undo is done.
const (
	AtDecision When = iota
	AfterConfirm
	AfterUndo
)

// Reply is when the root's client is answered. Max bounds the waiting.
type Reply struct {
	OnCommit When
	OnAbort  When
	Max      time.Duration
}

// Nested says what a start rule does with a request that already belongs to a transaction.
type Nested uint8

// NestedJoin makes the request part of that transaction, NestedNew opens one of its own, NestedReject answers an error.
const (
	NestedJoin Nested = iota
	NestedNew
	NestedReject
)

// Kind is how a branch is settled.
type Kind uint8

// Undo calls back after an abort; Reserve is confirmed or cancelled; Hold is sent after the commit; Irreversible
// has no way back.
const (
	Undo Kind = iota
	Reserve
	Hold
	Irreversible
)

// Barrier says who keeps repeats, late calls and empty undos from doing harm.
type Barrier uint8

// NoBarrier is nobody; Proxy the callee's sidecar; Key the callee by its Idempotency-Key, and its sidecar if it has
// one; Database the callee in its own database.
const (
	NoBarrier Barrier = iota
	Proxy
	Key
	Database
)

// Required says when a call that a rule names must belong to a transaction.
type Required uint8

// InFlight is while a transaction is in flight in this sidecar.
const (
	InFlight Required = iota
	Always
	Never
)

// Reaction says what is done with a call whose transaction is lost or ambiguous.
type Reaction uint8

// Refuse answers an error; Pass counts it, says so and lets the call go untagged.
const (
	Refuse Reaction = iota
	Pass
)

// Async says what is done with a call that comes after the decision.
type Async uint8

// RefuseLate answers 409; Detach lets it pass untagged.
const (
	RefuseLate Async = iota
	Detach
)

// Start is a rule by which an inbound request opens a transaction. It never changes and is safe for many
// goroutines.
type Start struct {
	Policy   string // namespace/name
	Name     string
	Shadow   bool
	Timeout  time.Duration
	Reply    Reply
	Nested   Nested
	Own      *Call  // undo, confirm and query of the root's own writes: branch 0; nil: none
	Document string // hash of the policy document

	source     Source
	match      match
	key        *expr    // nil: the Idempotency-Key header
	commitWhen *expr    // nil: response.code < 400, or gRPC's OK
	reads      *tree    // of both, for this rule's own expressions
	wants      []string // services of gRPC whose descriptors are missing
	at         pos
}

// Call is a rule by which an outbound request is a branch. It never changes and is safe for many goroutines.
type Call struct {
	Policy    string // namespace/name
	Name      string
	Kind      Kind
	Shadow    bool
	Barrier   Barrier
	OnUnknown txn.Resolve
	Required  Required
	Ambiguous Reaction
	Lost      Reaction
	Async     Async
	Timeout   time.Duration // of the forward call; 0: the plan's
	Retry     txn.Retry     // undoRetry

	AbsentAfter time.Duration // how long a query's "not there" may still be early
	Reason      string        // why it is irreversible
	Document    string        // hash of the policy document

	root    bool     // the own writes of a start rule
	wants   []string // services of gRPC whose descriptors are missing
	source  Source
	match   match
	key     *expr // nil: the Idempotency-Key header
	outcome []outcomeRule
	ops     [txn.NumOps]*op
	answer  *expr // of the query; nil: the whole body

	heldHeaders    []string
	recorded       *tree // what Record and RecordAnswer keep
	reads          *tree // of the forward's own outcome rules
	keyReads       *tree
	recordsHost    bool // a template takes whole URLs: keep the host to compare with
	undoBeforehand bool // undo.when reads the response alone: its result is recorded instead of what it reads
	at             pos
}

type outcomeRule struct {
	when *expr
	is   txn.Outcome
}

// op is one later call of a branch.
type op struct {
	when    *expr // of an undo
	method  string
	grpc    *method   // nil: over HTTP, or the held call itself
	resends *expr     // of gRPC: request.message or response.message, sent as it is
	path    *template // nil: of a held call, the recorded one
	params  []named
	headers []named
	body    *shape // nil: none
	form    []named
	auth    *Auth
	outcome []outcomeRule

	recorded *tree // what its templates read
	reads    *tree // what its outcome rules read
}

type named struct {
	name  string
	value *template
}

// Auth is a credential that the caller of an op adds. It names a secret and never holds one.
type Auth struct {
	Bearer Secret
}

// Secret is a reference into the secrets of the policy's namespace.
type Secret struct {
	Namespace, Name, Key string
}

// Request is a rendered call.
type Request struct {
	Service string // namespace/name; empty: by Host
	Host    string // of the rule; empty: the service's own
	Method  string
	Path    string // encoded
	Query   string // encoded, without '?'
	Header  [][2]string
	Body    []byte
	Auth    *Auth // nil: none
}

// Has reports whether the rule says what to do for an op: undo, commit (a confirm or the delivery of a held call)
// or ask (a query).
func (c *Call) Has(o txn.Op) bool { return o < txn.NumOps && c.ops[o] != nil }

// HasOutcome reports whether the rule judges the answers to an op by outcome rules of its own.
func (c *Call) HasOutcome(o txn.Op) bool {
	rules, _ := c.rulesOf(o)
	return len(rules) > 0
}

// ReadsAnswer reports whether an op is rendered from the forward's response, whose answer must then be durable
// before the application sees it.
func (c *Call) ReadsAnswer(o txn.Op) bool {
	return c.Has(o) && (c.ops[o].recorded.reads("response") || c.ops[o].when != nil && c.ops[o].when.reads.reads("response"))
}

// Source is the canonical source of the rule's document; Recompile makes the rule again from it.
func (c *Call) Source() Source { return c.source }
