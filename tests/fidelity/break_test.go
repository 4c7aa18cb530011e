package fidelity

import (
	"bufio"
	"errors"
	"io"
	"net"
	"os"
	"runtime"
	"strings"
	"testing"
	"time"

	"txmesh/interceptor/proxy"
)

// TestBreaks closes or resets one side in every phase of an exchange: the other side must see it, the next exchange
// must work, and nothing may be left running.
func TestBreaks(t *testing.T) {
	const (
		upload  = "POST / HTTP/1.1\r\nHost: x\r\nContent-Length: 9\r\n\r\n"
		chunks  = "POST / HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n"
		started = "HTTP/1.1 200 OK\r\nContent-Length: 9\r\n\r\nabc"
		chunked = "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n3\r\nabc\r\n"
		open    = "HTTP/1.1 200 OK\r\n\r\nabc"
	)
	for _, tt := range []struct {
		name     string
		request  string // what the client sends
		response string // what the server sends after that
		who      string // breaks off then
	}{
		{"client before a word", "", "", "client"},
		{"client in the head", "GET / HTTP/1.1\r\nHo", "", "client"},
		{"client before the body", upload, "", "client"},
		{"client in the body", upload + "abc", "", "client"},
		{"client in a chunk", chunks + "5\r\nab", "", "client"},
		{"client after the request", get, "", "client"},
		{"client after continue", upload, "HTTP/1.1 100 Continue\r\n\r\n", "client"},
		{"client in the response", get, started, "client"},
		{"client in chunks", get, chunked, "client"},
		{"client in an open end", get, open, "client"},
		{"client during an early answer", upload + "abc", started, "client"},
		{"client after the response", get, okay, "client"},
		{"server before the body", upload, "", "server"},
		{"server in the body", upload + "abc", "", "server"},
		{"server after the request", get, "", "server"},
		{"server in the status line", get, "HTTP/1.", "server"},
		{"server in the head", get, "HTTP/1.1 200 OK\r\nConte", "server"},
		{"server after continue", upload, "HTTP/1.1 100 Continue\r\n\r\n", "server"},
		{"server in the response", get, started, "server"},
		{"server in chunks", get, chunked, "server"},
		{"server during an early answer", upload + "abc", started, "server"},
		{"server after the response", get, okay, "server"},
	} {
		for _, reset := range []bool{false, true} {
			t.Run(tt.name+map[bool]string{false: " closes", true: " resets"}[reset], func(t *testing.T) {
				breakOff(t, tt.request, tt.response, tt.who, reset)
			})
		}
	}
}

func breakOff(t *testing.T, request, response, who string, reset bool) {
	before := runtime.NumGoroutine()
	l := listen(t)
	address, stop := newProxy(t, "inbound", l.Addr().String(), proxy.Options{})
	c := dial(t, address)
	say(c, request)
	var srv net.Conn
	if strings.Contains(request, "\r\n\r\n") {
		srv = accept(t, l)
		receive(t, srv, []byte(request), 0)
		say(srv, response)
		if _, body, ok := strings.Cut(response, "\r\n\r\n"); ok || body != "" {
			// through the proxy, an open end is announced
			want := strings.Replace(response, "OK\r\n\r\n", "OK\r\nConnection: close\r\n\r\n", 1)
			receive(t, c, []byte(want), 1)
		}
	}
	broken, other := c, srv
	if who == "server" {
		broken, other = srv, c
	}
	if reset {
		if err := broken.(*net.TCPConn).SetLinger(0); err != nil {
			t.Fatal(err)
		}
	}
	broken.Close()
	seesEnd(t, other, who, response)

	if srv != nil {
		srv.Close() // after a whole exchange it may be kept: the proxy must notice
	}
	next := dial(t, address)
	say(next, get)
	srv = accept(t, l)
	receive(t, srv, []byte(get), 2)
	say(srv, okay)
	receive(t, next, []byte(okay), 3)
	next.Close()
	if other != nil {
		other.Close()
	}
	if srv != nil {
		srv.Close()
	}
	if err := stop(); err != nil {
		t.Error(err)
	}
	for deadline := time.Now().Add(patience); runtime.NumGoroutine() > before; runtime.Gosched() {
		if time.Now().After(deadline) {
			t.Fatalf("%d goroutines, %d before", runtime.NumGoroutine(), before)
		}
	}
}

// seesEnd wants that the side left behind hears of it: the server by the end of its connection, the client by a
// 502 if no response had begun, or else by the end.
func seesEnd(t *testing.T, other net.Conn, who, response string) {
	t.Helper()
	if other == nil || response == okay {
		return // between exchanges nobody needs to know
	}
	r := bufio.NewReader(other)
	begun := strings.Contains(response, " 200 OK\r\n") && strings.Contains(response, "\r\n\r\n")
	if who == "server" && !begun {
		line, n, err := readHead(r)
		if err != nil || line != "HTTP/1.1 502 Bad Gateway\r\n" {
			t.Fatalf("got %q, %v; want 502", line, err)
		}
		body := make([]byte, n)
		if _, err := io.ReadFull(r, body); err != nil || !strings.Contains(string(body), "TXM0221") {
			t.Errorf("got %q, %v; want TXM0221", body, err)
		}
		return
	}
	rest, err := io.ReadAll(r)
	if errors.Is(err, os.ErrDeadlineExceeded) {
		t.Fatal("still open")
	}
	if len(rest) > 0 {
		t.Errorf("got %q, want the end", rest)
	}
}
