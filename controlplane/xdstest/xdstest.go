// Package xdstest is a client of delta ADS that does exactly what a test or a benchmark tells it, right or wrong: it
// answers nothing by itself and forgets nothing. It is no model for a client of users. Start at Open.
package xdstest

import (
	"context"
	"fmt"
	"testing"
	"time"

	core "github.com/envoyproxy/go-control-plane/envoy/config/core/v3"
	discovery "github.com/envoyproxy/go-control-plane/envoy/service/discovery/v3"
	rpc "google.golang.org/genproto/googleapis/rpc/status"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials"
	"google.golang.org/protobuf/types/known/structpb"
)

// Request is what a client sends.
type Request = discovery.DeltaDiscoveryRequest

// Response is what a server sends.
type Response = discovery.DeltaDiscoveryResponse

// patience is how long a test waits for what must come.
const patience = 10 * time.Second

// fenceType is a type that nobody serves.
const fenceType = "type.googleapis.com/google.protobuf.Empty"

// Node is what a sidecar says of itself. More is added to its metadata, or replaces a part of it.
func Node(owner, service, inbound string, more map[string]any) *core.Node {
	fields := map[string]any{"owner": owner, "incarnation": "1", "service": service, "inbound": inbound, "peer": inbound,
		"home": owner, "version": "test", "standby": false}
	for k, v := range more {
		fields[k] = v
	}
	metadata, err := structpb.NewStruct(fields)
	if err != nil {
		panic(fmt.Sprintf("xdstest: metadata %v: %v", more, err))
	}
	return &core.Node{Id: owner + "/" + fields["incarnation"].(string), Cluster: service, Metadata: metadata}
}

// Client is one stream.
type Client struct {
	t      testing.TB
	node   *core.Node
	stream discovery.AggregatedDiscoveryService_DeltaAggregatedResourcesClient
	got    chan *Response
	end    chan struct{} // closed when the stream has ended
	err    error         // why; written before end is closed
	close  func()
}

// Open begins a stream. The node goes with the first request.
func Open(t testing.TB, address string, creds credentials.TransportCredentials, node *core.Node) *Client {
	t.Helper()
	conn, err := grpc.NewClient("passthrough:///"+address, grpc.WithTransportCredentials(creds))
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	c := &Client{t: t, node: node, got: make(chan *Response, 4096), end: make(chan struct{})}
	c.close = func() {
		cancel()
		_ = conn.Close() // the stream is over
	}
	t.Cleanup(c.close)
	if c.stream, err = discovery.NewAggregatedDiscoveryServiceClient(conn).DeltaAggregatedResources(ctx); err != nil {
		t.Fatal(err)
	}
	return c
}

// Read begins to read; a client that never does stops the server's sending before long.
func (c *Client) Read() *Client {
	go func() {
		defer close(c.end)
		for {
			res, err := c.stream.Recv()
			if err != nil {
				c.err = err
				return
			}
			c.got <- res
		}
	}()
	return c
}

// Close ends the stream.
func (c *Client) Close() { c.close() }

// Send sends a request; the first one has the node. That a stream has ended shows in what comes.
func (c *Client) Send(r *Request) {
	r.Node, c.node = c.node, nil
	_ = c.stream.Send(r) // see above
}

// Subscribe asks for names of a type, `*` for all.
func (c *Client) Subscribe(typ string, names ...string) {
	c.Send(&Request{TypeUrl: typ, ResourceNamesSubscribe: names})
}

// Ack answers a response.
func (c *Client) Ack(r *Response) {
	c.Send(&Request{TypeUrl: r.GetTypeUrl(), ResponseNonce: r.GetNonce()})
}

// Nack refuses a response.
func (c *Client) Nack(r *Response, why string) {
	c.Send(&Request{TypeUrl: r.GetTypeUrl(), ResponseNonce: r.GetNonce(), ErrorDetail: &rpc.Status{Code: int32(codes.InvalidArgument), Message: why}})
}

// Next is the next response.
func (c *Client) Next() *Response {
	c.t.Helper()
	select {
	case r := <-c.got:
		return r
	case <-c.end:
		c.t.Fatalf("stream ended: %v", c.err)
	case <-time.After(patience):
		c.t.Fatalf("no response within %v", patience)
	}
	return nil
}

// Until acknowledges responses until one is what is wanted, and returns it.
func (c *Client) Until(what string, wanted func(*Response) bool) *Response {
	c.t.Helper()
	for deadline := time.Now().Add(patience); time.Now().Before(deadline); {
		r := c.Next()
		c.Ack(r)
		if wanted(r) {
			return r
		}
	}
	c.t.Fatalf("no response with %s within %v", what, patience)
	return nil
}

// Rest is what the server has sent, and everything it sends because of the requests so far.
func (c *Client) Rest() []*Response {
	c.t.Helper()
	c.Subscribe(fenceType, "*") // always answered, in its turn
	var out []*Response
	for {
		r := c.Next()
		if r.GetTypeUrl() == fenceType {
			return out
		}
		out = append(out, r)
	}
}

// End is why the stream ended.
func (c *Client) End() error {
	c.t.Helper()
	for deadline := time.After(patience); ; {
		select {
		case <-c.got:
		case <-c.end:
			return c.err
		case <-deadline:
			c.t.Fatalf("the stream still lives after %v", patience)
		}
	}
}

// Names of the resources in a response.
func Names(r *Response) []string {
	out := []string{}
	for _, x := range r.GetResources() {
		out = append(out, x.GetName())
	}
	return out
}

// SetNode has the next request carry a node again.
func (c *Client) SetNode(n *core.Node) { c.node = n }
