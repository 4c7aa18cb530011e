package sidecar

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"iter"
	"net"
	"time"

	"github.com/oklog/ulid/v2"
	"github.com/valyala/fasthttp"

	"txmesh/interceptor"
	"txmesh/interceptor/dtm"
	"txmesh/sidecar/admin"
	"txmesh/sidecar/engine"
	"txmesh/sidecar/identity"
	"txmesh/sidecar/owners"
	"txmesh/txlog"
	"txmesh/txn"
)

// newDTM makes the door for clients of DTM.
func (s *Sidecar) newDTM(version string) *dtm.Service {
	return dtm.New(dtm.Options{Engine: dtmEngine{s.owners}, Chronicle: chronicle{s.store}, Rows: dtmRows{s.store.Table("dtm")},
		NewGID: func() string { return ulid.Make().String() }, Version: version,
		Defaults: dtm.Defaults{TimeoutToFail: s.cfg.DTM.TimeoutToFail, RetryInterval: s.cfg.DTM.RetryInterval,
			RetryMax: s.cfg.DTM.RetryMax, RequestTimeout: s.cfg.DTM.RequestTimeout, ResumeAfter: s.cfg.DTM.ResumeAfter},
		Alerts: dtm.Alerts{URL: s.cfg.DTM.AlertURL, After: s.cfg.DTM.AlertAfter, Dial: s.dial}, BodyMax: s.cfg.MaxBody,
		May: s.mayAsk, Now: time.Now, Log: s.log})
}

// takeOver gives the API the door's way to begin what a server of DTM has begun.
func (s *Sidecar) takeOver() admin.TakeOver {
	if !s.cfg.DTM.Open() {
		return nil
	}
	return func(ctx context.Context, body []byte, dryRun bool) (json.RawMessage, error) {
		t, err := s.dtm.TakeOver(ctx, body, dryRun)
		if err != nil {
			return nil, err
		}
		return json.Marshal(t)
	}
}

// openDTM opens the ports of the door that are configured.
func (s *Sidecar) openDTM(p *ports) error {
	var err error
	if s.cfg.DTM.HTTP != "" {
		srv := &fasthttp.Server{Handler: s.dtm.Handler(), ErrorHandler: s.dtm.Unreadable, Name: "txmesh", MaxRequestBodySize: s.cfg.MaxBody,
			ReadTimeout: serverReadTime, IdleTimeout: serverIdle, NoDefaultServerHeader: true, DisablePreParseMultipartForm: true,
			Logger: silent{}, CloseOnShutdown: true}
		serve := func(l net.Listener) error {
			return srv.Serve(s.secured(identity.Optional, "http/1.1")(s.capped(crowded)(l)))
		}
		if p.dtm, err = p.open("dtm", s.cfg.DTM.HTTP, serve, srv.ShutdownWithContext); err != nil {
			return err
		}
	}
	if s.cfg.DTM.GRPC != "" {
		srv := s.dtm.GRPC()
		serve := func(l net.Listener) error { return srv.Serve(s.secured(identity.Optional, "h2")(s.capped("")(l))) }
		stop := func(ctx context.Context) error {
			defer context.AfterFunc(ctx, srv.Stop)()
			srv.GracefulStop()
			return nil
		}
		p.dtmGRPC, err = p.open("dtm-grpc", s.cfg.DTM.GRPC, serve, stop)
	}
	return err
}

// silent drops what fasthttp has to say of clients that go away.
type silent struct{}

// Printf implements fasthttp.Logger.
func (silent) Printf(string, ...any) {}

// dtmEngine gives the engine's refusals the names that doors know.
type dtmEngine struct{ *owners.Owners }

// Do implements dtm.Engine.
func (e dtmEngine) Do(ctx context.Context, id txn.ID, ev txn.Event) (txn.State, error) {
	st, err := e.Owners.Do(ctx, id, ev)
	switch {
	case errors.Is(err, engine.ErrBranches):
		err = fmt.Errorf("%w: %w", interceptor.ErrBranches, err)
	case errors.Is(err, engine.ErrTooLarge):
		err = fmt.Errorf("%w: %w", interceptor.ErrTooLarge, err)
	}
	return st, err
}

// chronicle tells doors what the journal remembers.
type chronicle struct{ journal txlog.Journal }

// Story implements dtm.Chronicle.
func (c chronicle) Story(ctx context.Context, id txn.ID) ([]interceptor.Fact, error) {
	var facts []interceptor.Fact
	for e, err := range c.journal.History(ctx, id) {
		if err != nil {
			return nil, err
		}
		facts = append(facts, interceptor.Fact{At: e.At, Record: e.Record})
	}
	return facts, nil
}

// Titles implements dtm.Chronicle.
func (c chronicle) Titles(ctx context.Context, q interceptor.TitleQuery) iter.Seq2[interceptor.Title, error] {
	lq := txlog.Query{Phases: q.Phases, Name: q.Door, From: txlog.Cursor(q.From)}
	lq.Begun.After, lq.Begun.Before = q.Begun.After, q.Begun.Before
	return func(yield func(interceptor.Title, error) bool) {
		for {
			found, next, err := c.journal.List(ctx, lq)
			if err != nil {
				yield(interceptor.Title{}, err)
				return
			}
			for _, t := range found {
				if !yield(interceptor.Title{ID: t.ID, Mode: t.Mode, Next: string(txlog.After(t))}, nil) {
					return
				}
			}
			if next == "" {
				return
			}
			lq.From = next
		}
	}
}

// dtmRows is the door's table.
type dtmRows struct{ table txlog.Table }

// Get implements dtm.Rows.
func (r dtmRows) Get(ctx context.Context, key string) ([]byte, bool, error) {
	return rows{table: r.table}.Load(ctx, key)
}

// Put implements dtm.Rows.
func (r dtmRows) Put(ctx context.Context, key string, value []byte) error {
	return r.table.Put(ctx, []txlog.Row{{Key: key, Value: value}}, true)
}

// Scan implements dtm.Rows.
func (r dtmRows) Scan(ctx context.Context, prefix string) iter.Seq2[dtm.Row, error] {
	return func(yield func(dtm.Row, error) bool) {
		for row, err := range r.table.Scan(ctx, prefix) {
			if !yield(dtm.Row(row), err) || err != nil {
				return
			}
		}
	}
}

// DTM is the configuration of the door for clients of DTM. Without addresses it is closed.
type DTM struct {
	HTTP, GRPC     string
	TimeoutToFail  time.Duration
	RetryInterval  time.Duration
	RetryMax       time.Duration
	RequestTimeout time.Duration
	ResumeAfter    time.Duration
	AlertURL       string
	AlertAfter     int
}

// Open reports whether clients of DTM are served.
func (d DTM) Open() bool { return d.HTTP != "" || d.GRPC != "" }

// aloneService is the name of a sidecar that stands beside no application.
const aloneService = "default/txmesh"

// Alone reports whether no application stands beside the sidecar: it serves doors only.
func (c *Config) Alone() bool { return c.App == "" }
