package httpd

import (
	"bufio"
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
)

// patience is how long a test waits for what must come.
const patience = 10 * time.Second

// seen is a request as its handler saw it.
type seen struct {
	Method, RequestURI, Path, RawPath, Query, Host, Proto, Value string
	Header                                                       http.Header
	Length                                                       int64
	Coding                                                       []string
	Close, Loopback                                              bool
	Body                                                         int
	Sum                                                          string
	Err                                                          string
}

// handler answers with what it saw, or as the path says.
func handler() http.Handler {
	mux := http.NewServeMux()
	mux.HandleFunc("/echo/{value...}", func(w http.ResponseWriter, r *http.Request) {
		body, err := io.ReadAll(http.MaxBytesReader(w, r.Body, 1<<20))
		host, _, _ := net.SplitHostPort(r.RemoteAddr)
		s := seen{Method: r.Method, RequestURI: r.RequestURI, Path: r.URL.Path, RawPath: r.URL.RawPath, Query: r.URL.RawQuery, Host: r.Host,
			Proto: fmt.Sprint(r.Proto, r.ProtoMajor, r.ProtoMinor), Value: r.PathValue("value"), Header: r.Header, Length: r.ContentLength,
			Coding: r.TransferEncoding, Close: r.Close, Loopback: net.ParseIP(host).IsLoopback(), Body: len(body)}
		if err != nil {
			s.Err = err.Error()
		} else {
			s.Sum = string(body[:min(len(body), 20)])
		}
		text, err := json.Marshal(s)
		if err != nil {
			panic(err)
		}
		w.Header().Set("Content-Type", "application/json")
		w.Header().Set("WWW-Authenticate", `Bearer realm="x"`)
		w.Header().Set("tx-error", "TXM1")
		w.Header().Add("Link", "</a>; rel=a")
		w.Header().Add("Link", "</b>; rel=b")
		w.Header().Set("Location", "/somewhere")
		w.Header().Set("Allow", "GET, POST")
		w.WriteHeader(http.StatusCreated)
		w.Header().Set("Late", "not sent")
		w.WriteHeader(http.StatusTeapot)
		_, _ = w.Write(text)
	})
	mux.HandleFunc("/unread", func(w http.ResponseWriter, _ *http.Request) { w.WriteHeader(http.StatusUnauthorized) })
	mux.HandleFunc("/sniffed", func(w http.ResponseWriter, _ *http.Request) { fmt.Fprint(w, "<html><body>") })
	mux.HandleFunc("/nothing", func(http.ResponseWriter, *http.Request) {})
	mux.HandleFunc("/empty", func(w http.ResponseWriter, _ *http.Request) {
		w.WriteHeader(http.StatusNoContent)
		if _, err := w.Write([]byte("x")); !errors.Is(err, http.ErrBodyNotAllowed) {
			panic("it took a body")
		}
	})
	mux.HandleFunc("/length", func(w http.ResponseWriter, _ *http.Request) { w.Header().Set("Content-Length", "7") })
	mux.HandleFunc("/goodbye", func(w http.ResponseWriter, _ *http.Request) { w.Header().Set("Connection", "close") })
	mux.HandleFunc("/panic", func(http.ResponseWriter, *http.Request) { panic("broken") })
	mux.HandleFunc("/panic/late", func(w http.ResponseWriter, _ *http.Request) {
		w.Header().Set("Half", "yes")
		w.WriteHeader(http.StatusCreated)
		fmt.Fprint(w, "half an answer")
		panic("broken")
	})
	return mux
}

func refuse(w http.ResponseWriter, status int, detail string) {
	w.Header().Set("Refused", "yes")
	w.WriteHeader(status)
	_, _ = io.WriteString(w, detail)
}

// serve runs a server until the test ends and returns its address.
func serve(t testing.TB, opt Options) string {
	t.Helper()
	opt.Refuse = refuse
	if opt.Log == nil {
		opt.Log = slog.New(slog.DiscardHandler)
	}
	if opt.HeaderBytes == 0 {
		opt.HeaderBytes = 8 << 10
	}
	s := New(opt)
	return listen(t, s.Serve, s.Shutdown)
}

