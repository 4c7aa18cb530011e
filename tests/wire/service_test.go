package wire

import (
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"net/url"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/metadata"
	grpcstatus "google.golang.org/grpc/status"
	"google.golang.org/protobuf/encoding/protowire"
)

// call is one call that a branch has seen.
type call struct {
	at     time.Time
	name   string // of the branch's endpoint
	first  string // the line of the request
	header map[string][]string
	body   string // without what the transport adds
	text   string // as it came

	gid, transType, branch, op string
}

// line is the call as all transports tell it.
func (c *call) line() string {
	return strings.TrimSpace(strings.Join([]string{c.name, c.op, c.branch, c.body}, " "))
}

// raw is the call as it came, without what any client of its transport sends.
func (c *call) raw() string {
	var b strings.Builder
	b.WriteString(c.first)
	var names []string
	for name := range c.header {
		if !slices.Contains([]string{"Content-Length", "User-Agent", "user-agent", ":authority"}, name) {
			names = append(names, name)
		}
	}
	slices.Sort(names)
	for _, name := range names {
		fmt.Fprintf(&b, "\n%s: %s", name, strings.Join(c.header[name], ", "))
	}
	if c.text != "" {
		b.WriteString("\n" + c.text)
	}
	return b.String()
}

// service is where the branches live. It records every call and answers as the file says.
type service struct {
	t        *testing.T
	http     string // host:port
	grpc     string
	mu       sync.Mutex // guards the rest
	scripts  map[string][]string
	held     map[string]chan struct{}
	calls    []*call
	taken    int
	arrivals chan struct{} // closed and made anew with each call
}

func newService(t *testing.T) *service {
	t.Helper()
	s := &service{t: t, scripts: map[string][]string{}, held: map[string]chan struct{}{}, arrivals: make(chan struct{})}
	web := httptest.NewServer(http.HandlerFunc(s.serveHTTP))
	s.http = web.Listener.Addr().String()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	s.grpc = l.Addr().String()
	srv := grpc.NewServer(grpc.ForceServerCodec(rawCodec{}), grpc.UnknownServiceHandler(s.serveGRPC))
	var wg sync.WaitGroup
	wg.Go(func() {
		if err := srv.Serve(l); err != nil {
			t.Errorf("gRPC service: %v", err)
		}
	})
	t.Cleanup(func() {
		s.releaseAll()
		web.CloseClientConnections()
		web.Close()
		srv.Stop()
		wg.Wait()
	})
	return s
}

// urls are the ways to write an endpoint, in the order in which they are looked for.
func (s *service) urls() [][2]string {
	return [][2]string{
		{"@rpc/", "http://" + s.http + "/json-rpc?method="},
		{"@http/", "http://" + s.http + "/"},
		{"@grpc/", s.grpc + "/busi.Busi/"},
		{"@grpc-host/", s.grpc + "/"},
		{"@host", s.http},
	}
}

func own(way string) string {
	return map[string]string{overHTTP: "@http/", overGRPC: "@grpc/", overRPC: "@rpc/"}[way]
}

// fill writes URLs for the names in a file: "@transIn" is the endpoint of the way that the file runs over.
func (s *service) fill(text, way string) string {
	for _, u := range s.urls() {
		text = strings.ReplaceAll(text, u[0], u[1])
	}
	for _, u := range s.urls() {
		if u[0] == own(way) {
			text = strings.ReplaceAll(text, "\"@", "\""+u[1])
			text = strings.ReplaceAll(text, "=@", "="+url.QueryEscape(u[1]))
		}
	}
	return text
}

// hide is the inverse of fill.
func (s *service) hide(text, way string) string {
	for _, u := range s.urls() {
		name := u[0]
		if name == own(way) {
			name = "@"
		}
		text = strings.ReplaceAll(text, u[1], name)
	}
	return text
}

func (s *service) script(name string, answers []string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.scripts[name] = answers
	if slices.Contains(answers, "hang") {
		s.held[name] = make(chan struct{})
	}
}

func (s *service) release(name string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if c := s.held[name]; c != nil {
		close(c)
		delete(s.held, name)
	}
}

func (s *service) releaseAll() {
	s.mu.Lock()
	defer s.mu.Unlock()
	for name, c := range s.held {
		close(c)
		delete(s.held, name)
	}
}

// came records a call and returns what to answer. An endpoint that has no script succeeds; one that hangs succeeds once it
// is released.
func (s *service) came(c *call) string {
	s.mu.Lock()
	c.at = time.Now()
	s.calls = append(s.calls, c)
	close(s.arrivals)
	s.arrivals = make(chan struct{})
	answer := "success"
	if script := s.scripts[c.name]; len(script) > 0 {
		answer = script[0]
		if len(script) > 1 {
			s.scripts[c.name] = script[1:]
		}
	}
	held := s.held[c.name]
	s.mu.Unlock()
	if answer != "hang" {
		return answer
	}
	if held != nil {
		<-held
	}
	return "success"
}

// take returns the calls since the last take, at least n if so many come.
func (s *service) take(n int) []*call {
	timeout := time.After(patience)
	for {
		s.mu.Lock()
		calls, arrivals := s.calls[s.taken:], s.arrivals
		if len(calls) >= n {
			s.taken = len(s.calls)
			s.mu.Unlock()
			return calls
		}
		s.mu.Unlock()
		select {
		case <-arrivals:
		case <-timeout:
			n = 0
		}
	}
}

