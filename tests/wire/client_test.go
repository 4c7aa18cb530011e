package wire

import (
	"bytes"
	"context"
	"encoding/base64"
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"regexp"
	"strings"
	"testing"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials/insecure"
	reflectionpb "google.golang.org/grpc/reflection/grpc_reflection_v1"
	grpcstatus "google.golang.org/grpc/status"
	"google.golang.org/protobuf/encoding/protojson"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/reflect/protoreflect"
	"google.golang.org/protobuf/reflect/protoregistry"
	"google.golang.org/protobuf/types/dynamicpb"
	"google.golang.org/protobuf/types/known/emptypb"

	"txmesh/interceptor/dtm/dtmgimp"
	"txmesh/sidecar"
)

// client asks over one transport and tells the answer in words that all share: ok, failure, ongoing or error. What is not
// exactly the envelope of its transport is shown as it is.
type client interface {
	ask(method, body string) string
}

func newClient(t *testing.T, way string, a sidecar.Addresses) client {
	t.Helper()
	switch way {
	case overHTTP:
		return httpClient{t, "http://" + a.DTM + "/api/dtmsvr/"}
	case overRPC:
		return rpcClient{t, "http://" + a.DTM + "/api/json-rpc", httpClient{t, "http://" + a.DTM + "/api/dtmsvr/"}}
	case overGRPC:
		return grpcClient{t, dtmgimp.NewDtmClient(dial(t, a.DTMGRPC))}
	}
	t.Fatalf("way %q", way)
	return nil
}

func dial(t *testing.T, address string) *grpc.ClientConn {
	t.Helper()
	conn, err := grpc.NewClient("passthrough:///"+address, grpc.WithTransportCredentials(insecure.NewCredentials()))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := conn.Close(); err != nil {
			t.Error(err)
		}
	})
	return conn
}

func send(t *testing.T, verb, url, body string) (int, http.Header, string) {
	t.Helper()
	r, err := http.NewRequest(verb, url, strings.NewReader(body))
	if err != nil {
		t.Fatal(err)
	}
	res, err := http.DefaultTransport.RoundTrip(r)
	if err != nil {
		t.Fatalf("%s %s: %v", verb, url, err)
	}
	defer res.Body.Close()
	text, err := io.ReadAll(res.Body)
	if err != nil {
		t.Fatalf("%s %s: %v", verb, url, err)
	}
	return res.StatusCode, res.Header, string(text)
}

type httpClient struct {
	t    *testing.T
	base string
}

func (c httpClient) ask(method, body string) string {
	status, _, text := send(c.t, "POST", c.base+method, body)
	if method == "prepareWorkflow" && status == 200 {
		var p progress
		if err := json.Unmarshal([]byte(text), &p); err != nil || p.Transaction == nil || p.Progresses == nil {
			return fmt.Sprintf("%v: %s", err, text)
		}
		return p.String()
	}
	if status == 200 && text == `{"dtm_result":"SUCCESS"}` {
		return "ok"
	}
	var b map[string]string
	if err := json.Unmarshal([]byte(text), &b); err != nil {
		return fmt.Sprintf("%d %s", status, text)
	}
	word, message := b["dtm_result"], b["message"]
	switch {
	case status == 409 && word == "FAILURE" && strings.Contains(message, "FAILURE"):
		return "failure: " + message
	case status == 425 && word == "ONGOING":
		return "ongoing: " + message
	case (status == 400 || status == 404 || status == 413) && len(b) == 1 && message != "":
		return "error: " + message
	}
	return fmt.Sprintf("%d %s", status, text)
}

// rpcClient asks over HTTP what JSON-RPC does not have.
type rpcClient struct {
	t    *testing.T
	url  string
	http httpClient
}

func (c rpcClient) ask(method, body string) string {
	if method == "prepareWorkflow" {
		return c.http.ask(method, body)
	}
	body = withProtocol(c.t, body)
	status, _, text := send(c.t, "POST", c.url, fmt.Sprintf(`{"jsonrpc":"2.0","id":"7","method":%q,"params":%s}`, method, body))
	var r struct {
		Version string          `json:"jsonrpc"`
		ID      string          `json:"id"`
		Result  json.RawMessage `json:"result"`
		Error   *struct {
			Code    int    `json:"code"`
			Message string `json:"message"`
		} `json:"error"`
	}
	if err := json.Unmarshal([]byte(text), &r); err != nil || status != 200 || r.Version != "2.0" || r.ID != "7" {
		return fmt.Sprintf("%v: %d %s", err, status, text)
	}
	switch {
	case r.Error == nil && string(r.Result) == "null":
		return "ok"
	case r.Error != nil && r.Error.Code == -32901 && strings.Contains(r.Error.Message, "FAILURE"):
		return "failure: " + r.Error.Message
	case r.Error != nil && r.Error.Code == -32902:
		return "ongoing: " + r.Error.Message
	case r.Error != nil && r.Error.Code == -32603:
		return "error: " + r.Error.Message
	}
	return fmt.Sprintf("%d %s", status, text)
}