// serveReference is serve with net/http.
func serveReference(t testing.TB, h http.Handler) string {
	t.Helper()
	s := &http.Server{Handler: h, MaxHeaderBytes: 4 << 10, ReadHeaderTimeout: patience, ErrorLog: slog.NewLogLogger(slog.DiscardHandler, 0)}
	return listen(t, s.Serve, s.Shutdown)
}

func listen(t testing.TB, serve func(net.Listener) error, shutdown func(context.Context) error) string {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	ended := make(chan error, 1)
	go func() { ended <- serve(l) }()
	t.Cleanup(func() {
		ctx, cancel := context.WithTimeout(context.Background(), patience)
		defer cancel()
		if err := shutdown(ctx); err != nil {
			t.Errorf("shutdown: %v", err)
		}
		if err := <-ended; err != nil && !errors.Is(err, http.ErrServerClosed) {
			t.Errorf("serve: %v", err)
		}
	})
	return l.Addr().String()
}

func dial(t testing.TB, address string) *net.TCPConn {
	t.Helper()
	c, err := net.Dial("tcp", address)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { c.Close() })
	if err := c.SetDeadline(time.Now().Add(patience)); err != nil {
		t.Fatal(err)
	}
	return c.(*net.TCPConn)
}

// answer is what came back, as far as it must be the same.
type answer struct {
	Status int
	Header http.Header
	Length int64
	Close  bool
	Body   string
}

// answers sends raw bytes and reads all answers until the connection ends.
func answers(t *testing.T, address, method, raw string) []answer {
	t.Helper()
	c := dial(t, address)
	go func() {
		// A server that closes early has what it wanted.
		_, _ = io.WriteString(c, raw)
		_ = c.CloseWrite()
	}()
	var out []answer
	for br := bufio.NewReader(c); ; {
		if _, err := br.Peek(1); err != nil {
			if !errors.Is(err, io.EOF) {
				t.Errorf("read: %v", err)
			}
			return out
		}
		res, err := http.ReadResponse(br, &http.Request{Method: method})
		if err != nil {
			t.Fatalf("answer %d: %v", len(out), err)
		}
		body, err := io.ReadAll(res.Body)
		if err != nil {
			t.Fatalf("answer %d: %v", len(out), err)
		}
		if res.StatusCode < 300 { // net/http refuses without a date
			if _, err := http.ParseTime(res.Header.Get("Date")); err != nil {
				t.Errorf("date: %v", err)
			}
		}
		res.Header.Del("Date")
		out = append(out, answer{res.StatusCode, res.Header, res.ContentLength, res.Close, string(body)})
	}
}

func post(path string, n int) string {
	return fmt.Sprintf("POST %s HTTP/1.1\r\nHost: a\r\nContent-Length: %d\r\n\r\n%s", path, n, strings.Repeat("b", n))
}

