package dtm

import (
	"context"
	"fmt"
	"net/http"
)

// TCC is a transaction whose branches are tried first, and then all confirmed or all cancelled. Its branches may be
// called by several goroutines.
type TCC struct {
	Global
	numbers numbers
}

// NewTCC returns a transaction for the door at server; nothing is begun yet.
func NewTCC(server, gid string) *TCC { return &TCC{Global: Global{Server: server, GID: gid}} }

// TCCOf returns the transaction that a try belongs to, so that the participant can have branches of its own below it.
// They are confirmed or cancelled with it; GlobalTransaction is for the root alone.
func TCCOf(b Branch) (*TCC, error) {
	if err := b.Check(); err != nil {
		return nil, err
	}
	if b.TransType != TypeTCC || b.Op != OpTry {
		return nil, fmt.Errorf("branch %s of %s: is a %s of a %s; only the try of a tcc has branches", b.ID, b.GID, b.Op, b.TransType)
	}
	if b.Server == "" {
		return nil, fmt.Errorf("branch %s of %s: the caller has not sent its door in the query (dtm); set Branch.Server", b.ID, b.GID)
	}
	return &TCC{Global: Global{Server: b.Server, HTTP: b.HTTP, GID: b.GID}, numbers: numbers{parent: b.ID}}, nil
}

// GlobalTransaction prepares, runs fn, and submits if fn returns nil, else aborts with its error as the reason. The
// result is fn's error, or the door's. If the door's answer to the submit is lost, the error is of unknown outcome.
func (t *TCC) GlobalTransaction(ctx context.Context, fn func(ctx context.Context, t *TCC) error) error {
	return t.run(ctx, TypeTCC, func(ctx context.Context) error { return fn(ctx, t) })
}

// CallBranch registers a branch and tries it. It returns the body of a success. Confirm and cancel get the same payload.
func (t *TCC) CallBranch(ctx context.Context, payload any, try, confirm, cancel string) ([]byte, error) {
	id, err := t.numbers.next()
	if err != nil {
		return nil, err
	}
	data, err := storedText(payload)
	if err != nil {
		return nil, fmt.Errorf("branch %s: %w", id, err)
	}
	if err := t.register(ctx, TypeTCC, id, map[string]string{"data": data, "confirm": confirm, "cancel": cancel}); err != nil {
		return nil, err
	}
	ctx, stop := t.bound(ctx)
	defer stop()
	b := Branch{TransType: TypeTCC, GID: t.GID, ID: id, Op: OpTry, HTTP: t.HTTP}
	return b.call(ctx, http.MethodPost, try, []byte(data), map[string]string{"dtm": t.Server}, t.BranchHeaders)
}
