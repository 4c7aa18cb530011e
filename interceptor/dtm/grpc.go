package dtm

import (
	"context"
	"encoding/json"
	"fmt"
	"net/http"
	"runtime/debug"
	"strings"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/reflection"
	grpcstatus "google.golang.org/grpc/status"
	"google.golang.org/protobuf/types/known/emptypb"

	"txmesh/interceptor/dtm/dtmgimp"
)

// GRPC returns the server of the gRPC port, with reflection.
func (s *Service) GRPC() *grpc.Server {
	srv := grpc.NewServer(grpc.Creds(newAsAccepted()), grpc.UnaryInterceptor(s.intercept), grpc.MaxRecvMsgSize(s.BodyMax))
	dtmgimp.RegisterDtmServer(srv, &grpcServer{s: s})
	reflection.Register(srv)
	return srv
}

// intercept bounds, counts and guards one call, and gives errors the codes that SDKs know.
func (s *Service) intercept(ctx context.Context, req any, info *grpc.UnaryServerInfo, h grpc.UnaryHandler) (reply any, err error) {
	start := s.Now()
	ctx, cancel := context.WithTimeout(askedGRPC(ctx, info.FullMethod), waitMax)
	defer cancel()
	api := info.FullMethod[strings.LastIndexByte(info.FullMethod, '/')+1:]
	defer func() {
		if p := recover(); p != nil {
			s.Log.Error("request panicked", "api", api, "panic", p, "stack", string(debug.Stack()))
			err = fmt.Errorf("internal error: %v", p)
		}
		s.metrics.served("grpc", strings.ToLower(api), err == nil, s.Now().Sub(start))
		if err != nil {
			reply, err = nil, grpcError(err)
		}
	}()
	return h(ctx, req)
}

func grpcError(err error) error {
	f := faultOf(err)
	code := codes.Unknown
	switch {
	case f.word == wordFailure:
		code = codes.Aborted
	case f.word == wordOngoing:
		code = codes.FailedPrecondition
	case f.status == http.StatusBadRequest:
		code = codes.InvalidArgument
	case f.status == http.StatusForbidden:
		code = codes.PermissionDenied
	case f.status == http.StatusNotFound:
		code = codes.NotFound
	case f.status == http.StatusConflict:
		code = codes.AlreadyExists
	case f.status == http.StatusServiceUnavailable:
		code = codes.Unavailable
	}
	return grpcstatus.Error(code, f.message)
}

// grpcServer is the API of gRPC on the same operations.
type grpcServer struct {
	dtmgimp.UnimplementedDtmServer
	s *Service
}

func transactionOf(r *dtmgimp.DtmRequest) (*transaction, error) {
	o := r.GetTransOptions()
	t := &transaction{GID: r.GetGid(), Type: r.GetTransType(), CustomData: r.GetCustomedData(), QueryPrepared: r.GetQueryPrepared(),
		Protocol: protocolGRPC, RollbackReason: r.GetRollbackReason(), ReqExtra: r.GetReqExtra(), binPayloads: r.GetBinPayloads(),
		options: options{WaitResult: o.GetWaitResult(), TimeoutToFail: o.GetTimeoutToFail(), RequestTimeout: o.GetRequestTimeout(),
			RetryInterval: o.GetRetryInterval(), BranchHeaders: o.GetBranchHeaders(), RetryLimit: o.GetRetryLimit()}}
	if r.GetSteps() == "" {
		return t, nil
	}
	if err := json.Unmarshal([]byte(r.GetSteps()), &t.Steps); err != nil {
		return nil, invalid("Steps: %v; want JSON text of a list of steps", err)
	}
	return t, nil
}

func (g *grpcServer) do(ctx context.Context, r *dtmgimp.DtmRequest, f func(context.Context, *transaction) error) (*emptypb.Empty, error) {
	t, err := transactionOf(r)
	if err != nil {
		return nil, err
	}
	return &emptypb.Empty{}, f(ctx, t)
}

// NewGid implements dtmgimp.DtmServer.
//
//nolint:staticcheck // the name is the generated interface's
func (g *grpcServer) NewGid(context.Context, *emptypb.Empty) (*dtmgimp.DtmGidReply, error) {
	return &dtmgimp.DtmGidReply{Gid: g.s.NewGID()}, nil
}

// Submit implements dtmgimp.DtmServer.
func (g *grpcServer) Submit(ctx context.Context, r *dtmgimp.DtmRequest) (*emptypb.Empty, error) {
	return g.do(ctx, r, g.s.submit)
}

// Prepare implements dtmgimp.DtmServer.
func (g *grpcServer) Prepare(ctx context.Context, r *dtmgimp.DtmRequest) (*emptypb.Empty, error) {
	return g.do(ctx, r, g.s.prepare)
}

// Abort implements dtmgimp.DtmServer.
func (g *grpcServer) Abort(ctx context.Context, r *dtmgimp.DtmRequest) (*emptypb.Empty, error) {
	return g.do(ctx, r, g.s.abort)
}

// RegisterBranch implements dtmgimp.DtmServer.
func (g *grpcServer) RegisterBranch(ctx context.Context, r *dtmgimp.DtmBranchRequest) (*emptypb.Empty, error) {
	b := branchRequest{}
	for k, v := range r.GetData() {
		b[k] = v
	}
	b["gid"], b["trans_type"], b["branch_id"] = r.GetGid(), r.GetTransType(), r.GetBranchID()
	return &emptypb.Empty{}, g.s.registerBranch(ctx, b, r.GetBusiPayload())
}

// PrepareWorkflow implements dtmgimp.DtmServer.
func (g *grpcServer) PrepareWorkflow(ctx context.Context, r *dtmgimp.DtmRequest) (*dtmgimp.DtmProgressesReply, error) {
	t, err := transactionOf(r)
	if err != nil {
		return nil, err
	}
	st, err := g.s.prepareWorkflow(ctx, t)
	if err != nil {
		return nil, err
	}
	reply := &dtmgimp.DtmProgressesReply{Transaction: &dtmgimp.DtmTransaction{Gid: t.GID, Status: status(st), Result: result(st)}}
	if st.Decided() && !st.Commit {
		reply.Transaction.RollbackReason = g.s.reason(st)
	}
	b := story{st: *st}
	for _, v := range b.branchViews() {
		reply.Progresses = append(reply.Progresses, &dtmgimp.DtmProgress{Status: v.Status, BinData: v.BinData, BranchID: v.BranchID, Op: v.Op})
	}
	return reply, nil
}

// Subscribe implements dtmgimp.DtmServer.
func (g *grpcServer) Subscribe(ctx context.Context, r *dtmgimp.DtmTopicRequest) (*emptypb.Empty, error) {
	return &emptypb.Empty{}, g.s.subscribe(ctx, r.GetTopic(), r.GetURL(), r.GetRemark())
}

// Unsubscribe implements dtmgimp.DtmServer.
func (g *grpcServer) Unsubscribe(ctx context.Context, r *dtmgimp.DtmTopicRequest) (*emptypb.Empty, error) {
	return &emptypb.Empty{}, g.s.unsubscribe(ctx, r.GetTopic(), r.GetURL())
}

// DeleteTopic implements dtmgimp.DtmServer.
func (g *grpcServer) DeleteTopic(ctx context.Context, r *dtmgimp.DtmTopicRequest) (*emptypb.Empty, error) {
	return &emptypb.Empty{}, g.s.deleteTopic(ctx, r.GetTopic())
}
