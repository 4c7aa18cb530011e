package dtm

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"time"
)

// Msg is a two-phase message: calls that are made if, and only if, the sender's own transaction has committed. It is
// made by one goroutine.
type Msg struct {
	Global
	Concurrent bool          // make all calls at once
	Delay      time.Duration // between creation and the first call
	steps      []map[string]string
	payloads   []string
	query      string
	err        error
}

// NewMsg returns an empty message for the door at server.
func NewMsg(server, gid string) *Msg { return &Msg{Global: Global{Server: server, GID: gid}} }

// Add appends a call, which is repeated until it succeeds. The payload is sent as that of a saga.
func (m *Msg) Add(action string, payload any) *Msg {
	text, err := storedText(payload)
	m.err = errors.Join(m.err, wrapStep(len(m.steps), err))
	m.steps = append(m.steps, map[string]string{"action": action})
	m.payloads = append(m.payloads, text)
	return m
}

// AddTopic appends one call to each URL that is subscribed to the topic when the message is prepared or submitted.
func (m *Msg) AddTopic(topic string, payload any) *Msg { return m.Add("topic://"+topic, payload) }

// Prepare announces the message. If no submit or abort follows, the door asks queryPrepared what has become of it.
func (m *Msg) Prepare(ctx context.Context, queryPrepared string) error {
	m.query = queryPrepared
	return m.send(ctx, "prepare")
}

// Submit lets the calls be made. Without Prepare before, it is a plain message that arrives at least once.
func (m *Msg) Submit(ctx context.Context) error { return m.send(ctx, "submit") }

// DoAndSubmit prepares, runs do, and submits if do returns nil. do does the sender's own work inside a barrier made
// for b, so that the answer of queryPrepared is the truth. If do returns ErrFailure the message is aborted; after any
// other error queryPrepared is asked at once, and if it does not know either, the door asks it later. The result is
// do's error, joined by one of the door.
func (m *Msg) DoAndSubmit(ctx context.Context, queryPrepared string, do func(ctx context.Context, b Branch) error) error {
	if queryPrepared == "" {
		return fmt.Errorf("msg %s: queryPrepared is empty, which a door takes for yes; name a URL that answers with QueryPrepared", m.GID)
	}
	if err := m.Prepare(ctx, queryPrepared); err != nil {
		return err
	}
	b := Branch{TransType: TypeMsg, GID: m.GID, ID: msgBranch, Op: OpMsg, Server: m.Server, HTTP: m.HTTP}
	err := do(ctx, b)
	if err == nil {
		return m.Submit(ctx)
	}
	ctx, stop := context.WithTimeout(context.WithoutCancel(ctx), abortMax)
	defer stop()
	if !errors.Is(err, ErrFailure) {
		switch asked := m.ask(ctx, b); {
		case asked == nil:
			return errors.Join(err, m.Submit(ctx))
		case !errors.Is(asked, ErrFailure):
			return err // the door will ask
		}
	}
	return errors.Join(err, m.abort(ctx, TypeMsg, err.Error()))
}

// ask makes the call of the door's back-check.
func (m *Msg) ask(ctx context.Context, b Branch) error {
	ctx, stop := m.bound(ctx)
	defer stop()
	_, err := b.call(ctx, http.MethodGet, m.query, nil, map[string]string{"dtm": m.Server}, m.BranchHeaders)
	return err
}

func (m *Msg) send(ctx context.Context, verb string) error {
	if m.err != nil {
		return fmt.Errorf("msg %s: %w", m.GID, m.err)
	}
	b := m.body(TypeMsg)
	b.Steps, b.Payloads, b.Concurrent, b.QueryPrepared = m.steps, m.payloads, m.Concurrent, m.query
	if m.Delay > 0 {
		custom, err := json.Marshal(map[string]int64{"delay": seconds(m.Delay)})
		if err != nil {
			return err
		}
		b.CustomData = string(custom)
	}
	_, err := m.post(ctx, verb, b)
	return err
}
