package socket

import (
	"bytes"
	"context"
	"crypto/tls"
	"errors"
	"io"
	"net"
	"os"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
)

// pair is a quick connection and the other side of it.
func pair(t *testing.T) (*Conn, *net.TCPConn) {
	t.Helper()
	tcp, other := bare(t)
	q, ok := Quick(tcp).(*Conn)
	if !ok {
		t.Skip("no quick connections on this system")
	}
	return q, other
}

// bare is two ends of a connection.
func bare(t *testing.T) (client, server *net.TCPConn) {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	c, err := new(net.Dialer).DialContext(context.Background(), "tcp", l.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	s, err := l.Accept()
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		_ = c.Close() // the test may have closed it
		_ = s.Close() // the same
	})
	return c.(*net.TCPConn), s.(*net.TCPConn)
}

// TestBytesArriveWhole sends both ways at once, more than the buffers of the kernel hold.
func TestBytesArriveWhole(t *testing.T) {
	q, other := pair(t)
	want := bytes.Repeat([]byte("0123456789abcdef"), 1<<19)
	for _, c := range []net.Conn{q, other} {
		if err := c.SetDeadline(time.Now().Add(10 * time.Second)); err != nil { // what got lost never comes
			t.Fatal(err)
		}
	}
	var all sync.WaitGroup
	for _, way := range []struct{ from, to net.Conn }{{q, other}, {other, q}} {
		all.Go(func() {
			if n, err := way.from.Write(want); n != len(want) || err != nil {
				t.Errorf("wrote %d of %d: %v", n, len(want), err)
			}
		})
		all.Go(func() {
			got := make([]byte, len(want))
			if _, err := io.ReadFull(way.to, got); err != nil || !bytes.Equal(got, want) {
				t.Errorf("read something else (%v)", err)
			}
		})
	}
	all.Wait()
}

func TestReadWaitsForWhatComes(t *testing.T) {
	q, other := pair(t)
	got := make(chan string)
	go func() {
		p := make([]byte, 10)
		n, err := q.Read(p)
		if err != nil {
			t.Error(err)
		}
		got <- string(p[:n])
	}()
	select {
	case s := <-got:
		t.Fatalf("read %q before anything was sent", s)
	case <-time.After(20 * time.Millisecond):
	}
	if _, err := other.Write([]byte("late")); err != nil {
		t.Fatal(err)
	}
	if s := <-got; s != "late" {
		t.Errorf("read %q", s)
	}
}

// TestEnds compares each end of a connection with what package net says of it.
func TestEnds(t *testing.T) {
	p := make([]byte, 10)
	ends := map[string]func(c, other *net.TCPConn, use net.Conn) error{
		"read nothing": func(_, _ *net.TCPConn, use net.Conn) error {
			_, err := use.Read(nil)
			return err
		},
		"read the end": func(_, other *net.TCPConn, use net.Conn) error {
			return errors.Join(other.CloseWrite(), errorOf(use.Read(p)))
		},
		"read what was reset": func(_, other *net.TCPConn, use net.Conn) error {
			return errors.Join(other.SetLinger(0), other.Close(), errorOf(use.Read(p)))
		},
		"read after Close": func(_, _ *net.TCPConn, use net.Conn) error {
			return errors.Join(use.Close(), errorOf(use.Read(p)))
		},
		"read after the deadline": func(_, _ *net.TCPConn, use net.Conn) error {
			return errors.Join(use.SetReadDeadline(time.Unix(1, 0)), errorOf(use.Read(p)))
		},
		"write after Close": func(_, _ *net.TCPConn, use net.Conn) error {
			return errors.Join(use.Close(), errorOf(use.Write(p)))
		},
		"write after the deadline": func(_, _ *net.TCPConn, use net.Conn) error {
			return errors.Join(use.SetWriteDeadline(time.Unix(1, 0)), errorOf(use.Write(p)))
		},
		"write after CloseWrite": func(c, _ *net.TCPConn, use net.Conn) error {
			return errors.Join(c.CloseWrite(), errorOf(use.Write(p)))
		},
	}
	for name, end := range ends {
		t.Run(name, func(t *testing.T) {
			c, other := bare(t)
			want := end(c, other, c)
			q, far := pair(t)
			got := end(q.TCPConn, far, q)
			if told(got, q) != told(want, c) {
				t.Errorf("got %q, want %q", told(got, q), told(want, c))
			}
			for _, kind := range []error{io.EOF, net.ErrClosed, os.ErrDeadlineExceeded, syscall.ECONNRESET, syscall.EPIPE} {
				if errors.Is(got, kind) != errors.Is(want, kind) {
					t.Errorf("%v: is %v: %v", got, kind, errors.Is(got, kind))
				}
			}
		})
	}
}

