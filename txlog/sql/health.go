package sql

import (
	"context"
	"database/sql/driver"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"strings"
	"sync"
	"time"

	"github.com/go-sql-driver/mysql"
	"github.com/jackc/pgx/v5/pgconn"

	"txmesh/txlog"
)

// health is whether the database answers. An operation that fails makes it down; a write or the probe, which runs while it
// is down, makes it well again.
type health struct {
	log  *slog.Logger
	stop context.CancelFunc
	done chan struct{} // closed when the prober has ended
	ill  chan struct{} // holds one token when it has become down

	mu   sync.Mutex // guards down
	down error
}

// probeEvery is how often a database that is away is asked whether it is back.
const probeEvery = 200 * time.Millisecond

func watch(probe func(context.Context) error, log *slog.Logger) *health {
	ctx, stop := context.WithCancel(context.Background())
	h := &health{log: log, stop: stop, done: make(chan struct{}), ill: make(chan struct{}, 1)}
	go h.run(ctx, probe)
	return h
}

func (h *health) run(ctx context.Context, probe func(context.Context) error) {
	defer close(h.done)
	tick := time.NewTicker(probeEvery)
	defer tick.Stop()
	for {
		select {
		case <-h.ill:
		case <-ctx.Done():
			return
		}
		for h.err() != nil {
			select {
			case <-tick.C:
			case <-ctx.Done():
				return
			}
			if probe(ctx) == nil {
				h.well()
			}
		}
	}
}

func (h *health) close() {
	h.stop()
	<-h.done
}

func (h *health) failed(err error) {
	h.mu.Lock()
	defer h.mu.Unlock()
	if h.down == nil {
		h.log.Warn("shared store is away", "error", err)
		select {
		case h.ill <- struct{}{}:
		default: // it was told already
		}
	}
	h.down = fmt.Errorf("%w: %w", txlog.ErrUnavailable, err)
}

func (h *health) well() {
	h.mu.Lock()
	defer h.mu.Unlock()
	if h.down != nil {
		h.log.Info("shared store is back")
	}
	h.down = nil
}

func (h *health) err() error {
	h.mu.Lock()
	defer h.mu.Unlock()
	return h.down
}

// unreachable reports whether nothing was heard of the database, or only that it starts or ends, so that another try may
// find it.
func unreachable(err error) bool {
	var network net.Error
	var pg *pgconn.PgError
	switch {
	case errors.As(err, &pg):
		return strings.HasPrefix(pg.Code, "57P") // starting, or shutting down
	case errors.As(err, &network), errors.Is(err, context.DeadlineExceeded), errors.Is(err, driver.ErrBadConn), errors.Is(err, io.EOF),
		errors.Is(err, io.ErrUnexpectedEOF), errors.Is(err, mysql.ErrInvalidConn): // the last: closed in the middle of the greeting
		return true
	default:
		return false
	}
}
