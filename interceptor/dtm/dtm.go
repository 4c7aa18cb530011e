// Package dtm is the door for applications written on the SDKs of DTM: it speaks their wire protocol over HTTP, JSON-RPC
// and gRPC, turns what they ask for into events of the engine, and makes and reads the engine's calls in their dialect.
// It decides nothing about transactions and keeps nothing but topics and prepared sagas. Quirks of the protocol are data in
// wire.go; docs/reference/dtm.md lists each intended difference. Start at Service for what is asked, http.go for how it
// arrives, calls.go for what goes out.
package dtm

import (
	"context"
	"iter"
	"log/slog"
	"time"

	"txmesh/interceptor"
	"txmesh/policies"
	"txmesh/txn"
)

// Name is the door's name in Spec.Door.
const Name = "dtm"

// Engine decides the transactions of this sidecar.
type Engine interface {
	Do(ctx context.Context, id txn.ID, e txn.Event) (txn.State, error)
	// DoAndWait is Do and Wait in one go.
	DoAndWait(ctx context.Context, id txn.ID, e txn.Event, until func(txn.State) bool) (txn.State, error)
	Wait(ctx context.Context, id txn.ID, until func(txn.State) bool) (txn.State, error)
	State(ctx context.Context, id txn.ID) (txn.State, error)
}

// Chronicle tells what has happened to transactions, and when.
type Chronicle interface {
	// Story returns all facts of one transaction in order; none: it is not known.
	Story(ctx context.Context, id txn.ID) ([]interceptor.Fact, error)
	// Titles yields the transactions of this door, newest first, that were begun in the given time, from a cursor on.
	Titles(ctx context.Context, q interceptor.TitleQuery) iter.Seq2[interceptor.Title, error]
}

// Rows keeps small rows durably.
type Rows interface {
	Get(ctx context.Context, key string) (value []byte, found bool, err error)
	// Put is durable when it returns; a nil value deletes.
	Put(ctx context.Context, key string, value []byte) error
	// Scan yields the rows whose key begins with prefix, in key order.
	Scan(ctx context.Context, prefix string) iter.Seq2[Row, error]
}

// Row is one row of Rows.
type Row struct {
	Key   string
	Value []byte
}

// Options is what the door works with.
type Options struct {
	Engine    Engine
	Chronicle Chronicle
	Rows      Rows
	NewGID    func() string
	Version   string
	Defaults  Defaults
	Alerts    Alerts
	May       func(a Asker, oneOf ...policies.Act) error // an error wraps interceptor.ErrDenied; nil: everybody may all
	BodyMax   int                                        // of a request
	Now       func() time.Time
	Log       *slog.Logger
}

// Defaults is what a transaction has whose client says nothing.
type Defaults struct {
	TimeoutToFail  time.Duration // of a prepared tcc, xa or msg
	RetryInterval  time.Duration // before the first repeat of a call; doubles from there
	RetryMax       time.Duration // between two repeats
	RequestTimeout time.Duration // of one call of a branch
	ResumeAfter    time.Duration // a workflow that is silent for so long is called again
}

// Service is the door. It is safe for many goroutines.
type Service struct {
	Options
	topics  topics
	sagas   preparedSagas
	alerts  *alerter
	metrics *metrics
	notes   notes
}

// New returns the door. Close it to end its goroutine.
func New(opt Options) *Service {
	s := &Service{Options: opt, topics: topics{rows: opt.Rows}, alerts: newAlerter(opt.Alerts, opt.Log), metrics: newMetrics()}
	return s
}

// Close ends what runs in the background.
func (s *Service) Close() { s.alerts.close() }
