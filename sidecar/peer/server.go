package peer

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net/http"

	"txmesh/interceptor"
	"txmesh/policies"
	"txmesh/txn"
)

// bodyMax bounds a message between peers: a branch's note, a recorded answer and a policy document fit with room.
const bodyMax = 8 << 20

// strangerMax bounds what is read of a message whose sender has proved nothing before its body: neither by certificate
// nor by a signature of the head, which releases before this one do not send.
const strangerMax = 256 << 10

// ServerOptions is what a Server is made of. Refused is told why each unauthenticated request was turned away:
// unsigned, large, forged, stale, replayed or mismatch. Caller, which may be nil, is the id that a client's certificate proves;
// May, which may be nil, says why a caller may not take part in transactions.
type ServerOptions struct {
	Identity  func() Identity
	Local     Local
	Documents Documents
	Home      Home
	Offered   func(owner string, epoch uint64) // nil: the store is not shared
	Auth      *Auth
	Caller    func(r *http.Request) string
	May       func(caller string) error
	Refused   func(cause string)
	Log       *slog.Logger
}

// Server answers the peer port.
type Server struct {
	opt ServerOptions
	mux *http.ServeMux
}

// NewServer returns the handler of the peer port.
func NewServer(opt ServerOptions) *Server {
	s := &Server{opt: opt, mux: http.NewServeMux()}
	s.mux.HandleFunc("GET /v1/identity", s.serve(s.identity))
	s.mux.HandleFunc("POST /v1/enlist", s.serve(s.enlist, s.mayJoin))
	s.mux.HandleFunc("POST /v1/returned", s.serve(s.returned, s.mayJoin))
	s.mux.HandleFunc("POST /v1/settle", s.serve(s.settle, s.mayJoin))
	s.mux.HandleFunc("POST /v1/status", s.serve(s.status))
	s.mux.HandleFunc("POST /v1/do", s.serve(s.do))
	s.mux.HandleFunc("POST /v1/offer", s.serve(s.offer))
	return s
}

// ServeHTTP answers one request of a peer.
func (s *Server) ServeHTTP(w http.ResponseWriter, r *http.Request) { s.mux.ServeHTTP(w, r) }

// causeMismatch is the cause, and the code on the wire, of interceptor.ErrMismatch.
const causeMismatch = "mismatch"

var errMalformed = errors.New("peer: malformed message")

// serve believes a request, has it answered and signs the reply. The mux's own 404 and 405 stay unsigned, so that a
// caller takes them for a stranger's.
func (s *Server) serve(answer func(ctx context.Context, body []byte) (any, error), allowed ...func(*http.Request) error) http.HandlerFunc {
	return func(w http.ResponseWriter, r *http.Request) {
		body, err := s.message(w, r)
		if err != nil {
			s.refuse(w, r, err)
			return
		}
		for _, a := range allowed {
			err = errors.Join(err, a(r))
		}
		var out any
		if err == nil {
			out, err = answer(r.Context(), body)
		}
		if err != nil {
			status, refusal := refusalOf(err)
			s.reply(w, r, status, refusal)
			return
		}
		s.reply(w, r, 200, out)
	}
}

// message reads a message and believes it: it reads no more than its sender has earned by what came before it, and
// nothing where that is old or was seen.
func (s *Server) message(w http.ResponseWriter, r *http.Request) ([]byte, error) {
	if r.Header.Get(headerMAC) == "" {
		return nil, ErrUnsigned
	}
	most, check := int64(strangerMax), s.opt.Auth.Check
	switch err := s.opt.Auth.CheckHead(r.Header, r.Method, r.URL.RequestURI(), r.ContentLength); {
	case err == nil:
		most, check = bodyMax, s.opt.Auth.CheckBody
	case !errors.Is(err, ErrForged):
		return nil, err
	case s.caller(r) != "":
		most = bodyMax
	}
	if r.ContentLength > most {
		return nil, ErrLarge
	}
	if err := vouched(r.Header.Get(headerService), s.caller(r)); err != nil {
		return nil, fmt.Errorf("peer: who asks %w", err)
	}
	body, err := io.ReadAll(http.MaxBytesReader(w, r.Body, most))
	if _, large := errors.AsType[*http.MaxBytesError](err); large {
		return nil, ErrLarge
	}
	if err != nil {
		return nil, fmt.Errorf("%w: read the body: %w", errMalformed, err)
	}
	return body, check(r.Header, r.Method, r.URL.RequestURI(), body)
}

func (s *Server) caller(r *http.Request) string {
	if s.opt.Caller == nil {
		return ""
	}
	return s.opt.Caller(r)
}

// mayJoin holds who takes part in transactions to the policies.
func (s *Server) mayJoin(r *http.Request) error {
	if s.opt.May == nil {
		return nil
	}
	return s.opt.May(s.caller(r))
}

func (s *Server) refuse(w http.ResponseWriter, r *http.Request, err error) {
	cause, status, code := "forged", 401, "unauthorized"
	switch {
	case errors.Is(err, errMalformed):
		s.reply(w, r, 400, wireRefusal{"malformed", err.Error()})
		return
	case errors.Is(err, interceptor.ErrMismatch):
		cause, status, code = causeMismatch, 403, causeMismatch
	case errors.Is(err, ErrUnsigned):
		cause = "unsigned"
	case errors.Is(err, ErrLarge):
		cause, status, code = "large", 413, "large"
	case errors.Is(err, ErrStale):
		cause = "stale"
	case errors.Is(err, ErrReplayed):
		cause = "replayed"
	}
	s.opt.Refused(cause)
	s.opt.Log.Warn("peer request refused", "from", r.RemoteAddr, "path", r.URL.Path, "cause", cause, "error", err)
	s.reply(w, r, status, wireRefusal{code, err.Error()})
}

