// Package accept takes connections from listeners until they are closed, and outlives failures that pass, such as a lack
// of file descriptors. It never reads from a connection, nor counts them: whoever takes them does. Start at
// Listeners.Serve.
package accept

import (
	"errors"
	"fmt"
	"log/slog"
	"net"
	"sync"
	"sync/atomic"
	"time"
)

// The pause after an Accept that failed doubles up to a bound, and begins anew after one that did not.
const (
	restMin = 10 * time.Millisecond
	restMax = time.Second
)

// Listeners is what one server accepts from. Create it with New; it is safe for many goroutines.
type Listeners struct {
	log    *slog.Logger
	closed atomic.Bool
	stop   chan struct{} // closed with the listeners: nobody rests any longer

	mu   sync.Mutex // guards open, and closed while it changes
	open map[net.Listener]struct{}
}

// New returns an account without listeners. The log is told of each Accept that failed.
func New(log *slog.Logger) *Listeners {
	return &Listeners{log: log, stop: make(chan struct{}), open: make(map[net.Listener]struct{})}
}

// Serve gives each connection to admit, which must not block, until Close, which makes it return nil. After Close it
// closes the listener at once and says so.
func (a *Listeners) Serve(l net.Listener, admit func(net.Conn)) error {
	a.mu.Lock()
	if a.closed.Load() {
		a.mu.Unlock()
		return errors.Join(fmt.Errorf("serve %s: shut down", l.Addr()), l.Close())
	}
	a.open[l] = struct{}{}
	a.mu.Unlock()
	rest := restMin
	for {
		conn, err := l.Accept()
		switch {
		case err == nil:
			rest = restMin
			admit(conn)
		case a.Closed():
			return nil
		case errors.Is(err, net.ErrClosed):
			return fmt.Errorf("accept on %s: %w", l.Addr(), err)
		default:
			a.log.Warn("accept", "listen", l.Addr().String(), "error", err)
			select {
			case <-time.After(rest):
			case <-a.stop:
				return nil
			}
			rest = min(2*rest, restMax)
		}
	}
}

// Closed reports whether Close was called: what was accepted meanwhile comes too late.
func (a *Listeners) Closed() bool { return a.closed.Load() }

// Close closes all listeners. Repeating it does nothing.
func (a *Listeners) Close() error {
	a.mu.Lock()
	defer a.mu.Unlock()
	if !a.closed.Swap(true) {
		close(a.stop)
	}
	var errs []error
	for l := range a.open {
		if err := l.Close(); err != nil && !errors.Is(err, net.ErrClosed) {
			errs = append(errs, fmt.Errorf("close listener %s: %w", l.Addr(), err))
		}
	}
	clear(a.open)
	return errors.Join(errs...)
}
