package accept

import (
	"bytes"
	"errors"
	"log/slog"
	"net"
	"strings"
	"sync"
	"syscall"
	"testing"
	"testing/synctest"
	"time"

	"github.com/google/go-cmp/cmp"
)

// script is a listener whose Accept returns what was written down for it, and then waits to be closed.
type script struct {
	lines  []error // nil: a connection
	ended  chan struct{}
	once   sync.Once
	closes error // of Close
}

func newScript(lines ...error) *script { return &script{lines: lines, ended: make(chan struct{})} }

func (s *script) Accept() (net.Conn, error) {
	if len(s.lines) == 0 {
		<-s.ended
		return nil, net.ErrClosed
	}
	err := s.lines[0]
	s.lines = s.lines[1:]
	if err != nil {
		return nil, err
	}
	c, _ := net.Pipe()
	return c, nil
}

func (s *script) Close() error {
	s.once.Do(func() { close(s.ended) })
	return s.closes
}

func (s *script) Addr() net.Addr { return &net.TCPAddr{Port: 7} }

var silent = slog.New(slog.DiscardHandler)

func TestFailuresThatPassAreOutlivedWithLongerAndLongerRests(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var out bytes.Buffer
		a := New(slog.New(slog.NewTextHandler(&out, nil)))
		full := syscall.EMFILE
		var lines []error
		for range 9 {
			lines = append(lines, full)
		}
		l := newScript(append(lines, nil, full, nil)...)
		served := make(chan error, 1)
		began := time.Now()
		var taken []time.Duration
		go func() { served <- a.Serve(l, func(net.Conn) { taken = append(taken, time.Since(began)) }) }()
		time.Sleep(time.Minute)
		if err := errors.Join(a.Close(), <-served); err != nil {
			t.Errorf("Close and Serve = %v, want nil", err)
		}
		const ms = time.Millisecond
		first := (10 + 20 + 40 + 80 + 160 + 320 + 640 + 1000 + 1000) * ms
		if diff := cmp.Diff([]time.Duration{first, first + 10*ms}, taken); diff != "" {
			t.Errorf("connections came after (-want +got):\n%s", diff)
		}
		if n := strings.Count(out.String(), `msg=accept listen=:7 error="`+full.Error()); n != 10 {
			t.Errorf("logged %d failures, want 10:\n%s", n, out.String())
		}
	})
}

func TestCloseWakesWhoRests(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		a := New(silent)
		served := make(chan error, 1)
		began := time.Now()
		go func() { served <- a.Serve(newScript(syscall.EMFILE), func(net.Conn) {}) }()
		synctest.Wait()
		if err := errors.Join(a.Close(), <-served); err != nil || time.Since(began) != 0 {
			t.Errorf("Close and Serve = %v after %v, want nil at once", err, time.Since(began))
		}
	})
}

func TestListenersEnd(t *testing.T) {
	t.Run("one closed by another is an error", func(t *testing.T) {
		l := newScript()
		_ = l.Close() // it has no error
		want := "accept on :7: use of closed network connection"
		if err := New(silent).Serve(l, nil); err == nil || err.Error() != want || !errors.Is(err, net.ErrClosed) {
			t.Errorf("Serve = %v, want %s", err, want)
		}
	})
	t.Run("one that comes too late is closed", func(t *testing.T) {
		a := New(silent)
		if err := errors.Join(a.Close(), a.Close()); err != nil || !a.Closed() {
			t.Errorf("Close twice = %v, closed %t, want nil and true", err, a.Closed())
		}
		l := newScript(nil)
		if err := a.Serve(l, nil); err == nil || err.Error() != "serve :7: shut down" {
			t.Errorf("Serve = %v, want serve :7: shut down", err)
		}
		select {
		case <-l.ended:
		default:
			t.Error("the listener is still open")
		}
	})
	t.Run("one that does not close is named", func(t *testing.T) {
		synctest.Test(t, func(t *testing.T) {
			a, bad, gone := New(silent), newScript(), newScript()
			bad.closes, gone.closes = errors.New("no"), net.ErrClosed
			served := make(chan error, 2)
			for _, l := range []*script{bad, gone} {
				go func() { served <- a.Serve(l, nil) }()
			}
			synctest.Wait()
			if err := a.Close(); err == nil || err.Error() != "close listener :7: no" {
				t.Errorf("Close = %v, want close listener :7: no", err)
			}
			if err := errors.Join(<-served, <-served); err != nil {
				t.Errorf("Serve = %v, want nil", err)
			}
		})
	})
}
