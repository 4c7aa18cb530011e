package dtm

import (
	"context"
	"encoding/json"
	"net/http"

	"github.com/valyala/fasthttp"
)

// Codes of JSON-RPC 2.0.
const (
	rpcParse    = -32700
	rpcRequest  = -32600
	rpcMethod   = -32601
	rpcInternal = -32603
)

// rpcRequestBody is one call. The id may be text or a number.
type rpcRequestBody struct {
	Version string          `json:"jsonrpc"`
	ID      json.RawMessage `json:"id"`
	Method  string          `json:"method"`
	Params  json.RawMessage `json:"params"`
}

// rpcReply always has the four keys.
type rpcReply struct {
	Version string          `json:"jsonrpc"`
	ID      json.RawMessage `json:"id"`
	Result  any             `json:"result"`
	Error   *rpcError       `json:"error"`
}

type rpcError struct {
	Code    int    `json:"code"`
	Message string `json:"message"`
}

func (s *Service) serveJSONRPC(r *fasthttp.RequestCtx) {
	var q rpcRequestBody
	reply := rpcReply{Version: "2.0"}
	status := http.StatusOK
	if err := json.Unmarshal(r.PostBody(), &q); err != nil {
		reply.Error = &rpcError{rpcParse, "parse: " + err.Error()}
		status = http.StatusBadRequest
	} else {
		reply.ID = q.ID
		reply.Result, reply.Error = s.callJSONRPC(r, q)
	}
	write(r, status, reply)
}

func (s *Service) callJSONRPC(r *fasthttp.RequestCtx, q rpcRequestBody) (any, *rpcError) {
	if q.Version != "2.0" || len(q.ID) == 0 || string(q.ID) == `""` || string(q.ID) == "null" {
		return nil, &rpcError{rpcRequest, `want "jsonrpc":"2.0" and an id that is not empty`}
	}
	if c := q.ID[0]; c != '"' && c != '-' && (c < '0' || c > '9') {
		return nil, &rpcError{rpcRequest, "id: want text or a number"}
	}
	start := s.Now()
	ctx, cancel := context.WithTimeout(askedHTTP(r), waitMax)
	defer cancel()
	known := true
	v, err := s.guarded(ctx, r, endpoint{path: "json-rpc", serve: func(ctx context.Context, _ *fasthttp.RequestCtx) (v any, err error) {
		v, known, err = s.dispatchJSONRPC(ctx, q)
		return v, err
	}})
	if !known {
		return nil, &rpcError{rpcMethod, "method " + q.Method + ": want newGid, prepare, submit, abort or registerBranch"}
	}
	s.metrics.served("http", "json-rpc", err == nil, s.Now().Sub(start))
	if err == nil {
		return v, nil
	}
	f := faultOf(err)
	switch f.word {
	case wordFailure:
		return nil, &rpcError{rpcFailure, f.message}
	case wordOngoing:
		return nil, &rpcError{rpcOngoing, f.message}
	default:
		return nil, &rpcError{rpcInternal, f.message}
	}
}

func (s *Service) dispatchJSONRPC(ctx context.Context, q rpcRequestBody) (v any, known bool, err error) {
	if q.Method == "newGid" {
		return map[string]string{"gid": s.NewGID()}, true, nil
	}
	if q.Method == "registerBranch" {
		b, err := parseBranch(q.Params)
		if err == nil {
			err = s.registerBranch(ctx, b, []byte(b["data"]))
		}
		return nil, true, err
	}
	f := map[string]func(context.Context, *transaction) error{"prepare": s.prepare, "submit": s.submit, "abort": s.abort}[q.Method]
	if f == nil {
		return nil, false, nil
	}
	t, err := parseTransaction(q.Params)
	if err != nil {
		return nil, true, err
	}
	return nil, true, f(ctx, t)
}
