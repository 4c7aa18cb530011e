package dtm

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"runtime/debug"
	"strconv"
	"time"

	"github.com/valyala/fasthttp"
	"github.com/valyala/fasthttp/fasthttpadaptor"

	"txmesh/interceptor"
)

// waitMax bounds how long one request waits for the end of its transaction.
const waitMax = time.Minute

// endpoint is one line of the HTTP API.
type endpoint struct {
	method string // empty: any
	path   string
	serve  func(ctx context.Context, r *fasthttp.RequestCtx) (any, error)
}

// apiBase is the path that the endpoints of transactions lie below.
const apiBase = "/api/dtmsvr/"

func (s *Service) endpoints() []endpoint {
	body := func(f func(context.Context, *transaction) error) func(context.Context, *fasthttp.RequestCtx) (any, error) {
		return func(ctx context.Context, r *fasthttp.RequestCtx) (any, error) {
			t, err := parseTransaction(r.PostBody())
			if err != nil {
				return nil, err
			}
			return nil, f(ctx, t)
		}
	}
	return []endpoint{
		{"GET", "version", s.serveVersion},
		{"GET", "newGid", s.serveNewGID},
		{"POST", "prepare", body(s.prepare)},
		{"POST", "submit", body(s.submit)},
		{"POST", "abort", body(s.abort)},
		{"POST", "registerBranch", s.serveRegister},
		{"POST", "registerXaBranch", s.serveRegister},
		{"POST", "registerTccBranch", s.serveRegister},
		{"POST", "prepareWorkflow", s.servePrepareWorkflow},
		{"GET", "query", s.serveQuery},
		{"GET", "all", s.serveAll},
		{"POST", "forceStop", s.serveForceStop},
		{"POST", "resetNextCronTime", s.serveHasten},
		{"GET", "resetCronTime", s.serveHastenMany},
		{"GET", "subscribe", s.serveSubscribe},
		{"GET", "unsubscribe", s.serveUnsubscribe},
		{"GET", "scanKV", s.serveScanKV},
		{"GET", "queryKV", s.serveQueryKV},
	}
}

// Handler answers the HTTP port: the endpoints, JSON-RPC, ping and metrics. Whatever is wrong with a request is an answer;
// nothing here panics on input, and a panic takes down one request only.
func (s *Service) Handler() fasthttp.RequestHandler {
	byPath := map[string]endpoint{}
	for _, e := range s.endpoints() {
		byPath[apiBase+e.path] = e
	}
	metrics := fasthttpadaptor.NewFastHTTPHandler(s.metrics.handler())
	return func(r *fasthttp.RequestCtx) {
		path := string(r.Path())
		e, found := byPath[path]
		switch {
		case found && (e.method == string(r.Method())):
			s.serve(r, e)
		case path == "/api/ping":
			write(r, http.StatusOK, map[string]string{"msg": "pong"})
		case path == "/api/metrics" && r.IsGet():
			metrics(r)
		case path == "/api/json-rpc" && r.IsPost():
			s.serveJSONRPC(r)
		case r.IsDelete() && topicOf(path) != "":
			s.serve(r, endpoint{path: "topic", serve: func(ctx context.Context, _ *fasthttp.RequestCtx) (any, error) {
				return nil, s.deleteTopic(ctx, topicOf(path))
			}})
		default:
			r.Error("404 page not found", http.StatusNotFound)
		}
	}
}

func topicOf(path string) string {
	const prefix = apiBase + "topic/"
	if len(path) > len(prefix) && path[:len(prefix)] == prefix {
		return path[len(prefix):]
	}
	return ""
}

// serve runs one endpoint and puts its result into DTM's envelope.
func (s *Service) serve(r *fasthttp.RequestCtx, e endpoint) {
	start := s.Now()
	ctx, cancel := context.WithTimeout(askedHTTP(r), waitMax)
	defer cancel()
	v, err := s.guarded(ctx, r, e)
	s.metrics.served("http", e.path, err == nil, s.Now().Sub(start))
	if err != nil {
		s.writeFault(r, err)
		return
	}
	if v == nil {
		r.SetContentType("application/json; charset=utf-8")
		r.SetBodyString(`{"dtm_result":"SUCCESS"}`)
		return
	}
	write(r, http.StatusOK, v)
}

