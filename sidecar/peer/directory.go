package peer

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"slices"
	"sync"
	"time"

	"txmesh/txlog"
)

// DirectoryOptions is what a Directory is made of.
type DirectoryOptions struct {
	Peers []string                                                         // host:port of their peer ports
	Ask   func(ctx context.Context, address string) (Identity, error)      // Client.Identity
	Names func(ctx context.Context, host string) (addrs []string, _ error) // net.Resolver.LookupHost
	Fleet bool                                                             // a control plane tells of more by SetFleet
	Rows  txlog.Table                                                      // remembers peers over a restart of both sides; nil: nothing does
	Every time.Duration                                                    // between rounds; 0: 5 s
	Now   func() time.Time                                                 // nil: time.Now
	Log   *slog.Logger
}

// Directory knows which owner listens where, by asking the configured peers. It implements interceptor.Peers and is
// safe for many goroutines. What was learned stays valid while a peer is down: owner ids survive restarts.
type Directory struct {
	opt DirectoryOptions

	mu       sync.Mutex // guards all below
	self     Identity
	learned  map[string]learned // by configured peer
	owners   map[string]string  // owner -> configured peer
	inbounds map[string]string  // inbound endpoint -> home
	services map[string]string  // inbound endpoint -> service
	round    chan struct{}      // closed when the running round ends; nil: none runs
	ended    time.Time          // of the last round
	fresh    map[string]bool    // peers that answered in it
	fleet    []string           // peers that the control plane knows and that are not configured
	live     bool               // the control plane has told who is there
	names    map[string]named   // by endpoint
	gone     map[string]gone    // by inbound endpoint
	moved    chan struct{}      // closed when the fleet changes
}

type learned struct {
	Identity Identity `json:"identity"`
	Aliases  []string `json:"aliases"` // endpoints by which callers may know the inbound port
}

const (
	roundMax     = time.Second            // a round waits no longer for silent peers
	pauseMin     = 100 * time.Millisecond // between two rounds that misses cause
	everyDefault = 5 * time.Second
)

// NewDirectory returns a directory that knows what was learned before its last end.
func NewDirectory(ctx context.Context, opt DirectoryOptions) (*Directory, error) {
	if opt.Now == nil {
		opt.Now = time.Now
	}
	if opt.Every <= 0 {
		opt.Every = everyDefault
	}
	d := &Directory{opt: opt, learned: map[string]learned{}, names: map[string]named{}, gone: map[string]gone{}, moved: make(chan struct{})}
	configured := make(map[string]bool, len(opt.Peers))
	for _, p := range opt.Peers {
		configured[p] = true
	}
	if opt.Rows == nil {
		d.index()
		return d, nil
	}
	for row, err := range opt.Rows.Scan(ctx, "") {
		if err != nil {
			return nil, fmt.Errorf("read known peers: %w", err)
		}
		var l learned
		if !configured[row.Key] || json.Unmarshal(row.Value, &l) != nil {
			continue // a peer that was taken out of the configuration, or a row of another release: asked anew
		}
		d.learned[row.Key] = l
	}
	d.index()
	return d, nil
}

// SetSelf says where this sidecar itself listens.
func (d *Directory) SetSelf(id Identity) {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.self = id
	d.index()
}

// Self returns what SetSelf said.
func (d *Directory) Self() Identity {
	d.mu.Lock()
	defer d.mu.Unlock()
	return d.self
}

// Run asks all peers again and again until ctx ends.
func (d *Directory) Run(ctx context.Context) {
	tick := time.NewTicker(d.opt.Every)
	defer tick.Stop()
	for {
		d.Refresh(ctx)
		select {
		case <-ctx.Done():
			return
		case <-tick.C:
		}
	}
}

// HomeOf returns where the sidecar that listens on an inbound endpoint keeps its barrier's rows, "" if none does. While
// some peer has never answered, an unknown endpoint costs one round of asking, shared by all who wait, a second at most,
// and may be that peer's after all: then it returns false.
func (d *Directory) HomeOf(endpoint string) (string, bool) {
	find := func() (string, bool) {
		owner, ok := d.inbounds[endpoint]
		return owner, ok
	}
	home, ok := d.lookUp(context.Background(), false, find)
	d.mu.Lock()
	g, left := d.gone[endpoint]
	d.mu.Unlock()
	if !ok && left && d.opt.Now().Before(g.until) {
		return d.homeOfGone(endpoint, g)
	}
	named := true
	if !ok && d.opt.Fleet {
		home, named = d.homeByName(endpoint)
	}
	d.mu.Lock()
	defer d.mu.Unlock()
	return home, ok || home != "" || named && d.complete()
}

