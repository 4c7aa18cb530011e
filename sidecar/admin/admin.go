// Package admin serves the local port of a sidecar: health, readiness, metrics, profiles, and the transactions API by
// which applications begin and drive transactions of every mode and operators look at them and act on stuck ones. It
// decides nothing: every act becomes an event of the engine. For transactions that were begun with targets it is also
// the door that makes their requests and reads the answers (door.go). docs/reference/api.md and openapi.yaml describe
// it. Start at New; modes.go says what each mode offers.
package admin

import (
	"context"
	"encoding/json"
	"iter"
	"log/slog"
	"net/http"
	"net/http/pprof"
	"strings"
	"sync"
	"time"

	"txmesh/interceptor"
	"txmesh/policies"
	"txmesh/txlog"
	"txmesh/txn"
)

// Engine decides the transactions of this sidecar.
type Engine interface {
	// Begin is for an id that was made for the transaction.
	Begin(ctx context.Context, b txn.Begin) (txn.State, error)
	Do(ctx context.Context, id txn.ID, e txn.Event) (txn.State, error)
	// DoAndSee is Do for who wants little of the state: see may not keep the branches.
	DoAndSee(ctx context.Context, id txn.ID, e txn.Event, see func(txn.State)) error
	// Peek shows a transaction that is in memory, which may be ahead of the journal, and reports whether it is there.
	Peek(id txn.ID, see func(txn.State)) bool
	Wait(ctx context.Context, id txn.ID, until func(txn.State) bool) (txn.State, error)
	State(ctx context.Context, id txn.ID) (txn.State, error)
	Find(ctx context.Context, key string) (txn.ID, error)
}

// Journal remembers them.
type Journal interface {
	History(ctx context.Context, id txn.ID) iter.Seq2[txlog.Entry, error]
	List(ctx context.Context, q txlog.Query) ([]txlog.Summary, txlog.Cursor, error)
}

// Options is what the API works with. Ready returns why the sidecar is not ready; none: it is. Caller is the SPIFFE id that
// a client's certificate proves, Access what governs the service, Denied counts refusals; each may be nil.
type Options struct {
	Service        string // beside this sidecar, namespace/name; shown with its transactions
	Engine         Engine
	Journal        Journal
	Keys           *interceptor.Keys
	NewID          func() txn.ID
	Token          string
	Caller         func(r *http.Request) string
	Access         func() *policies.Access
	Denied         func(act policies.Act, reason string)
	Ready          func() []string
	Notes          func() []string // what people should know though it is ready; may be nil
	Metrics        http.Handler
	TakeOver       TakeOver // nil: no door for clients of DTM is open
	CommitWait     time.Duration
	TimeoutDefault time.Duration
	Log            *slog.Logger
}

// TakeOver begins here what another server has begun, which body describes, or only says what a takeover would do. The
// answer is JSON; an error that wraps interceptor.ErrRefused says why the transaction must stay there.
type TakeOver func(ctx context.Context, body []byte, dryRun bool) (json.RawMessage, error)

// bodyMax bounds what a client of the API may send.
const bodyMax = 1 << 20

// Server is the handler of the local port.
type Server struct {
	opt  Options
	mux  *http.ServeMux
	keys [64]sync.Mutex // each guards the begin of transactions whose keys fall to it
}

// New returns the handler.
func New(opt Options) *Server {
	if opt.Caller == nil {
		opt.Caller = func(*http.Request) string { return "" }
	}
	if opt.Access == nil {
		opt.Access = func() *policies.Access { return nil }
	}
	if opt.Denied == nil {
		opt.Denied = func(policies.Act, string) {}
	}
	s := &Server{opt: opt, mux: http.NewServeMux()}
	for _, r := range s.routes() {
		s.mux.HandleFunc(r.pattern, r.handler)
	}
	return s
}

// route is one line of the API. docs/reference/openapi.yaml is tested against the list.
type route struct {
	pattern string
	token   bool // wanted, or a certificate that grants as much
	handler http.HandlerFunc
}