func errorOf(_ int, err error) error { return err }

// told is the text of an error without the addresses of the connection.
func told(err error, c net.Conn) string {
	if err == nil {
		return ""
	}
	s := strings.ReplaceAll(err.Error(), c.LocalAddr().String(), "here")
	return strings.ReplaceAll(s, c.RemoteAddr().String(), "there")
}

// TestWriteGoesOnAfterATimeOut: what was taken before the deadline is counted, and the rest can follow.
func TestWriteGoesOnAfterATimeOut(t *testing.T) {
	q, other := pair(t)
	want := bytes.Repeat([]byte("x"), 16<<20)
	if err := q.SetWriteDeadline(time.Now().Add(50 * time.Millisecond)); err != nil {
		t.Fatal(err)
	}
	n, err := q.Write(want)
	if n == 0 || n == len(want) || !errors.Is(err, os.ErrDeadlineExceeded) {
		t.Fatalf("wrote %d of %d: %v", n, len(want), err)
	}
	if err := q.SetWriteDeadline(time.Time{}); err != nil {
		t.Fatal(err)
	}
	var rest sync.WaitGroup
	rest.Go(func() {
		m, err := q.Write(want[n:])
		if n+m != len(want) || err != nil {
			t.Errorf("wrote %d and %d of %d: %v", n, m, len(want), err)
		}
	})
	if _, err := io.ReadFull(other, make([]byte, len(want))); err != nil {
		t.Error(err)
	}
	rest.Wait()
}

func TestTryDoesNotWait(t *testing.T) {
	q, other := pair(t)
	p := make([]byte, 1<<20)
	sent := 0
	for {
		n, err := q.Try(p)
		if err != nil {
			t.Fatal(err)
		}
		if sent += n; n == 0 {
			break
		}
	}
	if n, err := io.CopyN(io.Discard, other, int64(sent)); err != nil {
		t.Errorf("%d of %d bytes have come: %v", n, sent, err)
	}
}

// TestAsk looks at what a request meets on a connection that has rested.
func TestAsk(t *testing.T) {
	type reply struct {
		Wrote  int
		Answer string
		Err    string
	}
	request := bytes.Repeat([]byte("q"), 4<<20) // more than the kernel takes at once
	cases := map[string]struct {
		before  func(other *net.TCPConn) error
		request []byte
		server  func(other *net.TCPConn) error // nil: it says nothing
		want    reply
	}{
		"answered": {request: request[:10], server: func(other *net.TCPConn) error {
			_, err := io.ReadFull(other, make([]byte, 10))
			return errors.Join(err, errorOf(other.Write([]byte("yes"))))
		}, want: reply{10, "yes", ""}},
		"ended instead": {request: request[:10], server: func(other *net.TCPConn) error {
			_, err := io.ReadFull(other, make([]byte, 10))
			return errors.Join(err, other.CloseWrite())
		}, want: reply{10, "", "EOF"}},
		"reset instead": {request: request[:10], server: func(other *net.TCPConn) error {
			return errors.Join(other.SetLinger(0), other.Close())
		}, want: reply{10, "", "read tcp here->there: read: connection reset by peer"}},
		"nothing comes": {request: request[:10], want: reply{10, "", "read tcp here->there: i/o timeout"}},
		"taken in parts": {request: request, server: func(other *net.TCPConn) error {
			_, err := io.ReadFull(other, make([]byte, len(request)))
			return err
		}, want: reply{len(request), "", ""}},
		"spoken on": {request: request[:10], before: func(other *net.TCPConn) error {
			return errorOf(other.Write([]byte("HTTP/1.1 408")))
		}, want: reply{0, "", ErrSpoken.Error()}},
		"ended before": {request: request[:10], before: (*net.TCPConn).CloseWrite, want: reply{0, "", ErrSpoken.Error()}},
	}
	for name, c := range cases {
		t.Run(name, func(t *testing.T) {
			q, other := pair(t)
			if c.before != nil {
				if err := c.before(other); err != nil {
					t.Fatal(err)
				}
			}
			var served sync.WaitGroup
			if c.server != nil {
				served.Go(func() {
					time.Sleep(10 * time.Millisecond) // it is waited for
					if err := c.server(other); err != nil {
						t.Error(err)
					}
				})
			}
			within := 10 * time.Second
			if c.server == nil {
				within = 50 * time.Millisecond
			}
			if err := q.SetReadDeadline(time.Now().Add(within)); err != nil {
				t.Fatal(err)
			}
			p := make([]byte, 10)
			wrote, read, err := q.Ask(c.request, p)
			served.Wait()
			if diff := cmp.Diff(c.want, reply{wrote, string(p[:read]), told(err, q)}); diff != "" {
				t.Errorf("(-want +got):\n%s", diff)
			}
		})
	}
}