// complete reports whether every peer has answered once, and the control plane has told who else is there.
func (d *Directory) complete() bool {
	return (d.live || !d.opt.Fleet) && !slices.ContainsFunc(d.opt.Peers, func(p string) bool { _, heard := d.learned[p]; return !heard })
}

// EndpointOf returns the inbound endpoint of an owner.
func (d *Directory) EndpointOf(owner string) (string, bool) {
	return d.owner(context.Background(), func() (string, bool) {
		if owner == d.self.Owner && owner != "" {
			return d.self.Inbound, true
		}
		p, ok := d.owners[owner]
		return d.learned[p].Identity.Inbound, ok
	})
}

// AddressOf returns the peer port of an owner, or an error that wraps ErrUnreachable.
func (d *Directory) AddressOf(ctx context.Context, owner string) (string, error) {
	address, ok := d.owner(ctx, func() (string, bool) {
		p, ok := d.owners[owner]
		return p, ok
	})
	if !ok && d.opt.Fleet {
		return "", fmt.Errorf("%w: neither the control plane nor one of %d configured peers knows owner %s",
			ErrUnreachable, len(d.opt.Peers), owner)
	}
	if !ok {
		return "", fmt.Errorf("%w: none of the %d configured peers says that it is owner %s",
			ErrUnreachable, len(d.opt.Peers), owner)
	}
	return address, nil
}

// TLSAt reports whether an endpoint is the inbound port of a sidecar that takes TLS of the mesh there.
func (d *Directory) TLSAt(endpoint string) bool {
	d.mu.Lock()
	defer d.mu.Unlock()
	p, ok := d.owners[d.inbounds[endpoint]]
	return ok && d.learned[p].Identity.TLS
}

// ServiceAt returns the service of the peer whose inbound port an endpoint is, "" if it is none's.
func (d *Directory) ServiceAt(endpoint string) string {
	d.mu.Lock()
	defer d.mu.Unlock()
	return d.services[endpoint]
}

// EndpointsOf returns the inbound endpoints of the peers that serve a service.
func (d *Directory) EndpointsOf(service string) []string {
	d.mu.Lock()
	defer d.mu.Unlock()
	var out []string
	for _, p := range d.peers() {
		if l, ok := d.learned[p]; ok && l.Identity.Service == service && l.Identity.Inbound != "" {
			out = append(out, l.Identity.Inbound)
		}
	}
	return out
}

// ServiceOfPeer returns the service of the sidecar whose peer port is at an address; "" if that is not known.
func (d *Directory) ServiceOfPeer(address string) string {
	d.mu.Lock()
	defer d.mu.Unlock()
	return d.learned[address].Identity.Service
}

// AddressesOf returns the peer ports of the other sidecars that share a home, those first that answered in the last
// round.
func (d *Directory) AddressesOf(home string) []string {
	d.mu.Lock()
	defer d.mu.Unlock()
	var fresh, silent []string
	for _, p := range d.peers() {
		switch l, ok := d.learned[p]; {
		case !ok || l.Identity.home() != home || l.Identity.Owner == d.self.Owner:
		case d.fresh[p] || slices.Contains(d.fleet, p):
			fresh = append(fresh, p)
		default:
			silent = append(silent, p)
		}
	}
	return append(fresh, silent...)
}

// Unanswered lists the configured peers that did not answer in the last round.
func (d *Directory) Unanswered() []string {
	d.mu.Lock()
	defer d.mu.Unlock()
	var out []string
	for _, p := range d.opt.Peers {
		if !d.fresh[p] {
			out = append(out, p)
		}
	}
	return out
}

// lookUp asks the peers once more if the answer is not known and one of them has never been heard. An owner exists,
// because somebody named it: for one a look-up that comes right after a round waits for the next. An endpoint may as
// well belong to no sidecar: for one it does not.
func (d *Directory) lookUp(ctx context.Context, exists bool, find func() (string, bool)) (string, bool) {
	d.mu.Lock()
	v, ok := find()
	complete, ended := d.complete(), d.ended
	pause := pauseMin - d.opt.Now().Sub(ended)
	d.mu.Unlock()
	if ok || complete || pause > 0 && !exists {
		return v, ok
	}
	if pause > 0 {
		next := time.NewTimer(pause)
		defer next.Stop()
		select {
		case <-next.C:
		case <-ctx.Done():
			return v, ok
		}
	}
	d.mu.Lock()
	asked := d.ended != ended // by another look-up, since this one has looked
	d.mu.Unlock()
	if !asked {
		d.Refresh(ctx)
	}
	d.mu.Lock()
	defer d.mu.Unlock()
	return find()
}

