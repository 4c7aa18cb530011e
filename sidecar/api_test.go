package sidecar

import (
	"bufio"
	"compress/gzip"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"strconv"
	"strings"
	"testing"
	"time"
)

// asked sends raw bytes to the API port and returns the answer and whether the connection goes on after it.
func asked(t *testing.T, address, method, raw string) (res *http.Response, body string, open bool) {
	t.Helper()
	c, err := net.Dial("tcp", address)
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	if err := c.SetDeadline(time.Now().Add(10 * time.Second)); err != nil {
		t.Fatal(err)
	}
	if _, err := io.WriteString(c, raw); err != nil {
		t.Fatal(err)
	}
	br := bufio.NewReader(c)
	if res, err = http.ReadResponse(br, &http.Request{Method: method}); err != nil {
		t.Fatal(err)
	}
	text, err := io.ReadAll(res.Body)
	if err != nil {
		t.Fatal(err)
	}
	return res, string(text), !res.Close
}

// Whatever a client of the API sends, the answer is a problem that names its code.
func TestAPIRefusesWithProblems(t *testing.T) {
	s := start(t, config(t, "a/b", newService(t).address()))
	token := "Authorization: Bearer " + s.token + "\r\n"
	large := strings.Repeat("x", 1<<20+1)
	for _, tt := range []struct {
		name, method, raw string
		status            int
		code              string
		open              bool
	}{
		{"no route", "GET", "GET /nowhere HTTP/1.1\r\nHost: a\r\n\r\n", 404, "TXM0310", true},
		{"no method", "DELETE", "DELETE /healthz HTTP/1.1\r\nHost: a\r\n\r\n", 405, "TXM0311", true},
		{"no token", "POST", "POST /v1/transactions HTTP/1.1\r\nHost: a\r\nContent-Length: 2\r\n\r\n{}", 401, "TXM0300", true},
		{"no token for a large body", "POST", "POST /v1/transactions HTTP/1.1\r\nHost: a\r\nContent-Length: 1000000000\r\n\r\n{", 401, "TXM0300", false},
		{"no JSON", "POST", "POST /v1/transactions HTTP/1.1\r\nHost: a\r\n" + token + "Content-Length: 1\r\n\r\nx", 400, "TXM0301", true},
		{"large body", "POST", "POST /v1/transactions HTTP/1.1\r\nHost: a\r\n" + token + "Content-Length: " + strconv.Itoa(len(large)) + "\r\n\r\n" + large, 413, "TXM0312", true},
		{"large body in chunks", "POST", "POST /v1/transactions HTTP/1.1\r\nHost: a\r\n" + token + "Transfer-Encoding: chunked\r\n\r\n" +
			fmt.Sprintf("%x\r\n%s\r\n0\r\n\r\n", len(large), large), 413, "TXM0312", true},
		{"large head", "GET", "GET /healthz HTTP/1.1\r\nHost: a\r\nA: " + strings.Repeat("b", serverHeaders) + "\r\n\r\n", 431, "TXM0320", false},
		{"no HTTP", "GET", "hello\r\n\r\n", 400, "TXM0319", false},
		{"two lengths", "POST", "POST /v1/transactions HTTP/1.1\r\nHost: a\r\n" + token + "Content-Length: 1\r\nContent-Length: 2\r\n\r\nxx", 400, "TXM0319", false},
	} {
		t.Run(tt.name, func(t *testing.T) {
			res, body, open := asked(t, s.API, tt.method, tt.raw)
			var p struct{ Code, Remedy string }
			if err := json.Unmarshal([]byte(body), &p); err != nil {
				t.Fatalf("%d %q: %v", res.StatusCode, body, err)
			}
			if res.StatusCode != tt.status || p.Code != tt.code || p.Remedy == "" || res.Header.Get("tx-error") != tt.code ||
				res.Header.Get("Content-Type") != "application/problem+json" || open != tt.open {
				t.Errorf("got %d %v %s, open %v; want %d %s, open %v", res.StatusCode, res.Header, body, open, tt.status, tt.code, tt.open)
			}
			if strings.Contains(body, s.token) {
				t.Errorf("the answer shows the token: %s", body)
			}
			if tt.status == 405 && res.Header.Get("Allow") != "GET, HEAD" {
				t.Errorf("allow = %q", res.Header.Get("Allow"))
			}
		})
	}
	if res, body, _ := asked(t, s.API, "HEAD", "HEAD /healthz HTTP/1.1\r\nHost: a\r\n\r\n"); res.StatusCode != 200 || body != "" || res.ContentLength != int64(len(`{"status":"ok"}`)+1) {
		t.Errorf("HEAD = %d, length %d, %q", res.StatusCode, res.ContentLength, body)
	}
	head := strings.Repeat("b", serverHeaders-200)
	if res, _, open := asked(t, s.API, "GET", "GET /healthz HTTP/1.1\r\nHost: a\r\nA: "+head+"\r\n\r\n"); res.StatusCode != 200 || !open {
		t.Errorf("head below the limit = %d", res.StatusCode)
	}
}

func TestProfilesAndMetricsOfTheAPI(t *testing.T) {
	s := start(t, config(t, "a/b", newService(t).address()))
	for path, begins := range map[string]string{"profile?seconds=1": "\x1f\x8b", "trace?seconds=0.1": "go 1.", "heap": "\x1f\x8b",
		"goroutine?debug=1": "goroutine profile:", "": "<html>", "cmdline": "/"} {
		if status, text := s.api("GET", "/debug/pprof/"+path, ""); status != 200 || !strings.HasPrefix(text, begins) {
			t.Errorf("%s = %d %.40q, want it to begin with %q", path, status, text, begins)
		}
	}
	res, text := call(t, "GET", "http://"+s.API+"/metrics", "", "Accept-Encoding", "gzip")
	zip, err := gzip.NewReader(strings.NewReader(text))
	if err != nil {
		t.Fatalf("%v: %v", res.Header, err)
	}
	if plain, err := io.ReadAll(zip); err != nil || !strings.Contains(string(plain), "txmesh_open_transactions 0\n") {
		t.Errorf("metrics = %v, %.100s", err, plain)
	}
	if res.Header.Get("Content-Encoding") != "gzip" || !strings.HasPrefix(res.Header.Get("Content-Type"), "text/plain; version=0.0.4") {
		t.Errorf("metrics with %v", res.Header)
	}
}

// A call of the API that waits has its answer before the sidecar is gone.
func TestWaitingCallOfTheAPIEndsWithTheSidecar(t *testing.T) {
	app := newService(t)
	entered, hang := make(chan struct{}), make(chan struct{})
	defer close(hang)
	app.change(func() {
		app.hang = hang
		app.then = func(*http.Request) int {
			close(entered)
			return 201
		}
	})
	s := start(t, config(t, "a/b", app.address()))
	answered := make(chan string, 1)
	go func() {
		status, text := s.api("POST", "/v1/transactions?wait=1m", `{"mode":"saga","branches":[{"action":{"url":"`+app.URL+`/x"}}]}`)
		answered <- fmt.Sprint(status, " ", text)
	}()
	<-entered
	if _, open := errors.AsType[*OpenWork](s.end()); !open {
		t.Error("want that a transaction is open")
	}
	if got := <-answered; !strings.Contains(got, `"status":"open"`) || !strings.HasPrefix(got, "201 ") {
		t.Errorf("answer = %s, want 201 and that it is open", got)
	}
}