// TestAsksInARow: no answer is missed, however soon it comes.
func TestAsksInARow(t *testing.T) {
	q, other := pair(t)
	var served sync.WaitGroup
	served.Go(func() {
		p := make([]byte, 1)
		for {
			if _, err := other.Read(p); err != nil {
				return
			}
			if _, err := other.Write(p); err != nil {
				t.Error(err)
				return
			}
		}
	})
	if err := q.SetReadDeadline(time.Now().Add(20 * time.Second)); err != nil {
		t.Fatal(err)
	}
	p := make([]byte, 2)
	for i := range 50000 {
		sent := []byte{byte(i)}
		if _, n, err := q.Ask(sent, p); err != nil || n != 1 || p[0] != sent[0] {
			t.Fatalf("ask %d: read %v: %v", i, p[:n], err)
		}
	}
	if err := q.Close(); err != nil {
		t.Error(err)
	}
	served.Wait()
}

func TestCloseWakesAReader(t *testing.T) {
	q, _ := pair(t)
	failed := make(chan error)
	go func() {
		_, err := q.Read(make([]byte, 1))
		failed <- err
	}()
	if err := q.Close(); err != nil {
		t.Fatal(err)
	}
	if err := <-failed; !errors.Is(err, net.ErrClosed) {
		t.Errorf("got %v", err)
	}
}

func TestIsSilent(t *testing.T) {
	states := map[string]struct {
		do   func(other *net.TCPConn) error
		want bool
	}{
		"open":  {func(*net.TCPConn) error { return nil }, true},
		"spoke": {func(other *net.TCPConn) error { return errorOf(other.Write([]byte("x"))) }, false},
		"ended": {(*net.TCPConn).CloseWrite, false},
		"reset": {func(other *net.TCPConn) error { return errors.Join(other.SetLinger(0), other.Close()) }, false},
	}
	for name, s := range states {
		t.Run(name, func(t *testing.T) {
			for _, quick := range []bool{false, true} {
				c, other := bare(t)
				var use net.Conn = c
				if quick {
					use = Quick(c)
				}
				if err := s.do(other); err != nil {
					t.Fatal(err)
				}
				// What was sent over the loopback has arrived.
				if got := IsSilent(use); got != s.want {
					t.Errorf("quick: %v: silent: %v, want %v", quick, got, s.want)
				}
				if err := use.Close(); err != nil {
					t.Fatal(err)
				}
				if IsSilent(use) {
					t.Errorf("quick: %v: silent after Close", quick)
				}
			}
		})
	}
}

// TestOthersStayWhatTheyAre: only what is a socket and nothing else is quick.
func TestOthersStayWhatTheyAre(t *testing.T) {
	c, _ := bare(t)
	secret := tls.Client(c, &tls.Config{ServerName: "x"})
	if got := Quick(secret); got != net.Conn(secret) {
		t.Errorf("TLS became %T", got)
	}
	q := Quick(c)
	if got := Quick(q); got != q {
		t.Errorf("a quick connection became another one")
	}
	type embeds struct{ *net.TCPConn }
	if got := Quick(embeds{c}); got != net.Conn(embeds{c}) {
		t.Errorf("a type that may read otherwise became %T", got)
	}
	if got, ok := Quick(knows{c}).(*Conn); ok && got.TCPConn != c {
		t.Errorf("another connection")
	} else if _, plain := q.(*Conn); plain && !ok {
		t.Errorf("what only knows more stayed slow")
	}
}

type knows struct{ *net.TCPConn }

func (k knows) Bare() *net.TCPConn { return k.TCPConn }

// TestNothingIsAllocated: connections are read and written all day.
func TestNothingIsAllocated(t *testing.T) {
	if raced {
		t.Skip("left out: the calls for the race detector allocate their errors")
	}
	q, other := pair(t)
	p := make([]byte, 100)
	if n := testing.AllocsPerRun(100, func() {
		for _, use := range []func([]byte) (int, error){q.Write, other.Read, other.Write, q.Read, q.Try, other.Read} {
			if _, err := use(p); err != nil {
				t.Fatal(err)
			}
		}
		if !IsSilent(q) {
			t.Fatal("not silent")
		}
	}); n > 0 {
		t.Errorf("%v allocations", n)
	}
}
