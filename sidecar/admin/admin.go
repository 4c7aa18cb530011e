// Package admin serves the local port of a sidecar: health, readiness, metrics, profiles, and the transactions API by
// which applications begin and drive transactions of every mode and operators look at them and act on stuck ones. It
// decides nothing: every act becomes an event of the engine. For transactions that were begun with targets it is also
// the door that makes their requests and reads the answers (door.go). docs/reference/api.md and openapi.yaml describe
// it. Start at New; modes.go says what each mode offers.
package admin

import (
	"context"
	"crypto/sha256"
	"crypto/subtle"
	"encoding/json"
	"iter"
	"log/slog"
	"net/http"
	"net/http/pprof"
	"strings"
	"sync"
	"time"

	"txmesh/interceptor"
	"txmesh/txlog"
	"txmesh/txn"
)

// Engine decides the transactions of this sidecar.
type Engine interface {
	Do(ctx context.Context, id txn.ID, e txn.Event) (txn.State, error)
	Wait(ctx context.Context, id txn.ID, until func(txn.State) bool) (txn.State, error)
	State(ctx context.Context, id txn.ID) (txn.State, error)
	Find(ctx context.Context, key string) (txn.ID, error)
}

// Journal remembers them.
type Journal interface {
	History(ctx context.Context, id txn.ID) iter.Seq2[txlog.Entry, error]
	List(ctx context.Context, q txlog.Query) ([]txlog.Summary, txlog.Cursor, error)
}

// Options is what the API works with. Ready returns why the sidecar is not ready; none: it is.
type Options struct {
	Service        string // beside this sidecar, namespace/name; shown with its transactions
	Engine         Engine
	Journal        Journal
	Keys           *interceptor.Keys
	NewID          func() txn.ID
	Token          string
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
	s := &Server{opt: opt, mux: http.NewServeMux()}
	for _, r := range s.routes() {
		h := r.handler
		if r.token {
			h = s.guarded(h)
		}
		s.mux.HandleFunc(r.pattern, h)
	}
	return s
}

// route is one line of the API. docs/reference/openapi.yaml is tested against the list.
type route struct {
	pattern string
	token   bool
	handler http.HandlerFunc
}

func (s *Server) routes() []route {
	return []route{
		{"GET /healthz", false, s.health},
		{"GET /readyz", false, s.ready},
		{"GET /metrics", false, s.opt.Metrics.ServeHTTP},
		{"GET /debug/pprof/", true, pprof.Index},
		{"GET /debug/pprof/cmdline", true, pprof.Cmdline},
		{"GET /debug/pprof/profile", true, pprof.Profile},
		{"GET /debug/pprof/symbol", true, pprof.Symbol},
		{"GET /debug/pprof/trace", true, pprof.Trace},
		{"POST /v1/transactions", true, s.begin},
		{"GET /v1/transactions", true, s.list},
		{"GET /v1/transactions/{id}", true, s.show},
		{"POST /v1/transactions/{id}/commit", true, s.commit},
		{"POST /v1/transactions/{id}/abort", true, s.abort},
		{"POST /v1/transactions/{id}/branches", true, s.enlist},
		{"POST /v1/transactions/{id}/branches/{branch}/leave", true, s.leave},
		{"POST /v1/transactions/{id}/extend", true, s.extend},
		{"POST /v1/transactions/{id}/hasten", true, s.hasten},
		{"POST /v1/transactions/{id}/stop", true, s.stop},
		{"POST /v1/transactions/{id}/branches/{branch}/{op}/{act}", true, s.force},
		{"POST /v1/takeovers/dtm", true, s.takeOver},
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

// guarded wants the token, also on loopback: every container of a pod shares that.
func (s *Server) guarded(next http.HandlerFunc) http.HandlerFunc {
	want := sha256.Sum256([]byte(s.opt.Token))
	return func(w http.ResponseWriter, r *http.Request) {
		scheme, token, _ := strings.Cut(r.Header.Get("Authorization"), " ")
		got := sha256.Sum256([]byte(token))
		if !strings.EqualFold(scheme, "Bearer") || subtle.ConstantTimeCompare(got[:], want[:]) != 1 {
			w.Header().Set("WWW-Authenticate", `Bearer realm="txmesh"`)
			write(w, problem(codeUnauthorized, "", ""))
			return
		}
		next(w, r)
	}
}

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