func (s *Service) guarded(ctx context.Context, r *fasthttp.RequestCtx, e endpoint) (v any, err error) {
	defer func() {
		if p := recover(); p != nil {
			s.Log.Error("request panicked", "api", e.path, "panic", p, "stack", string(debug.Stack()))
			err = fmt.Errorf("internal error: %v", p)
		}
	}()
	return e.serve(ctx, r)
}

type faultBody struct {
	Result  string `json:"dtm_result,omitempty"`
	Message string `json:"message"`
}

func (s *Service) writeFault(r *fasthttp.RequestCtx, err error) {
	f := faultOf(err)
	if f.status == http.StatusForbidden {
		r.Response.Header.Set(interceptor.HeaderError, string(interceptor.CodeDenied))
	}
	if f.status >= http.StatusInternalServerError {
		r.Response.Header.Set("Retry-After", "1")
		s.Log.Warn("request not taken", "path", string(r.Path()), "error", err)
	}
	write(r, f.status, faultBody{f.word, f.message})
}

// Unreadable answers a request that never reached the Handler: it is larger than BodyMax, or no HTTP.
func (s *Service) Unreadable(r *fasthttp.RequestCtx, err error) {
	f := fault{status: http.StatusBadRequest, message: "request: " + err.Error()}
	if errors.Is(err, fasthttp.ErrBodyTooLarge) {
		f = fault{status: http.StatusRequestEntityTooLarge, message: fmt.Sprintf("body: at most %d bytes, max-body", s.BodyMax)}
	}
	write(r, f.status, faultBody{Message: f.message})
}

func write(r *fasthttp.RequestCtx, status int, v any) {
	b, err := json.Marshal(v)
	if err != nil {
		panic("dtm: answer that is not JSON: " + err.Error())
	}
	r.SetContentType("application/json; charset=utf-8")
	r.SetStatusCode(status)
	r.SetBody(b)
}

func parseTransaction(body []byte) (*transaction, error) {
	t := &transaction{}
	if err := json.Unmarshal(body, t); err != nil {
		return nil, invalid("body: %v", err)
	}
	t.GID = cleanGID(t.GID)
	return t, nil
}

func (s *Service) serveVersion(context.Context, *fasthttp.RequestCtx) (any, error) {
	return map[string]string{"version": s.Version}, nil
}

func (s *Service) serveNewGID(context.Context, *fasthttp.RequestCtx) (any, error) {
	return map[string]string{"dtm_result": wordSuccess, "gid": s.NewGID()}, nil
}

func (s *Service) serveRegister(ctx context.Context, r *fasthttp.RequestCtx) (any, error) {
	b, err := parseBranch(r.PostBody())
	if err != nil {
		return nil, err
	}
	return nil, s.registerBranch(ctx, b, []byte(b["data"]))
}

func parseBranch(body []byte) (branchRequest, error) {
	b := branchRequest{}
	if err := json.Unmarshal(body, &b); err != nil {
		return nil, invalid("body: %v; all values are strings", err)
	}
	if b == nil {
		return nil, invalid("body: null; want an object")
	}
	b["gid"] = cleanGID(b["gid"])
	return b, nil
}

func (s *Service) servePrepareWorkflow(ctx context.Context, r *fasthttp.RequestCtx) (any, error) {
	t, err := parseTransaction(r.PostBody())
	if err != nil {
		return nil, err
	}
	if _, err := s.prepareWorkflow(ctx, t); err != nil {
		return nil, err
	}
	q, err := s.query(ctx, t.GID)
	if err != nil {
		return nil, err
	}
	return struct {
		Transaction *transactionView `json:"transaction"`
		Progresses  []branchView     `json:"progresses"`
	}{q.Transaction, q.Branches}, nil
}

