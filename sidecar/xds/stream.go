package xds

import (
	"context"
	"errors"
	"fmt"
	"net"
	"slices"
	"sync"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/keepalive"

	"txmesh/sidecar/xds/envoy"
)

const (
	method        = "/envoy.service.discovery.v3.AggregatedDiscoveryService/DeltaAggregatedResources"
	everything    = "*"
	receiveMax    = 64 << 20
	connectMax    = 5 * time.Second
	pingEvery     = 30 * time.Second
	pingAnswerMax = 10 * time.Second
)

// stream follows one replica until the connection breaks or falls silent. healthy says that an answer of every kind came.
func (c *Client) stream(ctx context.Context, address string, self Node) (healthy bool, _ error) {
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	conn, err := c.dial(address)
	if err != nil {
		return false, err
	}
	defer func() { _ = conn.Close() }() // the stream has ended
	// A server may take the connection and say nothing, or stop later: it sends the next answer of a kind only after
	// the last was acknowledged, and a word that is lost between them is missed by nobody.
	silence := time.AfterFunc(c.opt.SilenceMax, func() {
		cancel(fmt.Errorf("no heartbeat for %v", c.opt.SilenceMax))
	})
	defer silence.Stop()
	s, err := conn.NewStream(ctx, &grpc.StreamDesc{ServerStreams: true, ClientStreams: true}, method)
	if err != nil {
		if cause := context.Cause(ctx); cause != nil {
			err = cause
		}
		return false, err
	}
	box := newOutbox()
	var sender sync.WaitGroup
	defer sender.Wait()
	defer cancel(nil)
	sender.Go(func() { send(ctx, s, box) })
	c.subscribe(box, self)
	c.setBox(box)
	defer c.setBox(nil)
	r := receiver{c: c, box: box, silence: silence, missing: slices.Clone(c.kinds)}
	for {
		res := &envoy.DeltaDiscoveryResponse{}
		if err := s.RecvMsg(res); err != nil {
			if cause := context.Cause(ctx); cause != nil {
				err = cause
			}
			return len(r.missing) == 0, err
		}
		r.receive(res)
	}
}

func (c *Client) dial(address string) (*grpc.ClientConn, error) {
	secure := insecure.NewCredentials()
	if c.opt.Credentials != nil {
		host, _, err := net.SplitHostPort(address)
		if err != nil {
			return nil, err
		}
		secure = c.opt.Credentials(host)
	}
	dial := c.opt.Dial
	if dial == nil {
		dial = new(net.Dialer).DialContext
	}
	return grpc.NewClient(address, grpc.WithTransportCredentials(secure), grpc.WithNoProxy(),
		grpc.WithContextDialer(func(ctx context.Context, address string) (net.Conn, error) { return dial(ctx, "tcp", address) }),
		grpc.WithConnectParams(grpc.ConnectParams{MinConnectTimeout: connectMax}),
		grpc.WithKeepaliveParams(keepalive.ClientParameters{Time: pingEvery, Timeout: pingAnswerMax}),
		grpc.WithDefaultCallOptions(grpc.MaxCallRecvMsgSize(receiveMax)), grpc.WithDisableServiceConfig())
}

// subscribe asks for everything of every kind that is not known yet. Only the first request names the node.
func (c *Client) subscribe(box *outbox, self Node) {
	for i, k := range c.kinds {
		box.add(k.url, func(req *envoy.DeltaDiscoveryRequest) {
			req.ResourceNamesSubscribe = []string{everything}
			req.InitialResourceVersions = k.begin()
			if i == 0 {
				req.Node = self.wire()
			}
		})
	}
}

func (c *Client) setBox(box *outbox) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.box = box
}

// Refetch asks for one resource again, of a kind that Kinds lists; without a stream it does nothing, since the next one
// brings what is missing. The two halves of the request cancel out, but for the answer.
func (c *Client) Refetch(kindName, name string) {
	c.mu.Lock()
	box := c.box
	c.mu.Unlock()
	i := slices.IndexFunc(c.kinds, func(k *kind) bool { return k.name == kindName })
	if box == nil || i < 0 {
		return
	}
	box.add(c.kinds[i].url, func(req *envoy.DeltaDiscoveryRequest) {
		req.ResourceNamesSubscribe = append(req.ResourceNamesSubscribe, name)
		req.ResourceNamesUnsubscribe = append(req.ResourceNamesUnsubscribe, name)
	})
}

// send owns the sending half of the stream.
func send(ctx context.Context, s grpc.ClientStream, box *outbox) {
	for {
		select {
		case <-ctx.Done():
			return
		case <-box.filled:
		}
		for _, req := range box.take() {
			if err := s.SendMsg(req); err != nil {
				return // the receiver gets the reason
			}
		}
	}
}

// receiver takes the answers of one stream.
type receiver struct {
	c       *Client
	box     *outbox
	silence *time.Timer
	missing []*kind // that have had no answer yet
}

// receive applies an answer and says what became of it. A kind must not be left without a word: it would never change
// again.
func (r *receiver) receive(res *envoy.DeltaDiscoveryResponse) {
	c := r.c
	i := slices.IndexFunc(c.kinds, func(k *kind) bool { return k.url == res.TypeUrl })
	if i < 0 {
		c.opt.Log.Warn("control plane sends what was not asked for", "type", res.TypeUrl)
		r.answer(res, []error{errors.New("not subscribed to this type")})
		return
	}
	k := c.kinds[i]
	k.live = true
	problems := k.take(res)
	r.answer(res, problems)
	if len(problems) > 0 {
		c.opt.Observer.Nacked(k.name)
		c.opt.Log.Error("configuration of the control plane refused, the last good one stays", "kind", k.name, "error", message(problems))
	} else {
		c.opt.Observer.Acked(k.name)
	}
	if k.kept {
		c.saver.put(k.url, k.good)
	}
	if k.url == typeRuntime {
		r.silence.Reset(c.opt.SilenceMax)
	}
	r.missing = slices.DeleteFunc(r.missing, func(m *kind) bool { return m == k })
	c.hear(k.name, len(r.missing) == 0)
	if len(r.missing) == 0 {
		c.opt.Observer.Connected(true)
	}
}

func (r *receiver) answer(res *envoy.DeltaDiscoveryResponse, problems []error) {
	r.box.add(res.TypeUrl, func(req *envoy.DeltaDiscoveryRequest) {
		req.ResponseNonce, req.ErrorDetail = res.Nonce, nil
		if len(problems) > 0 {
			req.ErrorDetail = &envoy.Status{Code: int32(codes.InvalidArgument), Message: message(problems)}
		}
	})
}
