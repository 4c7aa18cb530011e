// Package xds follows a control plane: it holds one delta ADS stream, takes policies, peers, secrets and takeovers from
// it, says of each answer whether it can be used, and keeps the last good ones on disk, so that a sidecar starts without
// a control plane. What was accepted stays in force until something better was. The package decides nothing about
// transactions and never asks for work to be done: it hands over what it knows. Start at Client; stream.go has the
// protocol, kind.go what an answer does.
package xds

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"math/rand/v2"
	"net"
	"sync"
	"time"

	"google.golang.org/grpc/credentials"

	"txmesh/policies"
)

// Options is what a Client is made of. Hooks may be nil and, but for Policies, must not block.
type Options struct {
	Addresses []string // host:port of the control plane, tried in turn
	// Credentials secures the connection to a host; nil: plain text, which is allowed on loopback only.
	Credentials func(host string) credentials.TransportCredentials
	File        string // where the last good configuration is kept
	Log         *slog.Logger
	Dial        func(ctx context.Context, network, address string) (net.Conn, error) // nil: TCP

	// Policies puts a set in force. It may take its time, and is asked again after an error until it has done so or a
	// newer set has come.
	Policies   func(context.Context, *policies.Set) error
	Peers      func(Fleet)
	Takeovers  func([]Takeover)          // all that are wanted at present
	Roots      func(pem []byte) error    // of the mesh
	MeshSecret func(secret []byte) error // that signs contexts
	Observer   Observer

	SilenceMax time.Duration // without a heartbeat; 0: 30 s, which is three of them
	BackoffMax time.Duration // between two tries; 0: 15 s
	SaveAfter  time.Duration // a change is on disk after so long; 0: 1 s
}

// Observer is told what happens, by its kind: policies, peers, secrets or runtime.
type Observer struct {
	Connected func(bool)
	Acked     func(kind string)
	Nacked    func(kind string)
}

// Kinds lists what an Observer is told of.
func Kinds() []string { return []string{"policies", "peers", "secrets", "runtime"} }

const (
	silenceDefault   = 30 * time.Second
	backoffMin       = 50 * time.Millisecond
	backoffDefault   = 15 * time.Second
	saveAfterDefault = time.Second
)

// Client follows one control plane, of several replicas. It is safe for many goroutines.
type Client struct {
	opt    Options
	kinds  []*kind
	next   *next // the policies on their way into force
	saver  *saver
	synced chan struct{} // closed by the first complete configuration of this process

	mu       sync.Mutex // guards all below
	heard    time.Time
	fresh    bool            // the stream has brought an answer of every kind
	answered map[string]bool // kinds, on any stream so far
	problem  string          // of the stream
	refused  string          // what is wrong with the policies that came last
	good     *policies.Set   // the last that compiled
	current  *policies.Set   // in force
	closed   bool            // synced is
	box      *outbox         // of the running stream; nil: there is none
}

// Status is how far the configuration can be relied on.
type Status struct {
	Fresh    bool      // what is in force is what the control plane wants, as far as it was accepted
	Heard    time.Time // when the control plane last sent something; zero: never since the start
	Policies bool      // a set of it is in force, even if that came from disk
	Problem  string    // why it is not fresh, or why policies were refused; may be empty while a stream begins
}

// New returns a client that has done nothing yet.
func New(opt Options) (*Client, error) {
	if len(opt.Addresses) == 0 {
		return nil, errors.New("control-plane: no address")
	}
	for _, a := range opt.Addresses {
		if opt.Credentials == nil && !IsLoopback(a) {
			return nil, fmt.Errorf("control-plane %s: would be called in plain text, which only loopback may be: set control-plane-ca", a)
		}
	}
	fill(&opt)
	c := &Client{opt: opt, synced: make(chan struct{}), answered: map[string]bool{},
		saver: &saver{file: opt.File, after: opt.SaveAfter, log: opt.Log, changed: make(chan struct{}, 1)}}
	c.next = &next{use: c.use, changed: make(chan struct{}, 1)}
	c.kinds = c.newKinds()
	return c, nil
}