func TestRequestsAndAnswersAreThoseOfNetHTTP(t *testing.T) {
	ours, theirs := serve(t, Options{Handler: handler()}), serveReference(t, handler())
	const chunks = "3\r\nabc\r\n2;x=y\r\nde\r\n0\r\n\r\n"
	for _, tt := range []struct {
		name, method, raw string
		stays             bool // although net/http closes
	}{
		{"get", "GET", "GET /echo/a HTTP/1.1\r\nHost: a.example:80\r\n\r\n", false},
		{"query and escapes", "GET", "GET /echo/a%2Fb/c%20d?x=1&y=%26;z HTTP/1.1\r\nHost: a\r\n\r\n", false},
		{"query that is empty", "GET", "GET /echo/a? HTTP/1.1\r\nHost: a\r\n\r\n", false},
		{"not clean path", "GET", "GET /echo/../echo//a HTTP/1.1\r\nHost: a\r\n\r\n", false},
		{"two slashes", "GET", "GET //echo/a HTTP/1.1\r\nHost: a\r\n\r\n", false},
		{"absolute form", "GET", "GET http://b.example/echo/a?q HTTP/1.1\r\nHost: a\r\n\r\n", false},
		{"fields", "GET", "GET /echo/a HTTP/1.1\r\nhost: a\r\nauthorization: Bearer x\r\nACCEPT: a\r\naccept: b\r\nx-Y-z:  v \r\nCookie: a=b; c\r\ncookie: d=e\r\nEmpty:\r\nUser-Agent: me\r\n\r\n", false},
		{"many fields", "GET", "GET /echo/a HTTP/1.1\r\nHost: a\r\n" + strings.Repeat("A: b\r\nC: d\r\n", 40) + "\r\n", false},
		{"body", "POST", post("/echo/a", 11), false},
		{"large body", "POST", post("/echo/a", 200_000), false},
		{"body of an unusual method", "DELETE", strings.Replace(post("/echo/a", 3), "POST", "DELETE", 1), false},
		{"invented method", "FROB", "FROB /echo/a HTTP/1.1\r\nHost: a\r\n\r\n", false},
		{"empty body", "POST", post("/echo/a", 0), false},
		{"no length", "POST", "POST /echo/a HTTP/1.1\r\nHost: a\r\n\r\n", false},
		{"body over the handler's limit", "POST", post("/echo/a", 1<<20+1), true},
		{"chunks over the handler's limit", "POST", "POST /echo/a HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n" +
			"100001\r\n" + strings.Repeat("b", 0x100001) + "\r\n0\r\n\r\n", true},
		{"chunks", "POST", "POST /echo/a HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n" + chunks, false},
		{"pipelined", "POST", post("/echo/a", 3) + "GET /echo/b HTTP/1.1\r\nHost: b\r\n\r\n" +
			"POST /echo/c HTTP/1.1\r\nHost: c\r\nTransfer-Encoding: chunked\r\n\r\n" + chunks + post("/echo/d", 2), false},
		{"unread, then another", "POST", post("/unread", 100_000) + post("/unread", 10) + post("/echo/a", 1), false},
		{"unread chunks, then another", "POST", "POST /unread HTTP/1.1\r\nHost: c\r\nTransfer-Encoding: chunked\r\n\r\n" + chunks + post("/echo/a", 1), false},
		{"too much unread", "POST", post("/unread", 1<<20) + post("/echo/a", 1), false},
		{"close", "GET", "GET /echo/a HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\nGET /echo/b HTTP/1.1\r\nHost: a\r\n\r\n", false},
		{"close by the handler", "GET", "GET /goodbye HTTP/1.1\r\nHost: a\r\n\r\nGET /echo/b HTTP/1.1\r\nHost: a\r\n\r\n", false},
		{"1.0", "GET", "GET /echo/a HTTP/1.0\r\n\r\nGET /echo/b HTTP/1.0\r\n\r\n", false},
		{"1.0 that stays", "GET", "GET /echo/a HTTP/1.0\r\nConnection: keep-alive\r\n\r\nGET /echo/b HTTP/1.0\r\n\r\n", false},
		{"head", "HEAD", "HEAD /echo/a HTTP/1.1\r\nHost: a\r\n\r\n", false},
		{"head of what has a length", "HEAD", "HEAD /length HTTP/1.1\r\nHost: a\r\n\r\n", false},
		{"head of nothing", "HEAD", "HEAD /empty HTTP/1.1\r\nHost: a\r\n\r\n", false},
		{"sniffed", "GET", "GET /sniffed HTTP/1.1\r\nHost: a\r\n\r\n", false},
		{"nothing said", "GET", "GET /nothing HTTP/1.1\r\nHost: a\r\n\r\n", false},
		{"no content", "GET", "GET /empty HTTP/1.1\r\nHost: a\r\n\r\n", false},
		{"not found", "GET", "GET /nowhere HTTP/1.1\r\nHost: a\r\n\r\n", false},
	} {
		t.Run(tt.name, func(t *testing.T) {
			want := answers(t, theirs, tt.method, tt.raw)
			if len(want) == 0 {
				t.Error("net/http answers nothing")
			}
			if tt.stays {
				want[0].Close = false
			}
			if diff := cmp.Diff(want, answers(t, ours, tt.method, tt.raw)); diff != "" {
				t.Errorf("answers differ (-net/http +ours):\n%s", diff)
			}
		})
	}
}

