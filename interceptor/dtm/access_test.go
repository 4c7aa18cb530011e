package dtm

import (
	"context"
	"fmt"
	"log/slog"
	"maps"
	"net/http"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/valyala/fasthttp"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	grpcstatus "google.golang.org/grpc/status"

	"txmesh/interceptor"
	"txmesh/interceptor/dtm/dtmgimp"
	"txmesh/policies"
)

// refusing is a door at which nobody may do anything, and what was asked for there.
type refusing struct {
	s     *Service
	asked []string
}

func newRefusing(t *testing.T) *refusing {
	t.Helper()
	m, x := &machines{}, &refusing{}
	m.reset()
	x.s = New(Options{Engine: m, Chronicle: m, Rows: m, NewGID: func() string { return "g" }, Now: time.Now, Log: slog.New(slog.DiscardHandler),
		BodyMax: 1 << 20, May: x.may})
	t.Cleanup(x.s.Close)
	return x
}

func (x *refusing) may(a Asker, oneOf ...policies.Act) error {
	x.asked = append(x.asked, fmt.Sprint(a.Method, " ", a.Path, " ", oneOf))
	return fmt.Errorf("%s by nobody: %w", oneOf[0], interceptor.ErrDenied)
}

func (x *refusing) http(method, uri, body string) (status int, code, text string) {
	var r fasthttp.RequestCtx
	r.Request.Header.SetMethod(method)
	r.Request.SetRequestURI(uri)
	r.Request.SetBodyString(body)
	x.s.Handler()(&r)
	return r.Response.StatusCode(), string(r.Response.Header.Peek(interceptor.HeaderError)), string(r.Response.Body())
}

// actsByPath is what each endpoint asks for first; those that tell nothing of transactions are open.
func actsByPath() map[string]string {
	acts := map[string]string{"version": "", "newGid": ""}
	for act, paths := range map[string]string{"[start]": "prepare submit prepareWorkflow", "[decide]": "abort registerBranch registerXaBranch registerTccBranch",
		"[operate]": "forceStop resetNextCronTime resetCronTime subscribe unsubscribe", "[operate decide]": "query all scanKV queryKV"} {
		for _, p := range strings.Fields(paths) {
			acts[p] = act
		}
	}
	return acts
}

func TestEveryEndpointAsksWhoMay(t *testing.T) {
	x := newRefusing(t)
	want := actsByPath()
	seen := map[string]string{}
	for _, e := range x.s.endpoints() {
		seen[e.path] = want[e.path]
		x.asked = nil
		status, code, text := x.http(e.method, apiBase+e.path, `{"gid":"g","trans_type":"msg"}`)
		if want[e.path] == "" {
			if status != http.StatusOK || x.asked != nil {
				t.Errorf("%s = %d %s after %v, want 200 after nothing", e.path, status, text, x.asked)
			}
			continue
		}
		if status != http.StatusForbidden || code != "TXM0128" || !strings.Contains(text, "TXM0128") || !strings.Contains(text, "let an AccessPolicy") {
			t.Errorf("%s = %d %s %s, want 403 TXM0128", e.path, status, code, text)
		}
		if diff := cmp.Diff([]string{e.method + " " + apiBase + e.path + " " + want[e.path]}, x.asked); diff != "" {
			t.Errorf("%s asked (-want +got):\n%s", e.path, diff)
		}
	}
	if !maps.Equal(want, seen) {
		t.Errorf("endpoints are %v, want %v", seen, want)
	}
	if status, _, text := x.http("DELETE", apiBase+"topic/t", ""); status != http.StatusForbidden {
		t.Errorf("delete of a topic = %d %s, want 403", status, text)
	}
	for _, method := range []string{"prepare", "submit", "abort", "registerBranch"} {
		_, _, text := x.http("POST", "/api/json-rpc", `{"jsonrpc":"2.0","id":1,"method":"`+method+`","params":{"gid":"g","trans_type":"msg"}}`)
		if !strings.Contains(text, `"result":null,"error":{"code":-32603,"message":"TXM0128`) {
			t.Errorf("json-rpc %s = %s, want an error TXM0128", method, text)
		}
	}
}

func TestEveryMethodAsksWhoMay(t *testing.T) {
	x := newRefusing(t)
	for _, m := range dtmgimp.Dtm_ServiceDesc.Methods {
		x.asked = nil
		_, err := m.Handler(&grpcServer{s: x.s}, t.Context(), func(any) error { return nil },
			func(ctx context.Context, req any, info *grpc.UnaryServerInfo, h grpc.UnaryHandler) (any, error) {
				return x.s.intercept(ctx, req, info, h)
			})
		if m.MethodName == "NewGid" {
			if err != nil || x.asked != nil {
				t.Errorf("NewGid = %v after %v, want nil after nothing", err, x.asked)
			}
			continue
		}
		if grpcstatus.Code(err) != codes.PermissionDenied || len(x.asked) != 1 || !strings.HasPrefix(x.asked[0], "POST /dtmgimp.Dtm/"+m.MethodName+" ") {
			t.Errorf("%s = %v after %v, want PermissionDenied after one question", m.MethodName, err, x.asked)
		}
	}
}

func TestSubmitAsksForWhatItDoes(t *testing.T) {
	for kind, want := range map[string][]policies.Act{typeSaga: {policies.Begin}, typeMsg: {policies.Begin, policies.Decide},
		typeTCC: {policies.Begin, policies.Decide}, typeXA: {policies.Begin, policies.Decide}, typeWorkflow: {policies.Decide}} {
		var got []policies.Act
		s := &Service{Options: Options{May: func(_ Asker, oneOf ...policies.Act) error {
			got = append(got, oneOf...)
			return nil
		}}}
		if err := s.maySubmit(t.Context(), &transaction{Type: kind}); err != nil || !cmp.Equal(got, want) {
			t.Errorf("submit of a %s asks for %v, %v, want %v", kind, got, err, want)
		}
	}
}