func fill(opt *Options) {
	if opt.SilenceMax <= 0 {
		opt.SilenceMax = silenceDefault
	}
	if opt.BackoffMax <= 0 {
		opt.BackoffMax = backoffDefault
	}
	if opt.SaveAfter <= 0 {
		opt.SaveAfter = saveAfterDefault
	}
	if opt.Log == nil {
		opt.Log = slog.New(slog.DiscardHandler)
	}
	if opt.Policies == nil {
		opt.Policies = func(context.Context, *policies.Set) error { return nil }
	}
	if opt.Peers == nil {
		opt.Peers = func(Fleet) {}
	}
	if opt.Takeovers == nil {
		opt.Takeovers = func([]Takeover) {}
	}
	o := &opt.Observer
	if o.Connected == nil {
		o.Connected = func(bool) {}
	}
	if o.Acked == nil {
		o.Acked = func(string) {}
	}
	if o.Nacked == nil {
		o.Nacked = func(string) {}
	}
}

// IsLoopback reports whether a host:port never leaves this host.
func IsLoopback(address string) bool {
	host, _, err := net.SplitHostPort(address)
	ip := net.ParseIP(host)
	return err == nil && (host == "localhost" || ip != nil && ip.IsLoopback())
}

// Run follows the control plane until ctx ends. self is right from the first request on: the ports of this sidecar must
// be bound. When Run returns nothing of it runs any more.
func (c *Client) Run(ctx context.Context, self Node) {
	var all sync.WaitGroup
	defer all.Wait()
	all.Go(func() { c.next.run(ctx, c.opt.Log) })
	all.Go(func() { c.saver.run(ctx) })
	failures := 0
	for turn := rand.IntN(len(c.opt.Addresses)); ; turn++ {
		address := c.opt.Addresses[turn%len(c.opt.Addresses)]
		healthy, err := c.stream(ctx, address, self)
		if ctx.Err() != nil {
			return
		}
		if healthy {
			failures = 0
		}
		c.broken(address, err)
		if !rest(ctx, fullJitter(failures, c.opt.BackoffMax)) {
			return
		}
		failures++
	}
}

// fullJitter is a random pause below a bound that doubles.
func fullJitter(failures int, most time.Duration) time.Duration {
	bound := backoffMin << min(failures, 20)
	return rand.N(min(bound, most))
}

// rest waits, and reports whether ctx goes on.
func rest(ctx context.Context, d time.Duration) bool {
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-t.C:
		return true
	case <-ctx.Done():
		return false
	}
}

// Synced is closed when the first complete configuration has come from the control plane and is in force, or was refused.
func (c *Client) Synced() <-chan struct{} { return c.synced }

// Status returns how far the configuration can be relied on.
func (c *Client) Status() Status {
	c.mu.Lock()
	defer c.mu.Unlock()
	s := Status{Fresh: c.fresh, Heard: c.heard, Policies: c.current != nil, Problem: c.problem}
	if s.Problem == "" {
		s.Problem = c.refused
	}
	return s
}

// broken notes why a stream has ended. The same reason again and again is logged once.
func (c *Client) broken(address string, err error) {
	c.mu.Lock()
	news := c.fresh || c.problem != err.Error()
	c.fresh, c.problem = false, err.Error()
	c.mu.Unlock()
	c.opt.Observer.Connected(false)
	if news {
		c.opt.Log.Warn("no configuration from the control plane, the last good one stays", "address", address, "error", err)
	}
}

// hear notes an answer of the stream; fresh: it completes the first round.
func (c *Client) hear(kind string, fresh bool) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.heard = time.Now()
	c.answered[kind] = true
	if fresh {
		c.fresh, c.problem = true, ""
	}
	c.checkSynced()
}

// checkSynced needs mu.
func (c *Client) checkSynced() {
	if !c.closed && len(c.answered) == len(c.kinds) && c.good == c.current {
		c.closed = true
		close(c.synced)
	}
}

// accept notes what became of the policies that came last. A set that compiled goes into force.
func (c *Client) accept(set *policies.Set, refused string) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.refused = refused
	if refused == "" && c.good != set {
		c.good = set
		c.next.put(set)
	}
}

// use puts a set in force, unless it is already.
func (c *Client) use(ctx context.Context, set *policies.Set) error {
	c.mu.Lock()
	done := c.current == set
	c.mu.Unlock()
	if done {
		return nil
	}
	if err := c.opt.Policies(ctx, set); err != nil {
		return fmt.Errorf("put policies of the control plane in force: %w", err)
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	c.current = set
	c.checkSynced()
	return nil
}
