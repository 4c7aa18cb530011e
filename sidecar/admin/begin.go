package admin

import (
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"regexp"
	"sync"
	"time"

	"txmesh/interceptor"
	"txmesh/txn"
)

const (
	timeoutMax = 24 * time.Hour // to the decision, and of a delay
	tryMax     = 10 * time.Minute
	keyMax     = 255
)

var txName = regexp.MustCompile(`^[A-Za-z0-9][A-Za-z0-9._/-]{0,127}$`)

// beginRequest opens a transaction. Query and Resume are Ask in the words of msg and workflow.
type beginRequest struct {
	Mode     string            `json:"mode"`
	Name     string            `json:"name"`
	Key      string            `json:"key"`
	Timeout  string            `json:"timeout"`
	Branches []json.RawMessage `json:"branches"`
	Retry    *retryRequest     `json:"retry"` // where a branch says nothing, and of ask and tell
	Ask      *targetRequest    `json:"ask"`
	Query    *targetRequest    `json:"query"`
	Resume   *targetRequest    `json:"resume"`
	Tell     *targetRequest    `json:"tell"`
	Decide   string            `json:"decide"`
	Delay    string            `json:"delay"`
}

type begun struct {
	ID      txn.ID    `json:"id"`
	Context string    `json:"context,omitempty"` // of an explicit one
	Status  string    `json:"status"`
	Reason  string    `json:"reason,omitempty"`
	Expires time.Time `json:"expires,omitzero"`
}

// begin opens a transaction: an explicit one, whose signed context the client puts on calls, or one with targets.
func (s *Server) begin(w http.ResponseWriter, r *http.Request) {
	var q beginRequest
	body, f, bad := readBody(w, r, &q)
	if bad {
		write(w, f)
		return
	}
	wait, err := waitOf(r)
	var e txn.Begin
	if err == nil {
		e, err = q.event(s.opt.TimeoutDefault)
	}
	if err != nil {
		write(w, problem(codeValue, err.Error(), ""))
		return
	}
	if e.Spec.Key != "" {
		e.Spec.Print = fingerprint(body)
	}
	st, repeated, err := s.open(r.Context(), e)
	if err != nil {
		s.refuseBranch(w, err, st.Spec.ID)
		return
	}
	id := st.Spec.ID
	st = s.settled(r.Context(), st, wait)
	out := begun{ID: id, Status: st.Phase.String(), Reason: st.Reason}
	if !st.Expires.IsZero() {
		out.Expires = st.Expires.UTC()
	}
	if st.Spec.Mode == txn.Explicit {
		out.Context = s.opt.Keys.Sign(interceptor.Context{ID: id, Expires: st.Expires})
	}
	status := http.StatusCreated
	if repeated {
		status = http.StatusOK
		w.Header().Set(interceptor.HeaderReplayed, "true")
	}
	w.Header().Set("Location", "/v1/transactions/"+string(id))
	w.Header().Set(interceptor.HeaderID, string(id))
	reply(w, status, out)
}

// open begins the transaction, or finds the one that was begun under its key.
func (s *Server) open(ctx context.Context, e txn.Begin) (st txn.State, repeated bool, err error) {
	if e.Spec.Key != "" {
		lock := s.keyLock(e.Spec.Key)
		lock.Lock()
		defer lock.Unlock()
		ctx = context.WithoutCancel(ctx) // the next one with this key must find what became of it
		id, err := s.opt.Engine.Find(ctx, e.Spec.Key)
		if err == nil {
			st, err = s.opt.Engine.State(ctx, id)
		}
		switch {
		case err == nil && st.Spec.Print != e.Spec.Print:
			return st, true, fmt.Errorf("its key belongs to another body: %w", txn.ErrConflict)
		case !errors.Is(err, txn.ErrUnknown): // it is there, or nobody can tell
			return st, true, err
		}
	}
	e.Spec.ID = s.opt.NewID()
	st, err = s.opt.Engine.Begin(ctx, e)
	return st, false, err
}

// keyLock keeps two requests with one key from beginning two transactions.
func (s *Server) keyLock(key string) *sync.Mutex {
	return &s.keys[sha256.Sum256([]byte(key))[0]%byte(len(s.keys))]
}

// fingerprint tells bodies apart, not the spaces in them.
func fingerprint(body []byte) string {
	var b bytes.Buffer
	if err := json.Compact(&b, body); err != nil {
		panic("admin: body was JSON a moment ago: " + err.Error())
	}
	sum := sha256.Sum256(b.Bytes())
	return hex.EncodeToString(sum[:])
}

