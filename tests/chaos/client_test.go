package chaos

import (
	"bytes"
	"context"
	"database/sql"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"net/http"
	"path"
	"strings"
	"syscall"
	"time"

	"txmesh/sdk/dtm"
	"txmesh/sdk/dtm/dtmsql"
)

// side is one database and the path of the bank that serves it.
type side struct {
	path   string
	ledger Ledger
	id     int
}

// promise is one transfer and what its client was told of it.
type promise struct {
	kind, gid string
	from, to  side
	amount    int64
	refusable bool
	wait      bool // the client waits for the result
	diesAt    int  // the number of the request at which the client dies; 0: it lives
	// How long the client waits for the bank, if it is in a hurry: then it goes on while its call is still at work.
	patience time.Duration

	claims []claim
	counts map[string]int // answers by verb and status
}

// claim is what must be so in the end, because an answer has said it.
type claim struct {
	answer string
	want   string // a status that is final, or known: the door must know the transaction
}

const known = "known"

func (p *promise) claim(answer, want string) {
	p.claims = append(p.claims, claim{answer, want})
}

// heard notes what an answer of the door, or of the bank for a workflow, promises.
func (p *promise) heard(verb string, status int) {
	answer := fmt.Sprint(verb, " ", status)
	p.counts[answer]++
	saga := p.kind == dtm.TypeSaga
	switch {
	case verb == "submit" && status == http.StatusConflict:
		p.claim(answer, dtm.StatusFailed)
	case verb == "submit" && status == http.StatusOK && (!saga || p.wait),
		verb == "submit" && status == http.StatusTooEarly && !saga,
		verb == "transfers" && status == http.StatusOK:
		p.claim(answer, dtm.StatusSucceed)
	case verb == "abort" && status == http.StatusOK, verb == "transfers" && status == http.StatusConflict:
		p.claim(answer, dtm.StatusFailed)
	case verb == "prepare" || verb == "submit" || verb == "registerBranch":
		if status == http.StatusOK || status == http.StatusTooEarly {
			p.claim(answer, known)
		}
	}
}

var errDead = errors.New("the client is dead")

// wire carries the requests of one client. It repeats those that got no answer, as a client does that wants to know, and
// goes dead with it. It is used by one goroutine.
type wire struct {
	p    *promise
	next http.RoundTripper
	made int
	dead bool
}

// RoundTrip implements http.RoundTripper.
func (w *wire) RoundTrip(r *http.Request) (*http.Response, error) {
	w.made++
	w.dead = w.dead || w.made == w.p.diesAt
	if w.dead {
		if w.made == w.p.diesAt && rand.IntN(2) == 0 { // on its way, and nobody hears the answer
			if _, err := w.once(r); err != nil {
				return nil, errors.Join(errDead, err)
			}
		}
		return nil, errDead
	}
	if w.p.patience > 0 && !ofDoor(r) {
		ctx, stop := context.WithTimeout(r.Context(), w.p.patience)
		defer stop()
		return w.once(r.WithContext(ctx))
	}
	for {
		res, err := w.once(r)
		// Work is repeated only behind a barrier: the action of an XA branch has none that lets it pass again.
		action := r.URL.Query().Get("trans_type") == dtm.TypeXA
		if err == nil || action && !errors.Is(err, syscall.ECONNREFUSED) {
			return res, err
		}
		select {
		case <-r.Context().Done():
			return nil, err
		case <-time.After(pause):
		}
	}
}

// once sends a request and reads the whole answer, so that one that breaks off counts as none.
func (w *wire) once(r *http.Request) (*http.Response, error) {
	sent := r.Clone(r.Context())
	if r.GetBody != nil {
		body, err := r.GetBody()
		if err != nil {
			return nil, err
		}
		sent.Body = body
	}
	res, err := w.next.RoundTrip(sent)
	if err != nil {
		return nil, err
	}
	data, err := readAll(res.Body)
	if err != nil {
		return nil, err
	}
	res.Body = io.NopCloser(bytes.NewReader(data))
	if ofDoor(r) && !w.dead {
		w.p.heard(path.Base(r.URL.Path), res.StatusCode)
	}
	return res, nil
}

func ofDoor(r *http.Request) bool { return strings.HasPrefix(r.URL.Path, "/api/dtmsvr/") }

// client makes transfers, one after the other.
type client struct {
	door, bank string // base URLs
	transport  http.RoundTripper
}

// The bounds of a client's patience.
const (
	transferMax = 20 * time.Second
	askMax      = 3 * time.Second
	decideMax   = 6 * time.Second // after that the door decides for a client that is gone
	pause       = 50 * time.Millisecond
)

