// Package main is a service for tests: what it does with a request stands in the request. It knows nothing of
// transactions; it passes the trace on, makes the calls of its script, writes an effect durably, then answers. It
// never retries and never undoes. Start at service.ServeHTTP; script is what a body can ask for.
package main

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"strings"
	"sync"
	"time"
)

// script is the body of a POST.
type script struct {
	Ref    string          `json:"ref,omitempty"`    // by which GET finds the effect
	Calls  []call          `json:"calls,omitempty"`  // made one after another; the first that fails ends them
	Ignore bool            `json:"ignore,omitempty"` // answers 2xx although a call failed
	Wait   string          `json:"wait,omitempty"`   // do nothing before the file of this name is there
	Hold   string          `json:"hold,omitempty"`   // the effect is durable; the answer waits for the file
	Status int             `json:"status,omitempty"` // default 201
	Answer json.RawMessage `json:"answer,omitempty"` // default {"id":...,"calls":[...]}
}

// call is one call of a script. Drop names what a careless application loses: baggage, traceparent.
type call struct {
	Method string            `json:"method"`
	URL    string            `json:"url"`
	Header map[string]string `json:"header,omitempty"`
	Body   script            `json:"body"`
	Drop   []string          `json:"drop,omitempty"`
}

// heard is what a call of a script was answered.
type heard struct {
	Status int    `json:"status"`
	Error  string `json:"error,omitempty"` // tx-error
	Body   string `json:"body,omitempty"`
}

// effect is one line of the file.
type effect struct {
	ID          string          `json:"id,omitempty"` // of what a POST made
	Method      string          `json:"method"`
	Path        string          `json:"path"`
	Query       string          `json:"query,omitempty"`
	Op          string          `json:"op,omitempty"`
	Tx          string          `json:"tx,omitempty"`
	Branch      string          `json:"branch,omitempty"`
	Attempt     string          `json:"attempt,omitempty"`
	Key         string          `json:"key,omitempty"`
	Traceparent string          `json:"traceparent,omitempty"`
	Baggage     string          `json:"baggage,omitempty"`
	Ref         string          `json:"ref,omitempty"`
	Body        string          `json:"body,omitempty"`
	Status      int             `json:"status"`
	Answer      json.RawMessage `json:"answer,omitempty"`
	Calls       []heard         `json:"calls,omitempty"`
}

// override is what the file DATA.answers says of a request: another answer than the usual one.
type override struct {
	Status int             `json:"status"`
	Hold   string          `json:"hold"`
	Answer json.RawMessage `json:"answer"`
}

type service struct {
	data   string // file of the effects
	keyed  bool   // keep answers by Idempotency-Key
	client *http.Client

	mu       sync.Mutex // guards all below
	file     *os.File
	count    int
	answered map[string]effect // by key
	byRef    map[string]effect
}

func main() {
	listen := flag.String("listen", "127.0.0.1:0", "address to listen on")
	data := flag.String("data", "", "file of the effects")
	keyed := flag.Bool("keyed", false, "keep answers by Idempotency-Key")
	flag.Parse()
	if err := run(*listen, *data, *keyed); err != nil {
		fmt.Fprintln(os.Stderr, "participant:", err)
		os.Exit(1)
	}
}

func run(listen, data string, keyed bool) error {
	s := &service{data: data, keyed: keyed, answered: map[string]effect{}, byRef: map[string]effect{},
		client: &http.Client{Timeout: time.Minute}}
	if err := s.open(); err != nil {
		return err
	}
	l, err := net.Listen("tcp", listen)
	if err != nil {
		return err
	}
	if err := json.NewEncoder(os.Stdout).Encode(map[string]string{"address": l.Addr().String()}); err != nil {
		return err
	}
	return http.Serve(l, s)
}

// open reads what was durable. A torn last line belongs to a request that was never answered.
func (s *service) open() error {
	text, err := os.ReadFile(s.data)
	if err != nil && !errors.Is(err, os.ErrNotExist) {
		return err
	}
	whole := strings.LastIndexByte(string(text), '\n') + 1
	for line := range strings.Lines(string(text[:whole])) {
		var e effect
		if err := json.Unmarshal([]byte(line), &e); err != nil {
			return err
		}
		s.fold(e)
	}
	if s.file, err = os.OpenFile(s.data, os.O_CREATE|os.O_WRONLY|os.O_APPEND|os.O_SYNC, 0o600); err != nil {
		return err
	}
	return s.file.Truncate(int64(whole))
}

func (s *service) fold(e effect) {
	if e.ID != "" {
		s.count++
	}
	if e.Key != "" && e.Status < 500 {
		s.answered[e.Method+" "+e.Path+" "+e.Key] = e
	}
	if e.Ref != "" && e.Method == http.MethodPost {
		s.byRef[e.Ref] = e
	}
}

// record makes an effect durable.
func (s *service) record(e effect) (effect, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if e.Method == http.MethodPost && e.Status < 300 {
		e.ID = fmt.Sprintf("e%d", s.count+1)
	}
	if e.Answer == nil {
		e.Answer, _ = json.Marshal(map[string]any{"id": e.ID, "calls": e.Calls}) // plain data always marshals
	}
	line, err := json.Marshal(e)
	if err != nil {
		return e, err
	}
	if _, err := s.file.Write(append(line, '\n')); err != nil {
		return e, err
	}
	s.fold(e)
	return e, nil
}