func (s *service) serveHTTP(w http.ResponseWriter, r *http.Request) {
	body, err := io.ReadAll(r.Body)
	if err != nil {
		s.t.Logf("body of %s: %v", r.URL, err)
		return
	}
	q := r.URL.Query()
	c := &call{name: strings.TrimPrefix(r.URL.Path, "/"), first: r.Method + " " + r.URL.String(), header: r.Header,
		body: string(body), text: string(body), gid: q.Get("gid"), transType: q.Get("trans_type"), branch: q.Get("branch_id"), op: q.Get("op")}
	if c.name == "json-rpc" {
		s.serveRPC(w, c, q.Get("method"), body)
		return
	}
	answerHTTP(w, s.came(c))
}

// answerHTTP writes a word of the script, or a status and a body.
func answerHTTP(w http.ResponseWriter, answer string) {
	word, text, _ := strings.Cut(answer, " ")
	status := map[string]int{"success": 200, "failure": 409, "ongoing": 425, "error": 500}[word]
	if status == 0 {
		if _, err := fmt.Sscan(word, &status); err != nil {
			panic("script: " + answer)
		}
	}
	if status >= 300 && status < 400 {
		w.Header().Set("Location", text)
	}
	w.WriteHeader(status)
	fmt.Fprint(w, text)
}

// serveRPC takes a call of JSON-RPC: who calls is among the params.
func (s *service) serveRPC(w http.ResponseWriter, c *call, method string, body []byte) {
	var q struct {
		ID     json.RawMessage            `json:"id"`
		Method string                     `json:"method"`
		Params map[string]json.RawMessage `json:"params"`
	}
	if err := json.Unmarshal(body, &q); err != nil || q.Method != method {
		c.name = fmt.Sprintf("malformed %v", err)
	} else {
		c.name = method
	}
	c.text = strings.ReplaceAll(c.text, string(q.ID), `"ID"`)
	for name, to := range map[string]*string{"gid": &c.gid, "trans_type": &c.transType, "branch_id": &c.branch, "op": &c.op} {
		if err := json.Unmarshal(q.Params[name], to); err != nil {
			c.name += fmt.Sprintf(" %s: %v", name, err)
		}
		delete(q.Params, name)
	}
	c.body = ""
	if len(q.Params) > 0 {
		left, err := json.Marshal(q.Params)
		if err != nil {
			panic(err)
		}
		c.body = string(left)
	}
	answer := s.came(c)
	word, text, _ := strings.Cut(answer, " ")
	code := map[string]int{"failure": -32901, "ongoing": -32902, "error": -32603}[word]
	switch {
	case word == "success":
		fmt.Fprintf(w, `{"jsonrpc":"2.0","id":%s,"result":"","error":null}`, q.ID)
	case code != 0:
		fmt.Fprintf(w, `{"jsonrpc":"2.0","id":%s,"error":{"code":%d,"message":%q}}`, q.ID, code, text)
	default:
		answerHTTP(w, answer)
	}
}

// serveGRPC takes a call of any method.
func (s *service) serveGRPC(_ any, stream grpc.ServerStream) error {
	method, _ := grpc.MethodFromServerStream(stream)
	md, _ := metadata.FromIncomingContext(stream.Context())
	var body []byte
	if err := stream.RecvMsg(&body); err != nil {
		return err
	}
	one := func(name string) string { return strings.Join(md.Get(name), ",") }
	c := &call{name: method[strings.LastIndexByte(method, '/')+1:], first: method, header: md, body: string(body),
		text: fmt.Sprintf("%q", body), gid: one("dtm-gid"), transType: one("dtm-trans_type"), branch: one("dtm-branch_id"), op: one("dtm-op")}
	if c.transType == "workflow" {
		c.body = field1(body)
	}
	word, text, _ := strings.Cut(s.came(c), " ")
	code := map[string]codes.Code{"failure": codes.Aborted, "ongoing": codes.FailedPrecondition, "error": codes.Internal}[word]
	if n := 0; code == 0 && word != "success" {
		if _, err := fmt.Sscan(word, &n); err != nil {
			panic("script: " + word)
		}
		code = codes.Code(n)
	}
	if code != codes.OK {
		return grpcstatus.Error(code, text)
	}
	return stream.SendMsg([]byte(nil))
}

// field1 is the data of a workflow.WorkflowData.
func field1(b []byte) string {
	num, typ, n := protowire.ConsumeTag(b)
	if n < 0 || num != 1 || typ != protowire.BytesType {
		return fmt.Sprintf("not WorkflowData: %q", b)
	}
	v, m := protowire.ConsumeBytes(b[n:])
	if m < 0 || n+m != len(b) {
		return fmt.Sprintf("not WorkflowData: %q", b)
	}
	return string(v)
}

// rawCodec passes bytes.
type rawCodec struct{}

func (rawCodec) Name() string { return "proto" }

func (rawCodec) Marshal(v any) ([]byte, error) {
	b, ok := v.([]byte)
	if !ok {
		return nil, errors.New("not bytes")
	}
	return b, nil
}

func (rawCodec) Unmarshal(data []byte, v any) error {
	b, ok := v.(*[]byte)
	if !ok {
		return errors.New("not bytes")
	}
	*b = slices.Clone(data)
	return nil
}