// transfer makes one, and then asks for its end unless the client has died.
func (c client) transfer(ctx context.Context, p *promise) {
	ctx, stop := context.WithTimeout(ctx, transferMax)
	defer stop()
	w := &wire{p: p, next: c.transport}
	g := dtm.Global{Server: c.door, HTTP: &http.Client{Transport: w}, GID: p.gid}
	g.WaitResult, g.TimeoutToFail = p.wait, decideMax
	var err error
	switch p.kind {
	case dtm.TypeSaga:
		err = c.saga(ctx, g, p)
	case dtm.TypeTCC:
		tcc := dtm.NewTCC(g.Server, g.GID)
		tcc.Global = g
		err = tcc.GlobalTransaction(ctx, func(ctx context.Context, tcc *dtm.TCC) error {
			for _, s := range p.moves() {
				if _, err := tcc.CallBranch(ctx, s.Move, c.bank+s.Path, c.bank+s.Path, c.bank+s.Path); err != nil {
					return err
				}
			}
			return nil
		})
	case dtm.TypeXA:
		xa := dtm.NewXA(g.Server, g.GID)
		xa.Global = g
		err = xa.GlobalTransaction(ctx, func(ctx context.Context, xa *dtm.XA) error {
			for _, s := range p.moves() {
				if _, err := xa.CallBranch(ctx, s.Move, c.bank+s.Path); err != nil {
					return err
				}
			}
			return nil
		})
	case dtm.TypeMsg:
		err = c.msg(ctx, g, p, w)
	case dtm.TypeWorkflow:
		err = c.workflow(ctx, g, p, w)
	}
	if !w.dead && (err != nil || !p.wait) {
		c.ask(ctx, p, w)
	}
}

// saga has the deadline of its client only: without one, it is tried until it succeeds or is refused.
func (c client) saga(ctx context.Context, g dtm.Global, p *promise) error {
	saga := dtm.NewSaga(g.Server, g.GID)
	saga.Global = g
	saga.TimeoutToFail = 0
	for _, s := range p.moves() {
		saga.Add(c.bank+s.Path, c.bank+s.Path, s.Move)
	}
	return saga.Submit(ctx)
}

// msg takes the money in the client's own transaction; the message brings it. Nothing may refuse it then.
func (c client) msg(ctx context.Context, g dtm.Global, p *promise, w *wire) error {
	m := dtm.NewMsg(g.Server, g.GID)
	m.Global = g
	moves := p.moves()
	m.Add(c.bank+moves[1].Path, moves[1].Move)
	return m.DoAndSubmit(ctx, c.bank+moves[0].Path+"/asked", func(ctx context.Context, b dtm.Branch) error {
		if w.made++; w.made == p.diesAt {
			w.dead = true
			return errDead
		}
		return dtmsql.NewBarrier(b).Call(ctx, p.from.ledger.Database, func(tx *sql.Tx) error { return p.from.ledger.book(ctx, tx, b, moves[0].Move) })
	})
}

// workflow has the bank run it, again and again until it has ended: the bank may have lost the door, or run it already.
func (c client) workflow(ctx context.Context, g dtm.Global, p *promise, w *wire) error {
	body, err := json.Marshal(p.moves())
	if err != nil {
		return err
	}
	ctx, stop := context.WithTimeout(ctx, askMax)
	defer stop()
	for {
		err := c.execute(ctx, g, p, body)
		if err == nil || errors.Is(err, dtm.ErrFailure) || w.dead {
			return err
		}
		select {
		case <-ctx.Done():
			return err
		case <-time.After(pause):
		}
	}
}

func (c client) execute(ctx context.Context, g dtm.Global, p *promise, body []byte) error {
	r, err := http.NewRequestWithContext(ctx, http.MethodPost, c.bank+"/transfers/"+p.gid, bytes.NewReader(body))
	if err != nil {
		return err
	}
	res, err := g.HTTP.Do(r)
	if err != nil {
		return err
	}
	if _, err := readAll(res.Body); err != nil {
		return err
	}
	p.heard("transfers", res.StatusCode)
	switch res.StatusCode {
	case http.StatusOK:
		return nil
	case http.StatusConflict:
		return dtm.ErrFailure
	}
	return fmt.Errorf("the bank answers %d", res.StatusCode)
}

// ask asks the door until it tells the end, or the client has lost its patience.
func (c client) ask(ctx context.Context, p *promise, w *wire) {
	ctx, stop := context.WithTimeout(ctx, askMax)
	defer stop()
	for ctx.Err() == nil && !w.dead {
		told, err := dtm.Client{Server: c.door, HTTP: &http.Client{Transport: w}}.Query(ctx, p.gid)
		if err == nil && told.Final() {
			p.claim("query "+told.Status, told.Status)
			return
		}
		select {
		case <-ctx.Done():
		case <-time.After(pause):
		}
	}
}

// step is one move and where it is made.
type step struct {
	Path string `json:"path"`
	Move Move   `json:"move"`
}

// moves is the transfer in its order: the money is taken first.
func (p *promise) moves() []step {
	return []step{{p.from.path, Move{p.from.id, -p.amount}}, {p.to.path, Move{p.to.id, p.amount}}}
}
