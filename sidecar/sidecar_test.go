package sidecar

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"net/http/httptest"
	"net/url"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"txmesh/policies"
	"txmesh/txlog"
)

const meshSecret = "0123456789abcdef0123456789abcdef"

// running is a sidecar under test.
type running struct {
	*Sidecar
	Addresses
	t    *testing.T
	stop context.CancelFunc
	done chan error
}

// config is a configuration with all ports chosen by the system.
func config(t *testing.T, service, app string, policies ...string) Config {
	t.Helper()
	dir := t.TempDir()
	secret := filepath.Join(dir, "secret")
	if err := os.WriteFile(secret, []byte(meshSecret), 0o600); err != nil {
		t.Fatal(err)
	}
	c, err := Load([]string{"--service", service, "--app", app, "--inbound", "127.0.0.1:0", "--peer", "127.0.0.1:0",
		"--api", "127.0.0.1:0", "--outbound", "127.0.0.1:0", "--data-dir", filepath.Join(dir, "data"),
		"--mesh-secret-file", secret, "--grace-period", "20ms", "--commit-wait", "100ms"}, nil, noHelp)
	if err != nil {
		t.Fatal(err)
	}
	for i, text := range policies {
		path := filepath.Join(dir, fmt.Sprintf("policy%d.yaml", i))
		if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
		c.Policies = append(c.Policies, path)
	}
	return c
}

// start runs a sidecar until the test ends.
func start(t *testing.T, cfg Config) *running { return startOn(t, nil, cfg) }

// startOn runs a sidecar on a shared store, or on its own if that is nil.
func startOn(t *testing.T, shared txlog.Shared, cfg Config) *running {
	t.Helper()
	log := slog.New(slog.NewTextHandler(t.Output(), &slog.HandlerOptions{Level: slog.LevelDebug}))
	s, err := newOn(shared, cfg, "test", log.With("service", cfg.Service))
	if err != nil {
		t.Fatal(err)
	}
	ctx, stop := context.WithCancel(t.Context())
	r := &running{Sidecar: s, t: t, stop: stop, done: make(chan error, 1)}
	ready := make(chan Addresses, 1)
	go func() {
		err := s.Run(ctx, func(a Addresses) { ready <- a })
		r.done <- errors.Join(err, s.Close())
	}()
	select {
	case r.Addresses = <-ready:
	case err := <-r.done:
		t.Fatalf("sidecar ended: %v", err)
	}
	t.Cleanup(func() {
		// What Run returned is a matter of the test that asks.
		_ = r.end()
	})
	return r
}

// end stops the sidecar and returns what Run and Close returned.
func (r *running) end() error {
	r.stop()
	err, open := <-r.done
	if open {
		close(r.done)
	}
	return err
}

// call makes one request and returns the answer.
func call(t *testing.T, method, url, body string, header ...string) (*http.Response, string) {
	t.Helper()
	req, err := http.NewRequestWithContext(t.Context(), method, url, strings.NewReader(body))
	if err != nil {
		t.Fatal(err)
	}
	for i := 0; i < len(header); i += 2 {
		req.Header.Set(header[i], header[i+1])
	}
	res, err := http.DefaultTransport.RoundTrip(req)
	if err != nil {
		t.Fatalf("%s %s: %v", method, url, err)
	}
	defer res.Body.Close()
	text, err := io.ReadAll(res.Body)
	if err != nil {
		t.Fatalf("%s %s: %v", method, url, err)
	}
	return res, string(text)
}

// api calls the API with the token.
func (r *running) api(method, path, body string) (int, string) {
	r.t.Helper()
	res, text := call(r.t, method, "http://"+r.API+path, body, "Authorization", "Bearer "+r.token)
	return res.StatusCode, text
}

// replacePolicy puts another text in the place of the first policy file, as editors do.
func (r *running) replacePolicy(text string) {
	r.t.Helper()
	path := r.cfg.Policies[0]
	if err := errors.Join(os.WriteFile(path+".new", []byte(text), 0o600), os.Rename(path+".new", path)); err != nil {
		r.t.Fatal(err)
	}
}

// eventually waits for a condition that other processes bring about.
func eventually(t *testing.T, what string, holds func() bool) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), 10*time.Second)
	defer cancel()
	tick := time.NewTicker(5 * time.Millisecond)
	defer tick.Stop()
	for !holds() {
		select {
		case <-tick.C:
		case <-ctx.Done():
			t.Fatalf("it never came true: %s", what)
		}
	}
}