// What net/http refuses is refused here with the same status, as the owner of the server says it.
func TestRefusedRequests(t *testing.T) {
	ours, theirs := serve(t, Options{Handler: handler()}), serveReference(t, handler())
	for _, tt := range []struct{ name, raw string }{
		{"no HTTP", "hello\r\n\r\n"},
		{"no version", "GET /echo/a\r\nHost: a\r\n\r\n"},
		{"no host", "GET /echo/a HTTP/1.1\r\n\r\n"},
		{"two hosts", "GET /echo/a HTTP/1.1\r\nHost: a\r\nHost: b\r\n\r\n"},
		{"malformed host", "GET /echo/a HTTP/1.1\r\nHost: a b\r\n\r\n"},
		{"space in a name", "GET /echo/a HTTP/1.1\r\nHost: a\r\nA b: c\r\n\r\n"},
		{"space before the colon", "GET /echo/a HTTP/1.1\r\nHost: a\r\nAb : c\r\n\r\n"},
		{"parenthesis in a name", "GET /echo/a HTTP/1.1\r\nHost: a\r\nA(b: c\r\n\r\n"},
		{"folded field", "GET /echo/a HTTP/1.1\r\nHost: a\r\n b: c\r\n\r\n"},
		{"no colon", "GET /echo/a HTTP/1.1\r\nHost: a\r\nAb\r\n\r\n"},
		{"control character", "GET /echo/a HTTP/1.1\r\nHost: a\r\nAb: c\x00d\r\n\r\n"},
		{"bad escape", "GET /echo/%zz HTTP/1.1\r\nHost: a\r\n\r\n"},
		{"relative path", "GET echo/a HTTP/1.1\r\nHost: a\r\n\r\n"},
		{"two lengths", "POST /echo/a HTTP/1.1\r\nHost: a\r\nContent-Length: 1\r\nContent-Length: 2\r\n\r\nab"},
		{"negative length", "POST /echo/a HTTP/1.1\r\nHost: a\r\nContent-Length: -1\r\n\r\n"},
		{"head over the limit", "GET /echo/a HTTP/1.1\r\nHost: a\r\nA: " + strings.Repeat("b", 9<<10) + "\r\n\r\n"},
		{"path over the limit", "GET /echo/" + strings.Repeat("b", 9<<10) + " HTTP/1.1\r\nHost: a\r\n\r\n"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			raw := tt.raw + "GET /echo/smuggled HTTP/1.1\r\nHost: a\r\n\r\n"
			want, got := answers(t, theirs, "GET", raw), answers(t, ours, "GET", raw)
			if len(want) != 1 || len(got) != 1 || got[0].Status != want[0].Status {
				t.Fatalf("got %v, want %v", got, want)
			}
			if got[0].Header.Get("Refused") != "yes" || !got[0].Close || got[0].Body == "" {
				t.Errorf("got %+v, want it refused by the owner of the server, with a reason", got[0])
			}
		})
	}
	// These are 400 alike, as no transfer coding and no version but ours is promised.
	for _, raw := range []string{"GET /echo/a HTTP/3.0\r\nHost: a\r\n\r\n", "GET /echo/a HTTP/0.9\r\nHost: a\r\n\r\n",
		"POST /echo/a HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: gzip, chunked\r\n\r\n0\r\n\r\n"} {
		if got := answers(t, ours, "GET", raw); len(got) != 1 || got[0].Status != 400 {
			t.Errorf("%q: %v, want 400", raw, got)
		}
	}
}