// withProtocol asks for branches that are called by JSON-RPC.
func withProtocol(t *testing.T, body string) string {
	var m map[string]json.RawMessage
	if json.Unmarshal([]byte(body), &m) != nil || m["protocol"] != nil || m["branch_id"] != nil {
		return body
	}
	m["protocol"] = json.RawMessage(`"json-rpc"`)
	b, err := json.Marshal(m)
	if err != nil {
		t.Fatal(err)
	}
	return string(b)
}

type grpcClient struct {
	t      *testing.T
	client dtmgimp.DtmClient
}

func (c grpcClient) ask(method, body string) string {
	ctx := c.t.Context()
	var err error
	switch method {
	case "registerBranch":
		_, err = c.client.RegisterBranch(ctx, branchOf(c.t, body))
	case "prepareWorkflow":
		var r *dtmgimp.DtmProgressesReply
		if r, err = c.client.PrepareWorkflow(ctx, requestOf(c.t, body)); err == nil {
			return progressOf(r).String()
		}
	default:
		f := map[string]func(context.Context, *dtmgimp.DtmRequest, ...grpc.CallOption) (*emptypb.Empty, error){
			"submit": c.client.Submit, "prepare": c.client.Prepare, "abort": c.client.Abort}[method]
		if f == nil {
			c.t.Fatalf("method %q is not asked over gRPC", method)
		}
		_, err = f(ctx, requestOf(c.t, body))
	}
	s := grpcstatus.Convert(err)
	switch {
	case s.Code() == codes.OK:
		return "ok"
	case s.Code() == codes.Aborted && strings.Contains(s.Message(), "FAILURE"):
		return "failure: " + s.Message()
	case s.Code() == codes.FailedPrecondition:
		return "ongoing: " + s.Message()
	case s.Code() == codes.InvalidArgument, s.Code() == codes.NotFound:
		return "error: " + s.Message()
	}
	return s.String()
}

// requestOf writes the body of HTTP as a message of gRPC, as SDKs do.
func requestOf(t *testing.T, body string) *dtmgimp.DtmRequest {
	var b struct {
		GID            string            `json:"gid"`
		Type           string            `json:"trans_type"`
		Steps          json.RawMessage   `json:"steps"`
		Payloads       []string          `json:"payloads"`
		CustomData     string            `json:"custom_data"`
		QueryPrepared  string            `json:"query_prepared"`
		Reason         string            `json:"rollback_reason"`
		Extra          map[string]string `json:"req_extra"`
		WaitResult     bool              `json:"wait_result"`
		TimeoutToFail  int64             `json:"timeout_to_fail"`
		RequestTimeout int64             `json:"request_timeout"`
		RetryInterval  int64             `json:"retry_interval"`
		RetryLimit     int64             `json:"retry_limit"`
		Headers        map[string]string `json:"branch_headers"`
	}
	d := json.NewDecoder(strings.NewReader(body))
	d.DisallowUnknownFields() // what gRPC cannot say has no place in a file that runs over it
	if err := d.Decode(&b); err != nil {
		t.Fatalf("%s: %v", body, err)
	}
	r := &dtmgimp.DtmRequest{Gid: b.GID, TransType: b.Type, CustomedData: b.CustomData, QueryPrepared: b.QueryPrepared, Steps: string(b.Steps),
		RollbackReason: b.Reason, ReqExtra: b.Extra, TransOptions: &dtmgimp.DtmTransOptions{WaitResult: b.WaitResult,
			TimeoutToFail: b.TimeoutToFail, RequestTimeout: b.RequestTimeout, RetryInterval: b.RetryInterval, RetryLimit: b.RetryLimit,
			BranchHeaders: b.Headers, PassthroughHeaders: []string{"x-retired"}}}
	for _, p := range b.Payloads {
		r.BinPayloads = append(r.BinPayloads, []byte(p))
	}
	return r
}