// service is an application that knows nothing of transactions. It keeps entries and answers repeated keys as it
// did the first time.
type service struct {
	t *testing.T
	*httptest.Server

	mu      sync.Mutex // guards all below
	entries []string   // in the order in which they came about: "POST /x", "DELETE /x/1"
	answers map[string]int
	headers []http.Header
	status  int           // of answers to POST; 0: 201
	hang    chan struct{} // not nil: POST is answered when it closes
	then    func(r *http.Request) int
}

func newService(t *testing.T) *service {
	s := &service{t: t, answers: map[string]int{}}
	s.Server = httptest.NewServer(http.HandlerFunc(s.serve))
	t.Cleanup(s.Close)
	return s
}

func (s *service) address() string { return s.Listener.Addr().String() }

func (s *service) serve(w http.ResponseWriter, r *http.Request) {
	key := r.Header.Get("Idempotency-Key")
	s.mu.Lock()
	status, repeated := s.answers[key]
	if key == "" || !repeated {
		s.headers = append(s.headers, r.Header.Clone())
		status = http.StatusOK
		if r.Method == "POST" {
			status = max(s.status, 0)
			if status == 0 {
				status = http.StatusCreated
			}
		}
		if status < 300 && r.Method != "GET" {
			s.entries = append(s.entries, r.Method+" "+r.URL.RequestURI())
		}
		s.answers[key] = status
	}
	hang, then := s.hang, s.then
	s.mu.Unlock()
	if r.Method == "POST" && then != nil {
		status = then(r)
	}
	if r.Method == "POST" && hang != nil {
		<-hang
	}
	w.Header().Set("Content-Type", "application/json")
	w.WriteHeader(status)
	fmt.Fprint(w, `{"id":"e1"}`)
}

func (s *service) saw() string {
	s.mu.Lock()
	defer s.mu.Unlock()
	return strings.Join(s.entries, ", ")
}

func (s *service) change(f func()) {
	s.mu.Lock()
	defer s.mu.Unlock()
	f()
}

// callOn makes a call as a traced application does: it copies baggage and traceparent and nothing else. A broken
// connection is 502.
func callOn(t *testing.T, from *http.Request, url string, header ...string) int {
	req, err := http.NewRequest("POST", url, strings.NewReader(`{"amount":1}`))
	if err != nil {
		t.Error(err)
		return 500
	}
	for i := 0; i < len(header); i += 2 {
		req.Header.Set(header[i], header[i+1])
	}
	for _, h := range []string{"Baggage", "Traceparent"} {
		if v := from.Header.Get(h); v != "" {
			req.Header.Set(h, v)
		}
	}
	res, err := http.DefaultTransport.RoundTrip(req)
	if err != nil {
		return 502
	}
	res.Body.Close()
	return res.StatusCode
}

// switchboard stands for a peer port that is not open yet.
type switchboard struct {
	net.Listener
	mu     sync.Mutex // guards target
	target string
}

// newSwitchboard lets taps see each connection first, and go on with what they return.
func newSwitchboard(t *testing.T, taps ...func(net.Conn) net.Conn) *switchboard {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	s := &switchboard{Listener: l}
	go func() {
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			go func() {
				for _, tap := range taps {
					c = tap(c)
				}
				s.connect(c)
			}()
		}
	}()
	t.Cleanup(func() { l.Close() })
	return s
}

func (s *switchboard) connect(c net.Conn) {
	defer c.Close()
	s.mu.Lock()
	target := s.target
	s.mu.Unlock()
	up, err := net.Dial("tcp", target)
	if err != nil {
		return
	}
	// Either side may break off at any time.
	go func() {
		_, _ = io.Copy(up, c)
		up.Close()
	}()
	_, _ = io.Copy(c, up)
}

func (s *switchboard) point(target string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.target = target
}

func decode[T any](t *testing.T, text string) T {
	t.Helper()
	var v T
	d := json.NewDecoder(bytes.NewReader([]byte(text)))
	d.DisallowUnknownFields()
	if err := d.Decode(&v); err != nil {
		t.Fatalf("decode %s: %v", text, err)
	}
	return v
}

func unmarshal(t *testing.T, text string, v any) {
	t.Helper()
	if err := json.Unmarshal([]byte(text), v); err != nil {
		t.Fatalf("decode %s: %v", text, err)
	}
}

func mustURL(t *testing.T, text string) *url.URL {
	t.Helper()
	u, err := url.Parse(text)
	if err != nil {
		t.Fatal(err)
	}
	return u
}

func compile(text string) (*policies.Set, error) {
	return policies.Compile(policies.Source{Name: "policy.yaml", Data: []byte(text)})
}