// A body that ends too early, or is no body, is an error of its reader or a refusal; never a shorter body.
func TestBrokenBodies(t *testing.T) {
	address := serve(t, Options{Handler: handler()})
	for _, tt := range []struct{ name, raw string }{
		{"cut short", "POST /echo/a HTTP/1.1\r\nHost: a\r\nContent-Length: 10\r\n\r\nabc"},
		{"cut short late", "POST /echo/a HTTP/1.1\r\nHost: a\r\nContent-Length: 30000\r\n\r\n" + strings.Repeat("b", 20000)},
		{"cut short in chunks", "POST /echo/a HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n3\r\nabc\r\n"},
		{"no chunk", "POST /echo/a HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\nzz\r\nabc\r\nGET /echo/smuggled HTTP/1.1\r\nHost: a\r\n\r\n"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			got := answers(t, address, "POST", tt.raw)
			if len(got) != 1 || !got[0].Close {
				t.Fatalf("got %+v, want one answer, the last", got)
			}
			var s seen
			if got[0].Header.Get("Refused") == "" && (json.Unmarshal([]byte(got[0].Body), &s) != nil || s.Err == "") {
				t.Errorf("got %+v, want an error", got[0])
			}
		})
	}
}

func TestClientThatWaitsForContinue(t *testing.T) {
	address := serve(t, Options{Handler: handler()})
	c := dial(t, address)
	br := bufio.NewReader(c)
	for range 2 {
		write(t, c, "POST /echo/a HTTP/1.1\r\nHost: a\r\nContent-Length: 3\r\nExpect: 100-continue\r\n\r\n")
		if res := read(t, br); res.StatusCode != http.StatusContinue {
			t.Fatalf("first answer = %v, want 100", res.Status)
		}
		write(t, c, "abc")
		if res := read(t, br); res.StatusCode != http.StatusCreated || !strings.Contains(text(t, res), `"Sum":"abc"`) {
			t.Fatalf("second answer = %v, want 201 with the body", res.Status)
		}
	}
}

// An answer to a client that still sends is not overtaken by a reset.
func TestAnswerBeforeTheEndOfTheBodyArrives(t *testing.T) {
	address := serve(t, Options{Handler: handler()})
	for range 20 {
		c := dial(t, address)
		write(t, c, "POST /unread HTTP/1.1\r\nHost: a\r\nContent-Length: 3000000\r\n\r\n")
		for range 3 {
			write(t, c, strings.Repeat("b", 1_000_000))
		}
		if res := read(t, bufio.NewReader(c)); res.StatusCode != http.StatusUnauthorized || !res.Close {
			t.Fatalf("answer = %v, want 401 and the end", res.Status)
		}
	}
}

func write(t *testing.T, c net.Conn, text string) {
	t.Helper()
	if _, err := io.WriteString(c, text); err != nil {
		t.Fatal(err)
	}
}

func read(t *testing.T, br *bufio.Reader) *http.Response {
	t.Helper()
	res, err := http.ReadResponse(br, nil)
	if err != nil {
		t.Fatal(err)
	}
	return res
}

func text(t *testing.T, res *http.Response) string {
	t.Helper()
	body, err := io.ReadAll(res.Body)
	if err != nil {
		t.Fatal(err)
	}
	return string(body)
}

func TestPanicEndsOneRequest(t *testing.T) {
	var log bytes.Buffer
	address := serve(t, Options{Handler: handler(), Log: slog.New(slog.NewTextHandler(&log, nil))})
	for _, path := range []string{"/panic", "/panic", "/panic/late"} { // of what was said before, nothing is sent
		got := answers(t, address, "GET", "GET "+path+" HTTP/1.1\r\nHost: a\r\n\r\n")
		if len(got) != 1 || got[0].Status != 500 || got[0].Header.Get("Refused") != "yes" || got[0].Header.Get("Half") != "" || !got[0].Close {
			t.Errorf("got %+v, want 500 and the end of the connection", got)
		}
	}
	if !strings.Contains(log.String(), "panic=broken") || !strings.Contains(log.String(), "server_test.go") {
		t.Errorf("log = %s, want the panic and where it was", log.String())
	}
}

