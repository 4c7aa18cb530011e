package dtm

import (
	"context"
	"encoding/json"
	"strings"
	"sync"
	"time"

	"txmesh/txn"
)

// A saga that is prepared waits in a row of its own: the engine's sagas run from their beginning. No SDK prepares one, but
// the protocol allows it.
const preparedPrefix = "prepared/"

type preparedSaga struct {
	Request  *transaction `json:"request"`
	Payloads [][]byte     `json:"payloads"`
	At       time.Time    `json:"at"`
}

func (p *preparedSaga) request() *transaction {
	p.Request.binPayloads = p.Payloads
	return p.Request
}

// preparedSagas knows which gids have a row, so that a submit need not look for one.
type preparedSagas struct {
	mu     sync.Mutex // guards the rest
	loaded bool
	gids   map[string]bool
}

// has reports whether there is a row, after change has been applied to what is known.
func (p *preparedSagas) has(ctx context.Context, rows Rows, gid string, change func(gids map[string]bool)) (bool, error) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if !p.loaded {
		p.gids = map[string]bool{}
		for row, err := range rows.Scan(ctx, preparedPrefix) {
			if err != nil {
				return false, err
			}
			p.gids[strings.TrimPrefix(row.Key, preparedPrefix)] = true
		}
		p.loaded = true
	}
	if change != nil {
		change(p.gids)
	}
	return p.gids[gid], nil
}

func (s *Service) prepareSaga(ctx context.Context, t *transaction) error {
	st, err := s.known(ctx, t.GID)
	if err != nil {
		return err
	}
	if st != nil {
		if err := wrongType(st, t.Type); err != nil {
			return err
		}
		return refusal(st, "prepare")
	}
	if old, err := s.preparedSaga(ctx, t.GID); err != nil || old != nil {
		return err
	}
	p := preparedSaga{Request: t, At: s.Now().UTC()}
	for i := range t.Steps {
		p.Payloads = append(p.Payloads, t.payload(i))
	}
	row, err := json.Marshal(p)
	if err != nil {
		panic("dtm: prepared saga: " + err.Error())
	}
	if err := s.Rows.Put(ctx, preparedPrefix+t.GID, row); err != nil {
		return err
	}
	_, err = s.sagas.has(ctx, s.Rows, t.GID, func(gids map[string]bool) { gids[t.GID] = true })
	return err
}

func (s *Service) preparedSaga(ctx context.Context, gid string) (*preparedSaga, error) {
	if there, err := s.sagas.has(ctx, s.Rows, gid, nil); err != nil || !there {
		return nil, err
	}
	row, found, err := s.Rows.Get(ctx, preparedPrefix+gid)
	if err != nil || !found {
		return nil, err
	}
	var p preparedSaga
	if err := json.Unmarshal(row, &p); err != nil {
		return nil, err
	}
	switch st, err := s.known(ctx, gid); {
	case err != nil:
		return nil, err
	case st != nil: // it was submitted, and a crash kept the row
		return nil, s.dropPrepared(ctx, gid)
	}
	return &p, nil
}

// takePrepared puts the steps of a prepared saga into its submit, whose options count.
func (s *Service) takePrepared(ctx context.Context, t *transaction) error {
	p, err := s.preparedSaga(ctx, t.GID)
	if err == nil && p != nil {
		t.Steps, t.binPayloads = p.Request.Steps, p.Payloads
	}
	return err
}

func (s *Service) dropPrepared(ctx context.Context, gid string) error {
	if there, err := s.sagas.has(ctx, s.Rows, gid, nil); err != nil || !there {
		return err
	}
	if err := s.Rows.Put(ctx, preparedPrefix+gid, nil); err != nil {
		return err
	}
	_, err := s.sagas.has(ctx, s.Rows, gid, func(gids map[string]bool) { delete(gids, gid) })
	return err
}

// stopPrepared ends a prepared saga. It is begun without URLs, so that nothing is called.
func (s *Service) stopPrepared(ctx context.Context, gid string) (stopped bool, err error) {
	p, err := s.preparedSaga(ctx, gid)
	if err != nil || p == nil {
		return false, err
	}
	for i := range p.Request.Steps {
		p.Request.Steps[i] = map[string]string{}
	}
	spec, err := s.spec(ctx, p.request())
	if err != nil {
		return false, err
	}
	_, err = s.Engine.Do(ctx, spec.ID, txn.Begin{Spec: spec, Decide: &txn.Decide{Reason: "stopped before it was submitted"}})
	if err != nil {
		return false, err
	}
	return true, s.dropPrepared(ctx, gid)
}