func (s *Service) serveQuery(ctx context.Context, r *fasthttp.RequestCtx) (any, error) {
	if err := s.mayLook(ctx); err != nil {
		return nil, err
	}
	return s.query(ctx, cleanGID(arg(r, "gid")))
}

func arg(r *fasthttp.RequestCtx, name string) string { return string(r.QueryArgs().Peek(name)) }

// number reads a parameter that may be left out.
func number(r *fasthttp.RequestCtx, name string, otherwise, most int64) (int64, error) {
	text := arg(r, name)
	if text == "" {
		return otherwise, nil
	}
	n, err := strconv.ParseInt(text, 10, 64)
	if err != nil || n < 0 || n > most {
		return 0, invalid("%s %q: want a number from 0 to %d", name, text, most)
	}
	return n, nil
}

func (s *Service) serveAll(ctx context.Context, r *fasthttp.RequestCtx) (any, error) {
	limit, err := number(r, "limit", 100, limitMax)
	if err != nil {
		return nil, err
	}
	q := allQuery{gid: arg(r, "gid"), position: arg(r, "position"), status: arg(r, "status"), transType: arg(r, "transType"),
		limit: max(int(limit), 1)}
	if q.status != "" && phases(q.status) == nil {
		return nil, invalid("status %q: want prepared, submitted, aborting, succeed or failed", q.status)
	}
	for _, bound := range []struct {
		name string
		to   *time.Time
	}{{"createTimeStart", &q.after}, {"createTimeEnd", &q.before}} {
		millis, err := number(r, bound.name, 0, 1<<53)
		if err != nil {
			return nil, err
		}
		if millis > 0 {
			*bound.to = time.UnixMilli(millis)
		}
	}
	return s.all(ctx, q)
}

// gidOf reads the body of forceStop and resetNextCronTime.
func gidOf(r *fasthttp.RequestCtx) (string, error) {
	var b struct {
		GID string `json:"gid"`
	}
	if err := json.Unmarshal(r.PostBody(), &b); err != nil {
		return "", invalid("body: %v; want {\"gid\":\"...\"}", err)
	}
	return cleanGID(b.GID), nil
}

func (s *Service) serveForceStop(ctx context.Context, r *fasthttp.RequestCtx) (any, error) {
	gid, err := gidOf(r)
	if err != nil {
		return nil, err
	}
	return nil, s.forceStop(ctx, gid)
}

func (s *Service) serveHasten(ctx context.Context, r *fasthttp.RequestCtx) (any, error) {
	gid, err := gidOf(r)
	if err != nil {
		return nil, err
	}
	return nil, s.hasten(ctx, gid)
}

func (s *Service) serveHastenMany(ctx context.Context, r *fasthttp.RequestCtx) (any, error) {
	seconds, err := number(r, "timeout", int64(3*s.Defaults.TimeoutToFail.Seconds()), secondsMax)
	if err != nil {
		return nil, err
	}
	limit, err := number(r, "limit", 100, limitMax)
	if err != nil {
		return nil, err
	}
	return s.hastenMany(ctx, time.Duration(seconds)*time.Second, int(limit))
}

func (s *Service) serveSubscribe(ctx context.Context, r *fasthttp.RequestCtx) (any, error) {
	return nil, s.subscribe(ctx, arg(r, "topic"), arg(r, "url"), arg(r, "remark"))
}

func (s *Service) serveUnsubscribe(ctx context.Context, r *fasthttp.RequestCtx) (any, error) {
	return nil, s.unsubscribe(ctx, arg(r, "topic"), arg(r, "url"))
}

func (s *Service) serveQueryKV(ctx context.Context, r *fasthttp.RequestCtx) (any, error) {
	return s.queryKV(ctx, arg(r, "cat"), arg(r, "key"))
}

func (s *Service) serveScanKV(ctx context.Context, r *fasthttp.RequestCtx) (any, error) {
	limit, err := number(r, "limit", 100, limitMax)
	if err != nil {
		return nil, err
	}
	return s.scanKV(ctx, arg(r, "cat"), arg(r, "position"), max(int(limit), 1))
}
