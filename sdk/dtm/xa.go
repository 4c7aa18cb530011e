package dtm

import (
	"context"
	"fmt"
	"net/http"
)

// XA is a transaction whose branches are prepared in their databases before it is decided. Its branches may be called
// by several goroutines. The participant's half is dtmsql.Database.HandleXA.
type XA struct {
	Global
	numbers numbers
}

// NewXA returns a transaction for the door at server; nothing is begun yet.
func NewXA(server, gid string) *XA { return &XA{Global: Global{Server: server, GID: gid}} }

// GlobalTransaction prepares, runs fn, and submits if fn returns nil, else aborts with its error as the reason. The
// result is fn's error, or the door's. If the door's answer to the submit is lost, the error is of unknown outcome.
func (x *XA) GlobalTransaction(ctx context.Context, fn func(ctx context.Context, x *XA) error) error {
	return x.run(ctx, TypeXA, func(ctx context.Context) error { return fn(ctx, x) })
}

// CallBranch calls a service, which does its work and prepares it. The same URL is later told to commit or to roll back.
func (x *XA) CallBranch(ctx context.Context, payload any, target string) ([]byte, error) {
	id, err := x.numbers.next()
	if err != nil {
		return nil, err
	}
	ctx, stop := x.bound(ctx)
	defer stop()
	b := Branch{TransType: TypeXA, GID: x.GID, ID: id, Op: OpAction, HTTP: x.HTTP}
	return b.call(ctx, http.MethodPost, target, payload, map[string]string{"dtm": x.Server, "phase2_url": target}, x.BranchHeaders)
}

// RegisterXA tells the door that this branch has work to be committed or rolled back. The participant does it before
// it prepares: from then on the door will end it, whatever happens to the participant.
func (b Branch) RegisterXA(ctx context.Context) error {
	if b.Server == "" || b.Phase2URL == "" {
		return fmt.Errorf("branch %s of %s: the caller has not sent dtm and phase2_url in the query, so nobody could end it", b.ID, b.GID)
	}
	g := Global{Server: b.Server, HTTP: b.HTTP, GID: b.GID}
	return g.register(ctx, TypeXA, b.ID, map[string]string{"url": b.Phase2URL})
}