// event checks the request. What it accepts can be begun.
func (q *beginRequest) event(timeoutDefault time.Duration) (txn.Begin, error) {
	mode, err := modeOf(q.Mode)
	if err != nil {
		return txn.Begin{}, err
	}
	surface, direct := surfaces()[mode]
	spec := txn.Spec{Mode: mode, Plan: mode.Plan(), Name: q.Name, Timeout: timeoutDefault}
	switch {
	case q.Name == "":
		spec.Name = string(mode)
	case !txName.MatchString(q.Name):
		return txn.Begin{}, fmt.Errorf("name %.200q: want at most 128 letters, digits and any of . _ / -", q.Name)
	}
	if q.Key != "" {
		if len(q.Key) > keyMax || !printable(q.Key) {
			return txn.Begin{}, fmt.Errorf("key %.40q: want at most %d printable characters without spaces", q.Key, keyMax)
		}
		spec.Key = "api:" + q.Key // keys of root requests begin with their policy
	}
	if q.Timeout != "" {
		if spec.Timeout, err = timeout(q.Timeout, surface.limitless); err != nil {
			return txn.Begin{}, err
		}
	}
	if !direct {
		return txn.Begin{Spec: spec}, q.bare()
	}
	spec.Door, spec.Plan = DoorName, planOf(mode)
	if err := q.fill(&spec, surface); err != nil {
		return txn.Begin{}, err
	}
	d, err := q.decision(spec.Plan)
	return txn.Begin{Spec: spec, Decide: d}, err
}

func timeout(text string, limitless bool) (time.Duration, error) {
	if limitless {
		return period("timeout", text, 0, timeoutMax)
	}
	return period("timeout", text, time.Millisecond, timeoutMax)
}

// bare refuses what an explicit transaction has no use for.
func (q *beginRequest) bare() error {
	if q.Branches != nil || q.Retry != nil || q.Ask != nil || q.Query != nil || q.Resume != nil || q.Tell != nil || q.Decide != "" || q.Delay != "" {
		return errors.New("mode explicit has name, timeout and key: policies say what its branches are; name another mode for branches of your own")
	}
	return nil
}

// fill sets branches and targets.
func (q *beginRequest) fill(spec *txn.Spec, s surface) error {
	var err error
	if q.Retry != nil {
		r, err := q.Retry.parse()
		if err != nil {
			return err
		}
		spec.Plan.Retry = over(r, spec.Plan.Retry)
	}
	if q.Tell != nil {
		if spec.Tell, err = q.Tell.encoded(txn.Tell); err != nil {
			return fmt.Errorf("tell: %w", err)
		}
	}
	for word, t := range map[string]*targetRequest{"ask": q.Ask, "query": q.Query, "resume": q.Resume} {
		switch {
		case t == nil:
		case s.ask == "" || word != "ask" && word != s.ask:
			return fmt.Errorf("%s: is not of mode %s", word, spec.Mode)
		case spec.Ask != nil:
			return fmt.Errorf("%s: is ask in other words; write one of them", s.ask)
		default:
			if spec.Ask, err = t.encoded(txn.Ask); err != nil {
				return fmt.Errorf("%s: %w", word, err)
			}
		}
	}
	for i, raw := range q.Branches {
		b, err := s.branch(raw)
		if err == nil && b.outcome != txn.None {
			err = errors.New("outcome: is told of branches that are enlisted")
		}
		if err != nil {
			return fmt.Errorf("branch %d: %w", i, err)
		}
		spec.Branches = append(spec.Branches, b.Branch)
	}
	return nil
}

func (q targetRequest) encoded(o txn.Op) ([]byte, error) {
	t, err := q.parse(o)
	return t.encode(), err
}

// decision is what comes with the begin.
func (q *beginRequest) decision(p txn.Plan) (*txn.Decide, error) {
	switch {
	case q.Decide == "" && q.Delay == "":
		return nil, nil
	case q.Decide != "commit":
		return nil, fmt.Errorf("decide %.40q: want commit, or nothing and no delay", q.Decide)
	case p.Drives:
		return nil, errors.New("decide: in this mode the answers of the branches decide")
	case q.Delay == "":
		return &txn.Decide{Commit: true}, nil
	}
	delay, err := period("delay", q.Delay, 0, timeoutMax)
	return &txn.Decide{Commit: true, Delay: delay}, err
}