// Refresh runs one round of asking, or waits for the one that runs: a second at most.
func (d *Directory) Refresh(ctx context.Context) {
	d.mu.Lock()
	if running := d.round; running != nil {
		d.mu.Unlock()
		select {
		case <-running:
		case <-ctx.Done():
		}
		return
	}
	done := make(chan struct{})
	d.round = done
	d.mu.Unlock()

	found := d.askAll(ctx)

	d.mu.Lock()
	changed := d.merge(found)
	d.round, d.ended = nil, d.opt.Now()
	d.mu.Unlock()
	close(done)
	d.remember(ctx, changed)
}

func (d *Directory) askAll(ctx context.Context) map[string]learned {
	ctx, cancel := context.WithTimeout(ctx, roundMax)
	defer cancel()
	var mu sync.Mutex // guards found
	found := make(map[string]learned)
	var all sync.WaitGroup
	for _, p := range d.opt.Peers {
		all.Go(func() {
			id, err := d.opt.Ask(ctx, p)
			if err != nil || id.Owner == "" {
				d.opt.Log.Debug("peer does not answer", "peer", p, "error", err)
				return
			}
			l := learned{Identity: id, Aliases: d.aliases(ctx, p, id.Inbound)}
			if len(l.Aliases) > 0 {
				l.Identity.Inbound = l.Aliases[0]
			}
			mu.Lock()
			defer mu.Unlock()
			found[p] = l
		})
	}
	all.Wait()
	return found
}

// aliases lists the endpoints by which callers may name an inbound port: as it calls itself, by the host name in
// the configuration, and by the addresses behind that.
func (d *Directory) aliases(ctx context.Context, peer, inbound string) []string {
	host, port, err := net.SplitHostPort(inbound)
	if err != nil {
		return nil
	}
	peerHost, _, err := net.SplitHostPort(peer)
	if err != nil {
		return []string{inbound}
	}
	var out []string
	if ip := net.ParseIP(host); host != "" && (ip == nil || !ip.IsUnspecified()) {
		out = append(out, inbound)
	}
	out = append(out, net.JoinHostPort(peerHost, port))
	if net.ParseIP(peerHost) == nil {
		addrs, err := d.opt.Names(ctx, peerHost)
		if err != nil {
			d.opt.Log.Debug("peer name does not resolve", "peer", peer, "error", err)
		}
		for _, a := range addrs {
			out = append(out, net.JoinHostPort(a, port))
		}
	}
	return out
}

// merge takes in what a round found and returns what is new.
func (d *Directory) merge(found map[string]learned) map[string]learned {
	changed := make(map[string]learned)
	d.fresh = make(map[string]bool, len(found))
	for p, l := range found {
		d.fresh[p] = true
		if id := l.Identity; id.Owner == d.self.Owner && id.Owner != "" && id.Incarnation != d.self.Incarnation {
			d.opt.Log.Error("two sidecars have the same owner id: their stores are copies of one, end one of them and empty its data-dir",
				"peer", p, "owner", id.Owner)
		}
		old, known := d.learned[p]
		if known && old.Identity == l.Identity {
			continue
		}
		d.opt.Log.Info("peer found", "peer", p, "owner", l.Identity.Owner, "service", l.Identity.Service,
			"inbound", l.Identity.Inbound)
		d.learned[p], changed[p] = l, l
	}
	d.index()
	return changed
}

func (d *Directory) index() {
	d.owners, d.inbounds, d.services = map[string]string{}, map[string]string{}, map[string]string{}
	for _, p := range d.peers() {
		l, ok := d.learned[p]
		if !ok {
			continue
		}
		d.owners[l.Identity.Owner] = p
		for _, a := range l.Aliases {
			d.inbounds[a], d.services[a] = l.Identity.home(), l.Identity.Service
		}
	}
	if d.self.Owner != "" && d.self.Inbound != "" {
		d.inbounds[d.self.Inbound] = d.self.home()
	}
}

// remember writes what is new beside the journal. Losing it costs one more round of asking.
func (d *Directory) remember(ctx context.Context, changed map[string]learned) {
	var rows []txlog.Row
	for p, l := range changed {
		value, err := json.Marshal(l)
		if err != nil {
			panic("peer: identity that is not JSON: " + err.Error())
		}
		rows = append(rows, txlog.Row{Key: p, Value: value})
	}
	if len(rows) == 0 || d.opt.Rows == nil {
		return
	}
	if err := d.opt.Rows.Put(ctx, rows, false); err != nil && !errors.Is(err, context.Canceled) {
		d.opt.Log.Warn("peers not remembered", "error", err)
	}
}
