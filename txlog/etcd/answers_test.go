package etcd_test

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"txmesh/tests/databases"
	"txmesh/txlog"
	"txmesh/txlog/etcd"
	"txmesh/txn"
)

// deafening is a proxy that lets requests through and, when told so, loses the answers.
type deafening struct {
	listener net.Listener
	server   string
	deaf     atomic.Bool

	mu    sync.Mutex // guards conns
	conns []net.Conn
}

func startDeafening(t *testing.T, server string) *deafening {
	l, err := (&net.ListenConfig{}).Listen(t.Context(), "tcp", "127.0.0.1:0")
	mustDo(t, err)
	d := &deafening{listener: l, server: server}
	go d.accept()
	t.Cleanup(func() { l.Close(); d.cut() })
	return d
}

func (d *deafening) accept() {
	for {
		client, err := d.listener.Accept()
		if err != nil {
			return
		}
		server, err := (&net.Dialer{}).DialContext(context.Background(), "tcp", d.server)
		if err != nil {
			client.Close()
			continue
		}
		d.mu.Lock()
		d.conns = append(d.conns, client, server)
		d.mu.Unlock()
		go func() { _, _ = io.Copy(server, client) }() // until it is cut
		go d.answer(client, server)
	}
}

func (d *deafening) answer(client, server net.Conn) {
	buf := make([]byte, 64<<10)
	for {
		n, err := server.Read(buf)
		if err != nil {
			return
		}
		if d.deaf.Load() {
			continue
		}
		if _, err := client.Write(buf[:n]); err != nil {
			return
		}
	}
}

// cut ends all connections.
func (d *deafening) cut() {
	d.mu.Lock()
	defer d.mu.Unlock()
	for _, c := range d.conns {
		c.Close()
	}
	d.conns = nil
}

// TestLostAnswersChangeNothing: whatever answer is lost, each append is there once and in its place.
func TestLostAnswersChangeNothing(t *testing.T) {
	t.Parallel()
	c := databases.StartEtcd(t, 1)
	d := startDeafening(t, c.Endpoints()[0])
	a := startAppender(t, c, 1, func(o *etcd.Options) { o.Endpoints = []string{d.listener.Addr().String()} })
	ctx, stop := context.WithCancel(t.Context())
	var writing sync.WaitGroup
	for w := range writersOfEach {
		writing.Go(func() { a.write(ctx, t, w) })
	}
	for range 40 {
		await(t, []*appender{a})
		d.deaf.Store(true)
		time.Sleep(10 * time.Millisecond) // a transaction is done of which nobody hears
		d.cut()
		d.deaf.Store(false)
	}
	await(t, []*appender{a})
	stop()
	writing.Wait()
	a.check(t)
}

// TestAFencedAppendIsNotMistaken: the next epoch has written as many transactions, and they are not the fenced one's.
func TestAFencedAppendIsNotMistaken(t *testing.T) {
	c := databases.StartEtcd(t, 1)
	e, other := open(t, c), open(t, c)
	l, err := e.Claim(t.Context(), owner, 0, txlog.Holder{})
	mustDo(t, err)
	fenced := e.As(l.Owner)
	mustDo(t, fenced.Append(t.Context(), []txlog.Entry{began("a", 0)}, true))
	next, err := other.Claim(t.Context(), owner, l.Owner.Epoch, txlog.Holder{})
	mustDo(t, err)
	mustDo(t, other.As(next.Owner).Append(t.Context(), []txlog.Entry{began("b", 0)}, true))
	if err := fenced.Append(t.Context(), []txlog.Entry{began("c", 0)}, true); !errors.Is(err, txlog.ErrFenced) {
		t.Errorf("append under the old epoch: %v, want ErrFenced", err)
	}
}

// TestLateRecordsAndTrimsDoNotMix: a transaction that gets a late record while it is being forgotten is there whole,
// with the record, or begins anew with it.
func TestLateRecordsAndTrimsDoNotMix(t *testing.T) {
	t.Parallel()
	c := databases.StartEtcd(t, 1)
	s := claim(t, open(t, c), owner)
	trims := claim(t, open(t, c), "BBBBBBBBBBBBB")
	kept := 0
	for i := range 200 {
		id := fmt.Sprint("tx", i)
		mustDo(t, s.Append(t.Context(), []txlog.Entry{began(id, 10), ended(id)}, true))
		late := txlog.Entry{Tx: txn.ID(id), At: time.Unix(3, 0), Record: txn.Forced{Branch: "b", By: "op"}}
		var both sync.WaitGroup
		both.Go(func() {
			if err := s.Append(t.Context(), []txlog.Entry{late}, true); err != nil {
				t.Error(err)
			}
		})
		both.Go(func() {
			if _, err := trims.Trim(t.Context(), time.Unix(9, 0)); err != nil {
				t.Error(err)
			}
		})
		both.Wait()
		n := 0
		for _, err := range s.History(t.Context(), txn.ID(id)) {
			mustDo(t, err)
			n++
		}
		switch n {
		case 3:
			kept++
		case 0, 1:
		default:
			t.Fatalf("%s has %d entries, want all 3, or the late one alone, or none", id, n)
		}
	}
	t.Logf("%d of 200 were kept", kept)
}