// ServeHTTP answers one request.
func (s *service) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	body, err := io.ReadAll(r.Body)
	if err != nil {
		return // broken off: nothing was asked for
	}
	e := effect{Method: r.Method, Path: r.URL.Path, Query: r.URL.RawQuery, Op: r.Header.Get("Tx-Op"), Tx: r.Header.Get("Tx-Id"),
		Branch: r.Header.Get("Tx-Branch"), Attempt: r.Header.Get("Tx-Attempt"), Key: r.Header.Get("Idempotency-Key"),
		Traceparent: r.Header.Get("Traceparent"), Baggage: r.Header.Get("Baggage"), Body: string(body), Status: 200}
	if old, seen := s.known(e); seen {
		w.Header().Set("X-Repeat", "true")
		answer(w, old.Status, old.Answer)
		return
	}
	if r.Method == http.MethodGet {
		s.find(w, r)
		return
	}
	var q script
	if r.Method == http.MethodPost {
		if err := json.Unmarshal(body, &q); err != nil && len(body) > 0 {
			answer(w, 400, []byte(`{"error":"body is no script"}`))
			return
		}
		e.Status, e.Ref, e.Answer = 201, q.Ref, q.Answer
		if !s.wait(r, q.Wait) {
			return // the client is gone before anything was done
		}
		s.perform(r, q, &e)
	}
	o := s.override(r)
	if o.Status != 0 {
		e.Status = o.Status
	}
	if o.Answer != nil {
		e.Answer = o.Answer
	}
	if e, err = s.record(e); err != nil {
		fmt.Fprintln(os.Stderr, "participant:", err)
		os.Exit(1)
	}
	s.wait(r, q.Hold)
	s.wait(r, o.Hold)
	answer(w, e.Status, e.Answer)
}

// known finds the answer to a repeated request, if this service keeps answers.
func (s *service) known(e effect) (effect, bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	old, seen := s.answered[e.Method+" "+e.Path+" "+e.Key]
	return old, seen && s.keyed && e.Key != ""
}

// perform makes the calls of a script and settles the status.
func (s *service) perform(r *http.Request, q script, e *effect) {
	for _, c := range q.Calls {
		h := s.call(r, c)
		e.Calls = append(e.Calls, h)
		if h.Status >= 300 && !q.Ignore {
			e.Status = h.Status
			return
		}
	}
	if q.Status != 0 {
		e.Status = q.Status
	}
}

// call passes the trace on, as any traced service does.
func (s *service) call(in *http.Request, c call) heard {
	body, err := json.Marshal(c.Body)
	if err != nil {
		return heard{Status: 500, Body: err.Error()}
	}
	// A client that goes away does not stop the call.
	out, err := http.NewRequestWithContext(context.WithoutCancel(in.Context()), c.Method, c.URL, bytes.NewReader(body))
	if err != nil {
		return heard{Status: 500, Body: err.Error()}
	}
	for _, name := range []string{"Traceparent", "Tracestate", "Baggage"} {
		if v := in.Header.Get(name); v != "" {
			out.Header.Set(name, v)
		}
	}
	for _, name := range c.Drop {
		out.Header.Del(name)
	}
	for name, value := range c.Header {
		out.Header.Set(name, value)
	}
	res, err := s.client.Do(out)
	if err != nil {
		return heard{Status: 502, Body: err.Error()}
	}
	defer res.Body.Close()
	text, err := io.ReadAll(res.Body)
	if err != nil {
		return heard{Status: 502, Body: err.Error()}
	}
	return heard{Status: res.StatusCode, Error: res.Header.Get("Tx-Error"), Body: string(text)}
}

// find answers a query: ?ref= gives the effect that was made under it.
func (s *service) find(w http.ResponseWriter, r *http.Request) {
	o := s.override(r)
	s.wait(r, o.Hold)
	s.mu.Lock()
	e, found := s.byRef[r.URL.Query().Get("ref")]
	s.mu.Unlock()
	switch {
	case o.Status != 0:
		answer(w, o.Status, []byte(`{}`))
	case !found:
		answer(w, 404, []byte(`{"error":"no such effect"}`))
	default:
		answer(w, 200, []byte(`{"id":"`+e.ID+`"}`))
	}
}

// override reads the file of other answers: by method and path, else by method.
func (s *service) override(r *http.Request) override {
	text, err := os.ReadFile(s.data + ".answers")
	if err != nil {
		return override{}
	}
	var all map[string]override
	if err := json.Unmarshal(text, &all); err != nil {
		fmt.Fprintln(os.Stderr, "participant: answers:", err)
		return override{}
	}
	if o, ok := all[r.Method+" "+r.URL.Path]; ok {
		return o
	}
	return all[r.Method]
}

// wait returns true when the file DATA.NAME is there, or false when the client is gone. DATA.NAME.waits says that
// somebody waits.
func (s *service) wait(r *http.Request, name string) bool {
	if name == "" {
		return true
	}
	if err := os.WriteFile(s.data+"."+name+".waits", nil, 0o600); err != nil {
		fmt.Fprintln(os.Stderr, "participant:", err)
	}
	tick := time.NewTicker(2 * time.Millisecond)
	defer tick.Stop()
	for {
		if _, err := os.Stat(s.data + "." + name); err == nil {
			return true
		}
		select {
		case <-tick.C:
		case <-r.Context().Done():
			return false
		}
	}
}

func answer(w http.ResponseWriter, status int, body []byte) {
	w.Header().Set("Content-Type", "application/json")
	w.WriteHeader(status)
	_, _ = w.Write(body) // the client may be gone; the effect is durable whether it hears of it or not
}