// The times are not measured: without them each of these connections would last as long as the test.
func TestSlowClients(t *testing.T) {
	const short, long = 300 * time.Millisecond, time.Hour // longer than a busy machine keeps a thread waiting
	for _, tt := range []struct {
		name   string
		opt    Options
		raw    string
		status []int
	}{
		{"nothing at all", Options{HeaderTime: short, BodyTime: long, Idle: long}, "", nil},
		{"slow head", Options{HeaderTime: short, BodyTime: long, Idle: long}, "GET /echo/a HTTP/1.1\r\nHost:", []int{408}},
		{"slow second head", Options{HeaderTime: short, BodyTime: long, Idle: long}, "GET /nothing HTTP/1.1\r\nHost: a\r\n\r\nGET", []int{200, 408}},
		{"slow body", Options{HeaderTime: long, BodyTime: short, Idle: long}, "POST /echo/a HTTP/1.1\r\nHost: a\r\nContent-Length: 9\r\n\r\nab", []int{201}},
		{"no body", Options{HeaderTime: long, BodyTime: short, Idle: long}, "POST /echo/a HTTP/1.1\r\nHost: a\r\nContent-Length: 9\r\n\r\n", []int{408}},
		{"slow chunks", Options{HeaderTime: long, BodyTime: short, Idle: long}, "POST /echo/a HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n2\r\nab\r\n", []int{201}},
		{"idle", Options{HeaderTime: long, BodyTime: long, Idle: short}, "GET /nothing HTTP/1.1\r\nHost: a\r\n\r\n", []int{200}},
	} {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			tt.opt.Handler = handler()
			c := dial(t, serve(t, tt.opt))
			write(t, c, tt.raw)
			br := bufio.NewReader(c)
			for _, status := range tt.status {
				if res := read(t, br); res.StatusCode != status {
					t.Errorf("answer = %v, want %d", res.Status, status)
				} else if said := text(t, res); status == http.StatusCreated && !strings.Contains(said, "timeout") {
					t.Errorf("the handler saw %s, want a timeout", said)
				}
			}
			if _, err := br.ReadByte(); !errors.Is(err, io.EOF) {
				t.Errorf("then: %v, want the end", err)
			}
		})
	}
}

// A handler that takes longer than any of the times is not cut short.
func TestSlowHandler(t *testing.T) {
	release := make(chan struct{})
	h := http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		<-release
		if err := r.Context().Err(); err != nil {
			t.Error(err)
		}
		fmt.Fprint(w, "done")
	})
	c := dial(t, serve(t, Options{Handler: h, HeaderTime: 300 * time.Millisecond, BodyTime: time.Millisecond, Idle: time.Millisecond}))
	write(t, c, post("/", 1))
	time.AfterFunc(400*time.Millisecond, func() { close(release) })
	if res := read(t, bufio.NewReader(c)); text(t, res) != "done" {
		t.Errorf("answer = %v", res.Status)
	}
}

