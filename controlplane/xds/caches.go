package xds

import (
	"fmt"
	"log/slog"
	"maps"
	"slices"
	"sync"

	core "github.com/envoyproxy/go-control-plane/envoy/config/core/v3"
	discovery "github.com/envoyproxy/go-control-plane/envoy/service/discovery/v3"
	"github.com/envoyproxy/go-control-plane/pkg/cache/types"
	"github.com/envoyproxy/go-control-plane/pkg/cache/v3"
	"github.com/envoyproxy/go-control-plane/pkg/log"
	"github.com/envoyproxy/go-control-plane/pkg/resource/v3"
	"google.golang.org/protobuf/proto"
)

// The scopes of streams. Server.claim writes one into every node, in place of what the client has written there.
const (
	scopeAnonymous = "anonymous"
	scopeMember    = "member"
	scopeReplica   = "replica"
)

func scopeOf(n *core.Node) string { return n.GetUserAgentName() }

// caches are the collections. Together with RouteConfiguration, which is always inline, clients may name ten types.
type caches struct {
	policies  *collection
	endpoints *collection
	here      *collection // endpoints for other replicas
	secrets   *collection
	runtime   *collection
	listeners *collection
	clusters  *collection

	loading  *held   // policies, until there are some
	settling []*held // what clients that come back hold, until sidecars have had time to come back as well
	prefix   string  // of the versions of this process
}

func newCaches(prefix string, l *slog.Logger) caches {
	c := caches{prefix: prefix}
	for _, x := range []struct {
		to  **collection
		typ string
	}{{&c.policies, resource.ExtensionConfigType}, {&c.endpoints, resource.EndpointType}, {&c.here, resource.EndpointType},
		{&c.secrets, resource.SecretType}, {&c.runtime, resource.RuntimeType}, {&c.listeners, resource.ListenerType},
		{&c.clusters, resource.ClusterType}} {
		// The library's notes about each watch are of no use to operators, and costly to format.
		errors := log.LoggerFuncs{ErrorFunc: func(format string, args ...any) {
			l.Error("xDS cache", "type", x.typ, "error", fmt.Sprintf(format, args...))
		}}
		*x.to = &collection{cache: cache.NewLinearCache(x.typ, cache.WithVersionPrefix(prefix), cache.WithLogger(errors)), held: map[string]types.Resource{}}
	}
	c.loading = newHeld(c.policies.cache, true)
	return c
}

// mux serves each type from its collection, and any other from nothing: an unknown type must not end the stream.
func (c *caches) mux() cache.Cache {
	hold := func(x *collection) cache.Cache {
		h := newHeld(x.cache, false)
		c.settling = append(c.settling, h)
		return h
	}
	all := map[string]cache.Cache{"": nothing{},
		resource.ExtensionConfigType: c.loading, resource.EndpointType: hold(c.endpoints), scopeReplica: c.here.cache,
		resource.SecretType: c.secrets.cache, resource.RuntimeType: c.runtime.cache,
		resource.ListenerType: hold(c.listeners), resource.ClusterType: hold(c.clusters)}
	classify := func(typ string, n *core.Node) string {
		scope := scopeOf(n)
		if _, ok := all[typ]; !ok || typ == resource.SecretType && scope == scopeAnonymous {
			return ""
		}
		if scope == scopeReplica && typ == resource.EndpointType {
			return scopeReplica
		}
		return typ
	}
	return &cache.MuxCache{Caches: all,
		Classify:      func(r *cache.Request) string { return classify(r.GetTypeUrl(), r.GetNode()) },
		ClassifyDelta: func(r *cache.DeltaRequest) string { return classify(r.GetTypeUrl(), r.GetNode()) }}
}

// nothing is an empty collection of whatever type is asked for. A LinearCache knows one type only and refuses others,
// which would end the stream.
type nothing struct{ cache.ConfigFetcher }

// CreateWatch implements cache.Cache.
func (nothing) CreateWatch(r *cache.Request, sub cache.Subscription, to chan cache.Response) (func(), error) {
	return cache.NewLinearCache(r.GetTypeUrl()).CreateWatch(r, sub, to)
}