func refusalOf(err error) (int, wireRefusal) {
	for _, k := range refusals() {
		if errors.Is(err, k.err) {
			return k.status, wireRefusal{k.code, err.Error()}
		}
	}
	if errors.Is(err, errMalformed) {
		return 400, wireRefusal{"malformed", err.Error()}
	}
	return 503, wireRefusal{"failed", err.Error()}
}

func (s *Server) reply(w http.ResponseWriter, r *http.Request, status int, v any) {
	body, err := json.Marshal(v)
	if err != nil {
		panic("peer: reply that is not JSON: " + err.Error())
	}
	w.Header().Set("Content-Type", "application/json")
	s.opt.Auth.SignReply(w.Header(), r.Header.Get(headerNonce), status, body)
	w.WriteHeader(status)
	// A peer that went away asks again; there is nobody to tell.
	_, _ = w.Write(body)
}

func read(body []byte, v any) error {
	if err := json.Unmarshal(body, v); err != nil {
		return fmt.Errorf("%w: %w", errMalformed, err)
	}
	return nil
}

func (s *Server) identity(context.Context, []byte) (any, error) { return s.opt.Identity(), nil }

func (s *Server) mine(id txn.ID) error {
	if s.opt.Local.Holds(interceptor.OwnerOf(id)) {
		return nil
	}
	return s.misdirected(id, interceptor.OwnerOf(id))
}

func (s *Server) misdirected(id txn.ID, owner string) error {
	return fmt.Errorf("transaction %s was sent to sidecar %s, which does not hold the journal of %s: %w", id, s.opt.Identity().Owner, owner, ErrMisdirected)
}

func (s *Server) enlist(ctx context.Context, body []byte) (any, error) {
	var w wireEnlist
	if err := read(body, &w); err != nil {
		return nil, err
	}
	if err := s.mine(w.Tx); err != nil {
		return nil, err
	}
	if err := s.keepDocument(ctx, w); err != nil {
		return nil, err
	}
	p, err := enlist(ctx, s.opt.Local, w.Tx, txn.Enlist{Branch: txn.Branch(w.Branch), Calling: w.Calling,
		Answered: w.Answered, Result: w.Result, Call: w.Call})
	return wirePlaced(p), err
}

// keepDocument makes sure that this owner can compile the rule of a branch for as long as it lives: without it nobody
// could undo the branch, so it must not be enlisted.
func (s *Server) keepDocument(ctx context.Context, w wireEnlist) error {
	hash := documentOf(w.Branch.Note)
	switch {
	case hash == "":
		return nil // another door's branch
	case w.Document == nil:
		_, err := s.opt.Documents.Get(ctx, hash)
		return err
	}
	note, err := interceptor.DecodeNote(w.Branch.Note)
	if err != nil {
		return fmt.Errorf("%w: %w", errMalformed, err)
	}
	doc := policies.Source{Name: w.Document.Name, Data: w.Document.Data}
	rule, err := policies.Recompile(doc, note.Rule)
	if err != nil {
		return fmt.Errorf("%w: policy document %s does not compile at the owner: %w", errMalformed, hash, err)
	}
	if rule.Document != hash {
		return fmt.Errorf("%w: policy document %s came under the hash %s", errMalformed, rule.Document, hash)
	}
	return s.opt.Documents.Keep(ctx, hash, doc)
}

func (s *Server) returned(ctx context.Context, body []byte) (any, error) {
	var w wireReturn
	if err := read(body, &w); err != nil {
		return nil, err
	}
	if err := s.mine(w.Tx); err != nil {
		return nil, err
	}
	return struct{}{}, returned(ctx, s.opt.Local, w.Tx, txn.Returned(w.Answer), w.Durable)
}

func (s *Server) settle(ctx context.Context, body []byte) (any, error) {
	var w wireSettle
	if err := read(body, &w); err != nil {
		return nil, err
	}
	if own := s.opt.Identity().home(); w.Home != own {
		return nil, fmt.Errorf("branch %s of home %s was sent to %s: %w", w.Branch, w.Home, own, ErrMisdirected)
	}
	return settledToWire(s.opt.Home.Settle(ctx, settleFromWire(w))), nil
}

func (s *Server) status(ctx context.Context, body []byte) (any, error) {
	var w wireStatus
	if err := read(body, &w); err != nil {
		return nil, err
	}
	if len(w.IDs) > StatusMax {
		return nil, fmt.Errorf("%w: %d ids, at most %d", errMalformed, len(w.IDs), StatusMax)
	}
	phases := make(map[txn.ID]string, len(w.IDs))
	for _, id := range w.IDs {
		if err := s.mine(id); err != nil {
			return nil, err
		}
		st, err := s.opt.Local.State(ctx, id)
		switch {
		case errors.Is(err, txn.ErrUnknown):
			phases[id] = PhaseUnknown
		case err != nil:
			return nil, err
		default:
			phases[id] = st.Phase.String()
		}
	}
	return wirePhases{phases}, nil
}