func TestShutdownWaitsForRunningRequests(t *testing.T) {
	entered, release := make(chan struct{}), make(chan struct{})
	s := New(Options{Refuse: refuse, HeaderBytes: 4096, Handler: http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if r.URL.Path == "/wait" {
			close(entered)
			<-release
		}
		fmt.Fprint(w, "done")
	})})
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	ended := make(chan error, 1)
	go func() { ended <- s.Serve(l) }()
	idle, busy := dial(t, l.Addr().String()), dial(t, l.Addr().String())
	write(t, idle, "GET / HTTP/1.1\r\nHost: a\r\n\r\n")
	fromIdle := bufio.NewReader(idle)
	if res := read(t, fromIdle); text(t, res) != "done" {
		t.Error(res.Status)
	}
	write(t, busy, "GET /wait HTTP/1.1\r\nHost: a\r\n\r\n")
	<-entered
	hasty, cancel := context.WithTimeout(t.Context(), time.Millisecond)
	defer cancel()
	if err := s.Shutdown(hasty); !errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("shutdown while a request runs = %v, want that its time is over", err)
	}
	if err := <-ended; err != nil {
		t.Errorf("serve = %v, want nil", err)
	}
	if _, err := fromIdle.ReadByte(); !errors.Is(err, io.EOF) {
		t.Errorf("idle connection: %v, want its end", err)
	}
	if _, err := net.Dial("tcp", l.Addr().String()); err == nil {
		t.Error("it still listens")
	}
	close(release)
	if res := read(t, bufio.NewReader(busy)); text(t, res) != "done" || !res.Close {
		t.Errorf("running request = %v, want its answer and the end", res.Status)
	}
}

// 1. Serve is called, or is about to be. 2. Shutdown runs. 3. fasthttp is told to serve, and has seen no Shutdown.
func TestShutdownBeforeServe(t *testing.T) {
	for name, begun := range map[string]bool{"called": true, "about to be": false} {
		t.Run(name, func(t *testing.T) {
			s := New(Options{})
			l, err := net.Listen("tcp", "127.0.0.1:0")
			if err != nil {
				t.Fatal(err)
			}
			if begun {
				s.listener = l
			}
			if err := s.Shutdown(t.Context()); err != nil {
				t.Error(err)
			}
			if !begun {
				if err := s.Serve(l); err != nil {
					t.Error(err)
				}
			}
			if err := l.(*net.TCPListener).SetDeadline(time.Now()); !errors.Is(err, net.ErrClosed) {
				t.Errorf("listener: %v, want it closed", err)
			}
		})
	}
}

type connKey struct{}

func TestContextIsThatOfTheConnection(t *testing.T) {
	var n atomic.Int64
	address := serve(t, Options{
		ConnContext: func(ctx context.Context, c net.Conn) context.Context {
			if _, ok := c.(*net.TCPConn); !ok {
				t.Errorf("connection is %T, want the listener's own", c)
			}
			return context.WithValue(ctx, connKey{}, n.Add(1))
		},
		Handler: http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) { fmt.Fprint(w, r.Context().Value(connKey{})) }),
	})
	for i := range 2 {
		got := answers(t, address, "GET", strings.Repeat("GET / HTTP/1.1\r\nHost: a\r\n\r\n", 2))
		if want := fmt.Sprint(i + 1); len(got) != 2 || got[0].Body != want || got[1].Body != want {
			t.Errorf("connection %d: %v", i, got)
		}
	}
}

// What a handler keeps does not change when the connection goes on.
func TestHandlersMayKeepRequests(t *testing.T) {
	type kept struct {
		r *http.Request
		w http.ResponseWriter
	}
	all := make(chan kept, 2)
	address := serve(t, Options{Handler: http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) { all <- kept{r, w} })})
	answers(t, address, "POST", "POST /first HTTP/1.1\r\nHost: one\r\nKey: first\r\nContent-Length: 3\r\n\r\nabc"+
		"POST /other HTTP/1.1\r\nHost: two\r\nKey: other\r\nContent-Length: 3\r\n\r\nxyz")
	first := <-all
	if r := first.r; r.URL.Path != "/first" || r.RequestURI != "/first" || r.Host != "one" || r.Header.Get("Key") != "first" {
		t.Errorf("the first request is now %+v", r)
	}
	if n, err := first.r.Body.Read(make([]byte, 3)); n != 0 || !errors.Is(err, http.ErrBodyReadAfterClose) {
		t.Errorf("read of its body = %d, %v, want %v", n, err, http.ErrBodyReadAfterClose)
	}
	if _, err := first.w.Write([]byte("late")); err != nil {
		t.Error(err)
	}
}