func (s *Server) routes() []route {
	start := func(h http.HandlerFunc) http.HandlerFunc { return s.guarded(h, policies.Begin) }
	decide := func(h http.HandlerFunc) http.HandlerFunc { return s.guarded(h, policies.Decide) }
	operate := func(h http.HandlerFunc) http.HandlerFunc { return s.guarded(h, policies.Operate) }
	look := func(h http.HandlerFunc) http.HandlerFunc { return s.guarded(h, policies.Operate, policies.Decide) }
	return []route{
		{"GET /healthz", false, s.health},
		{"GET /readyz", false, s.ready},
		{"GET /metrics", false, s.outside(s.opt.Metrics.ServeHTTP, policies.Operate, policies.Decide)},
		{"GET /debug/pprof/", true, operate(pprof.Index)},
		{"GET /debug/pprof/cmdline", true, operate(pprof.Cmdline)},
		{"GET /debug/pprof/profile", true, operate(pprof.Profile)},
		{"GET /debug/pprof/symbol", true, operate(pprof.Symbol)},
		{"GET /debug/pprof/trace", true, operate(pprof.Trace)},
		{"POST /v1/transactions", true, start(s.begin)},
		{"GET /v1/transactions", true, look(s.list)},
		{"GET /v1/transactions/{id}", true, look(s.show)},
		{"POST /v1/transactions/{id}/commit", true, decide(s.commit)},
		{"POST /v1/transactions/{id}/abort", true, decide(s.abort)},
		{"POST /v1/transactions/{id}/branches", true, decide(s.enlist)},
		{"POST /v1/transactions/{id}/branches/{branch}/leave", true, decide(s.leave)},
		{"POST /v1/transactions/{id}/extend", true, decide(s.extend)},
		{"POST /v1/transactions/{id}/hasten", true, operate(s.hasten)},
		{"POST /v1/transactions/{id}/stop", true, operate(s.stop)},
		{"POST /v1/transactions/{id}/branches/{branch}/{op}/{act}", true, operate(s.force)},
		{"POST /v1/takeovers/dtm", true, operate(s.takeOver)},
	}
}

// ServeHTTP answers one request. What the mux would refuse in plain text is a problem here, as everything else.
func (s *Server) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	h, pattern := s.mux.Handler(r)
	if pattern != "" {
		s.mux.ServeHTTP(w, r)
		return
	}
	var seen refusalSeen
	h.ServeHTTP(&seen, r)
	if seen.status == http.StatusMethodNotAllowed {
		w.Header().Set("Allow", seen.Header().Get("Allow"))
		write(w, problem(codeMethod, r.Method+" "+r.URL.Path, ""))
		return
	}
	write(w, problem(codeRoute, r.Method+" "+r.URL.Path, ""))
}

// refusalSeen catches what the mux says of a request that it has no route for.
type refusalSeen struct {
	header http.Header
	status int
}

func (f *refusalSeen) Header() http.Header {
	if f.header == nil {
		f.header = http.Header{}
	}
	return f.header
}

func (f *refusalSeen) Write(p []byte) (int, error) { return len(p), nil }

func (f *refusalSeen) WriteHeader(status int) { f.status = status }

func (s *Server) health(w http.ResponseWriter, _ *http.Request) {
	reply(w, http.StatusOK, struct {
		Status string `json:"status"`
	}{"ok"})
}

func (s *Server) ready(w http.ResponseWriter, _ *http.Request) {
	if causes := s.opt.Ready(); len(causes) > 0 {
		write(w, problem(codeNotReady, strings.Join(causes, "; "), ""))
		return
	}
	var notes []string
	if s.opt.Notes != nil {
		notes = s.opt.Notes()
	}
	reply(w, http.StatusOK, struct {
		Status string   `json:"status"`
		Notes  []string `json:"notes,omitempty"`
	}{"ready", notes})
}

func reply(w http.ResponseWriter, status int, v any) {
	body, err := json.Marshal(v)
	if err != nil {
		panic("admin: answer that is not JSON: " + err.Error())
	}
	w.Header().Set("Content-Type", "application/json")
	w.WriteHeader(status)
	// A client that went away cannot be told.
	_, _ = w.Write(append(body, '\n'))
}
