package sql_test

import (
	"bytes"
	"errors"
	"net"
	"net/url"
	"sync"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"txmesh/txlog"
	shared "txmesh/txlog/sql"
	"txmesh/txn"
)

// proxy stands between an engine and its database.
type proxy struct {
	listener net.Listener
	server   string

	mu      sync.Mutex    // guards the fields below
	held    chan struct{} // while it is not nil, connections that were there pass nothing to the server until it is closed
	conns   int           // so many were there
	cutFrom []byte        // after this was sent, the answer is dropped and the connection closed, once; nil: no
}

// through returns a DSN that leads through a proxy.
func through(t *testing.T, dsn string) (string, *proxy) {
	t.Helper()
	u, err := url.Parse(dsn)
	if err != nil {
		t.Fatal(err)
	}
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	p := &proxy{listener: l, server: u.Host}
	t.Cleanup(func() { _ = l.Close() }) // ends accept
	go p.accept()
	u.Host = l.Addr().String()
	return u.String(), p
}

func (p *proxy) accept() {
	for n := 1; ; n++ {
		c, err := p.listener.Accept()
		if err != nil {
			return
		}
		s, err := net.Dial("tcp", p.server)
		if err != nil {
			_ = c.Close()
			continue
		}
		p.mu.Lock()
		p.conns = n
		p.mu.Unlock()
		answers := make(chan struct{}) // closed when the next answer is to be dropped
		go p.forward(n, c, s, answers)
		go p.back(c, s, answers)
	}
}

func (p *proxy) forward(n int, c, s net.Conn, answers chan struct{}) {
	b := make([]byte, 1<<16)
	for {
		k, err := c.Read(b)
		p.mu.Lock()
		held := p.held
		if n > p.conns {
			held = nil
		}
		if p.cutFrom != nil && bytes.Contains(b[:k], p.cutFrom) {
			p.cutFrom = nil
			close(answers)
		}
		p.mu.Unlock()
		if held != nil {
			<-held
		}
		if _, werr := s.Write(b[:k]); err != nil || werr != nil {
			_ = s.(*net.TCPConn).CloseWrite()
			return
		}
	}
}

func (p *proxy) back(c, s net.Conn, answers chan struct{}) {
	defer c.Close()
	b := make([]byte, 1<<16)
	for {
		k, err := s.Read(b)
		select {
		case <-answers:
			return
		default:
		}
		if _, werr := c.Write(b[:k]); err != nil || werr != nil {
			return
		}
	}
}

func one(id string) []txlog.Entry {
	return []txlog.Entry{{Tx: txn.ID(id), At: time.Unix(1, 0).UTC(), Record: txn.Began{Spec: txn.Spec{ID: txn.ID(id), Mode: txn.Saga}}}}
}

// A group that is on its way when it is given up reaches the server after the journal was opened anew. On MariaDB only a
// COMMIT can be on its way like this, and then its locks hold up who opens.
func TestAGivenUpAppendIsDeadOnceTheJournalIsOpened(t *testing.T) {
	dsn, p := through(t, postgresPlace(t, &set))
	s := claim(t, open(t, shared.Options{DSN: dsn, Timeout: time.Second}), "AAAAAAAAAAAAA")
	if err := s.Append(t.Context(), one("a"), true); err != nil {
		t.Fatal(err)
	}
	release := make(chan struct{})
	p.mu.Lock()
	p.held = release
	p.mu.Unlock()
	if err := s.Append(t.Context(), one("late"), true); !errors.Is(err, txlog.ErrUnavailable) {
		t.Fatalf("append into the void = %v, want ErrUnavailable", err)
	}
	p.mu.Lock()
	p.held = nil // for connections from now on; who reads it already waits for the release
	p.mu.Unlock()
	if diff := cmp.Diff(map[txn.ID]int{"a": 1}, countOpen(t, s)); diff != "" {
		t.Fatalf("first open (-want +got):\n%s", diff)
	}
	close(release)
	time.Sleep(300 * time.Millisecond) // for the server to execute it
	if diff := cmp.Diff(map[txn.ID]int{"a": 1}, countOpen(t, s)); diff != "" {
		t.Fatalf("open after what was on its way arrived (-want +got):\n%s", diff)
	}
}

func TestAnAppendWhoseAnswerIsLostIsWrittenOnce(t *testing.T) {
	for _, k := range kinds {
		t.Run(k.name, func(t *testing.T) {
			dsn, p := through(t, k.place(t, &set))
			s := claim(t, open(t, shared.Options{DSN: dsn}), "AAAAAAAAAAAAA")
			want := one("a")
			if err := s.Append(t.Context(), want, true); err != nil {
				t.Fatal(err)
			}
			for range 5 {
				e := txlog.Entry{Tx: "a", At: time.Unix(2, 0).UTC(), Record: txn.Settled{Branch: "marked-branch"}}
				want = append(want, e)
				p.mu.Lock()
				p.cutFrom = []byte("COMMIT")
				if k.name == "postgres" {
					p.cutFrom = []byte("marked-branch") // all is one message there
				}
				p.mu.Unlock()
				if err := s.Append(t.Context(), []txlog.Entry{e}, true); err != nil {
					t.Fatal(err)
				}
			}
			var got []txlog.Entry
			for e, err := range s.History(t.Context(), "a") {
				if err != nil {
					t.Fatal(err)
				}
				got = append(got, e)
			}
			if diff := cmp.Diff(want, got); diff != "" {
				t.Errorf("history (-want +got):\n%s", diff)
			}
		})
	}
}