// CreateDeltaWatch implements cache.Cache.
func (nothing) CreateDeltaWatch(r *cache.DeltaRequest, sub cache.Subscription, to chan cache.DeltaResponse) (func(), error) {
	return cache.NewLinearCache(r.GetTypeUrl()).CreateDeltaWatch(r, sub, to)
}

// collection is the resources of one type. What was given to it must not be changed.
type collection struct {
	cache *cache.LinearCache

	mu   sync.Mutex // guards held and updates
	held map[string]types.Resource
	n    uint64 // how many updates the cache has had: its version
}

// set replaces the resources that keep accepts, and tells the streams what is different. before is called with the
// version that the cache will have, if anything is.
func (c *collection) set(all map[string]types.Resource, keep func(name string) bool, before func(n uint64)) error {
	c.mu.Lock()
	defer c.mu.Unlock()
	update := map[string]types.Resource{}
	var gone []string
	for name, r := range all {
		if old, ok := c.held[name]; !ok || old != r && !proto.Equal(old, r) {
			update[name] = r
		}
	}
	for name := range c.held {
		if _, ok := all[name]; !ok && keep(name) {
			gone = append(gone, name)
		}
	}
	if len(update) == 0 && len(gone) == 0 {
		return nil
	}
	slices.Sort(gone)
	c.n++
	before(c.n)
	maps.Copy(c.held, update)
	for _, name := range gone {
		delete(c.held, name)
	}
	return c.cache.UpdateResources(update, gone)
}

// replace is set for a whole collection.
func (c *collection) replace(all map[string]types.Resource) error {
	return c.set(all, func(string) bool { return true }, func(uint64) {})
}

// held keeps watches waiting until it is opened.
type held struct {
	cache.Cache
	everyone bool // or only clients that hold something already

	mu      sync.Mutex // guards all below
	open    bool
	waiting map[*waiter]bool
}

// waiter is one watch: of the two, start and cancel, the first that runs decides.
type waiter struct {
	start func() (func(), error)

	mu     sync.Mutex // guards all below
	over   bool
	cancel func()
}

func newHeld(c cache.Cache, everyone bool) *held {
	return &held{Cache: c, everyone: everyone, waiting: map[*waiter]bool{}}
}

// CreateWatch implements cache.Cache. A client that comes back names the version that it holds, and no nonce.
func (h *held) CreateWatch(r *cache.Request, sub cache.Subscription, to chan cache.Response) (func(), error) {
	return h.watch(r.GetResponseNonce() == "" && r.GetVersionInfo() != "", func() (func(), error) { return h.Cache.CreateWatch(r, sub, to) })
}

// CreateDeltaWatch implements cache.Cache. A client that comes back names the resources that it holds, and no nonce.
func (h *held) CreateDeltaWatch(r *discovery.DeltaDiscoveryRequest, sub cache.Subscription, to chan cache.DeltaResponse) (func(), error) {
	return h.watch(r.GetResponseNonce() == "" && len(sub.ReturnedResources()) > 0, func() (func(), error) { return h.Cache.CreateDeltaWatch(r, sub, to) })
}

func (h *held) watch(back bool, start func() (func(), error)) (func(), error) {
	w := &waiter{start: start}
	h.mu.Lock()
	wait := !h.open && (back || h.everyone)
	if wait {
		h.waiting[w] = true
	}
	h.mu.Unlock()
	if !wait {
		return start()
	}
	return func() { h.drop(w) }, nil
}

func (h *held) drop(w *waiter) {
	h.mu.Lock()
	delete(h.waiting, w)
	h.mu.Unlock()
	w.mu.Lock()
	defer w.mu.Unlock()
	w.over = true
	if w.cancel != nil {
		w.cancel()
	}
}

// release opens it for good.
func (h *held) release() error {
	h.mu.Lock()
	waiting := h.waiting
	h.open, h.waiting = true, nil
	h.mu.Unlock()
	for w := range waiting {
		if err := w.begin(); err != nil {
			return err
		}
	}
	return nil
}

func (w *waiter) begin() error {
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.over {
		return nil
	}
	var err error
	w.cancel, err = w.start()
	return err
}