func branchOf(t *testing.T, body string) *dtmgimp.DtmBranchRequest {
	data := map[string]string{}
	if err := json.Unmarshal([]byte(body), &data); err != nil {
		t.Fatalf("%s: %v", body, err)
	}
	r := &dtmgimp.DtmBranchRequest{Gid: data["gid"], TransType: data["trans_type"], BranchID: data["branch_id"], BusiPayload: []byte(data["data"])}
	for _, known := range []string{"gid", "trans_type", "branch_id", "data"} {
		delete(data, known)
	}
	r.Data = data
	return r
}

// progress is the answer of prepareWorkflow.
type progress struct {
	Transaction *struct {
		Status string `json:"status"`
		Reason string `json:"rollback_reason"`
		Result string `json:"result"`
	} `json:"transaction"`
	Progresses []step `json:"progresses"`
}

type step struct {
	Status string `json:"status"`
	Data   []byte `json:"bin_data"`
	Branch string `json:"branch_id"`
	Op     string `json:"op"`
}

func progressOf(r *dtmgimp.DtmProgressesReply) progress {
	var p progress
	text, err := protojson.Marshal(r.GetTransaction())
	if err == nil {
		err = json.Unmarshal(text, &p.Transaction)
	}
	if err != nil {
		panic(err)
	}
	for _, x := range r.GetProgresses() {
		p.Progresses = append(p.Progresses, step{x.GetStatus(), x.GetBinData(), x.GetBranchID(), x.GetOp()})
	}
	return p
}

func (p progress) String() string {
	var b strings.Builder
	b.WriteString(p.Transaction.Status)
	if r := p.Transaction.Result; r != "" {
		if text, err := base64.StdEncoding.DecodeString(r); err == nil {
			r = string(text)
		}
		b.WriteString(" with " + r)
	}
	if r := p.Transaction.Reason; r != "" {
		b.WriteString(": " + r)
	}
	for _, x := range p.Progresses {
		fmt.Fprintf(&b, "\n%s %s %s %s", x.Branch, x.Op, x.Status, x.Data)
	}
	return b.String()
}

// grpcRaw calls any method with a message that is written as JSON. It knows the messages by reflection of the generated
// code, so that names and numbers are those of the wire.
func grpcRaw(t *testing.T, address, method, text string) string {
	t.Helper()
	conn := dial(t, address)
	d, err := protoregistry.GlobalFiles.FindDescriptorByName(protoreflect.FullName("dtmgimp.Dtm." + method))
	if err != nil {
		t.Fatal(err)
	}
	m, ok := d.(protoreflect.MethodDescriptor)
	if !ok {
		t.Fatalf("%s is no method", method)
	}
	in, out := dynamicpb.NewMessage(m.Input()), dynamicpb.NewMessage(m.Output())
	if text == "" {
		text = "{}"
	}
	if err := protojson.Unmarshal([]byte(text), in); err != nil {
		t.Fatalf("%s: %v", text, err)
	}
	if err := conn.Invoke(t.Context(), "/dtmgimp.Dtm/"+method, in, out); err != nil {
		s := grpcstatus.Convert(err)
		return fmt.Sprintf("%s: %s", s.Code(), s.Message())
	}
	if proto.Size(out) == 0 {
		return "OK"
	}
	reply, err := protojson.Marshal(out)
	if err != nil {
		t.Fatal(err)
	}
	return "OK\n" + pretty(string(reply), true)
}

// reflected asks the server itself which services it has.
func reflected(t *testing.T, address string) string {
	t.Helper()
	conn := dial(t, address)
	stream, err := reflectionpb.NewServerReflectionClient(conn).ServerReflectionInfo(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	ask := &reflectionpb.ServerReflectionRequest{MessageRequest: &reflectionpb.ServerReflectionRequest_ListServices{}}
	if err := stream.Send(ask); err != nil {
		t.Fatal(err)
	}
	r, err := stream.Recv()
	if err != nil {
		t.Fatal(err)
	}
	var names []string
	for _, s := range r.GetListServicesResponse().GetService() {
		names = append(names, s.GetName())
	}
	return strings.Join(names, "\n")
}

// pretty shows JSON with times and ids replaced by words; short keeps it on one line.
func pretty(text string, short bool) string {
	text = regexp.MustCompile(`"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d(\.\d+)?Z"`).ReplaceAllString(text, `"TIME"`)
	text = regexp.MustCompile(`"(gid|Gid)":\s*"[0-9A-HJKMNP-TV-Z]{26}"`).ReplaceAllString(text, `"$1":"ULID"`)
	var b bytes.Buffer
	if short && json.Compact(&b, []byte(text)) == nil || !short && len(text) > 100 && json.Indent(&b, []byte(text), "", " ") == nil {
		return b.String()
	}
	return text
}
