package sidecar

import (
	"context"
	"crypto/rand"
	"encoding/hex"
	"errors"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"strings"
	"time"

	"github.com/oklog/ulid/v2"

	"txmesh/interceptor"
	"txmesh/policies"
	"txmesh/sidecar/engine"
	"txmesh/sidecar/identity"
	"txmesh/sidecar/outbound"
	"txmesh/sidecar/peer"
	"txmesh/txlog"
	"txmesh/txn"
)

// secrets reads the mesh secret and the API token, and makes what is not configured.
func (s *Sidecar) secrets() (mesh []byte, token string, err error) {
	secret, err := s.secret(s.cfg.MeshSecretFile, "mesh-secret")
	if err != nil {
		return nil, "", fmt.Errorf("mesh-secret-file: %w", err)
	}
	s.tokenFile = s.cfg.TokenFile
	if s.tokenFile == "" {
		s.tokenFile = filepath.Join(s.cfg.DataDir, "api-token")
	}
	token, err = s.secret(s.cfg.TokenFile, "api-token")
	if err != nil {
		return nil, "", fmt.Errorf("token-file: %w", err)
	}
	return []byte(secret), token, nil
}

func (s *Sidecar) secret(path, made string) (string, error) {
	if path == "" {
		path = filepath.Join(s.cfg.DataDir, made)
		if err := makeSecret(path); err != nil {
			return "", err
		}
		s.log.Info("secret in the data directory", "file", path)
	}
	data, err := os.ReadFile(path)
	if err != nil {
		return "", err
	}
	text := strings.TrimSpace(string(data))
	if len(text) < 16 {
		return "", fmt.Errorf("%s holds fewer than 16 characters: make one with `openssl rand -hex 32`", path)
	}
	return text, nil
}

// makeSecret writes a new secret unless there is one. A file that was cut short by a crash would be refused at the
// next start, so it appears under its name only when it is whole.
func makeSecret(path string) error {
	if _, err := os.Stat(path); err == nil || !errors.Is(err, os.ErrNotExist) {
		return err
	}
	raw := make([]byte, 32)
	rand.Read(raw) // never fails
	if err := os.WriteFile(path+".new", []byte(hex.EncodeToString(raw)+"\n"), 0o600); err != nil {
		return err
	}
	return os.Rename(path+".new", path)
}

// loadPolicies puts the first set in force and follows the files. Documents are durable before their set is used.
func (s *Sidecar) loadPolicies() error {
	if len(s.cfg.Policies) == 0 {
		set, err := policies.Compile()
		s.set.Store(set)
		return err
	}
	var err error
	s.watch, err = policies.Watch(policies.WatchOptions{Changed: s.policiesChanged, Failed: s.policiesFailed}, s.cfg.Policies...)
	if err != nil {
		return fmt.Errorf("policies:\n%w", err)
	}
	set := s.watch.Current()
	switch err := s.docs.keepAll(context.Background(), set); {
	case errors.Is(err, txlog.ErrUnavailable):
		s.unkept.Store(set) // nothing begins before it is
	case err != nil:
		return err
	}
	// The watcher may have been faster with a newer set.
	s.set.CompareAndSwap(nil, set)
	for _, w := range set.Warnings() {
		s.log.Warn("policy warning", "finding", w.String())
	}
	return nil
}

func (s *Sidecar) policiesChanged(set *policies.Set) {
	if err := s.docs.keepAll(context.Background(), set); err != nil {
		s.policiesFailed(err)
		if errors.Is(err, txlog.ErrUnavailable) {
			s.unkept.Store(set)
		}
		return
	}
	s.unkept.Store(nil)
	s.inForce(set)
}

func (s *Sidecar) inForce(set *policies.Set) {
	s.set.Store(set)
	s.metrics.reloads.Inc(1)
	s.log.Info("policies reloaded", "starts", len(set.Starts()), "calls", len(set.Calls()))
	for _, w := range set.Warnings() {
		s.log.Warn("policy warning", "finding", w.String())
	}
}

// keepPolicies puts a set in force whose documents could not be kept while the store was away.
func (s *Sidecar) keepPolicies(ctx context.Context) error {
	set := s.unkept.Load()
	if set == nil {
		return nil
	}
	if err := s.docs.keepAll(ctx, set); err != nil {
		return err
	}
	if s.unkept.CompareAndSwap(set, nil) {
		s.set.Store(set)
	}
	return nil
}

func (s *Sidecar) policiesFailed(err error) {
	s.metrics.reloadErrors.Inc(1)
	s.log.Error("policies not reloaded, the last good ones stay", "error", err)
}

// Current implements interceptor.Policies.
func (s *Sidecar) Current() *policies.Set { return s.set.Load() }

func (s *Sidecar) wirePeers(auth *peer.Auth) error {
	// The client asks the directory, which asks by the client.
	s.client = peer.NewClient(auth, s.cfg.PeerTimeout, func(ctx context.Context, owner string) (string, error) {
		return s.addressOf(ctx, owner)
	})
	s.client.DialBy(s.dialer.DialContext)
	if s.identity != nil {
		s.client.Secured(peer.Proof{Service: s.cfg.Service, Dial: s.dialPeer, Of: identity.Callee, Refused: s.disbelieved,
			Serves: func(address string) string { return s.directory.ServiceOfPeer(address) }})
	}
	var rows txlog.Table
	if s.shared == nil { // it must start without a shared store
		rows = s.store.Table("peers")
	}
	var err error
	s.directory, err = peer.NewDirectory(context.Background(), peer.DirectoryOptions{Peers: s.cfg.Peers, Fleet: len(s.cfg.ControlPlane) > 0, Ask: s.client.Identity,
		Names: net.DefaultResolver.LookupHost, Rows: rows, Log: s.log})
	return err
}

// newID makes an id of a transaction of this owner.
func (s *Sidecar) newID() txn.ID {
	return txn.ID(s.owner + "." + ulid.MustNew(ulid.Now(), rand.Reader).String())
}

func (s *Sidecar) newEngine(o txlog.Owner, store txlog.Store) (*engine.Engine, error) {
	m := s.metrics
	return engine.New(engine.Config{Store: store, Owner: o, Caller: s.caller, Lane: s.caller.Lane, Log: s.log,
		CallTimeout: s.cfg.CallTimeout, Limits: engine.Limits{Open: s.cfg.MaxOpen, Branches: s.cfg.MaxBranches},
		Observer: s.watched(o, engine.Observer{Began: m.onBegun, Decided: m.onDecided, Halted: m.onHalted, Finished: s.onFinished,
			Called: m.onCalled, Appended: m.onAppended})})
}

func (s *Sidecar) onFinished(mode txn.Mode, end txn.Phase, age time.Duration) {
	s.metrics.onFinished(mode, end, age)
	if s.dtm != nil {
		s.dtm.Finished(mode, end, age)
	}
}

func (s *Sidecar) newGate(keys *interceptor.Keys, relay *peer.Relay) (*interceptor.Gate, error) {
	m := s.metrics
	barrier := rows{table: s.store.Table("barrier")}
	var sharing interceptor.Runners
	if s.shared != nil {
		barrier = rows{table: s.store.Table("barrier " + s.cfg.Service), shared: true}
		sharing = (*runners)(s)
	}
	return interceptor.New(interceptor.Options{Self: s.owner, Home: s.home, Incarnation: rand.Text(), Service: s.cfg.Service, Keys: keys,
		Coordinator: s.owners, Branches: relay, Peers: s.directory, Rows: barrier, Runners: sharing,
		App: limitedApp{s.app, s.traffic.Own(s.cfg.Service, s.cfg.App)}, Policies: s, Documents: s.docs, Types: outbound.NewReflection(s.caller, s.app), NewID: s.newID, Log: s.log, BodyMax: s.cfg.MaxBody,
		Observe: interceptor.Observer{ContextLost: func(string) { m.lost.Inc(1) },
			ContextAmbiguous: func(string) { m.ambiguous.Inc(1) }, ContextForged: func() { m.forged.Inc(1) },
			CarrierOverflow: func() { m.overflow.Inc(1) }, BarrierVerdict: m.onVerdict,
			Shadowed: func(string) { m.shadowed.Inc(1) }, Denied: m.onDenied}})
}

// places says where services are called.
type places Sidecar

// Endpoints implements outbound.Places: this sidecar's own inbound port, a configured upstream, or a peer that
// serves it.
func (p *places) Endpoints(service string) []string {
	if service == p.cfg.Service {
		if in := p.ports.inbound; in != nil {
			return []string{dialable(in.Addr())}
		}
		return nil
	}
	for _, u := range p.cfg.Upstreams {
		if u.Service == service && len(u.To) > 0 {
			return u.To
		}
	}
	return p.directory.EndpointsOf(service)
}

// EndpointsOfHost implements outbound.Places.
func (p *places) EndpointsOfHost(host string) []string {
	for _, u := range p.cfg.Upstreams {
		if u.Host != "" && strings.EqualFold(u.Host, host) {
			return u.To
		}
	}
	return nil
}

// rows is the barrier's table.
type rows struct {
	table  txlog.Table
	shared bool // other replicas write it as well
}

// Load implements interceptor.Rows.
func (r rows) Load(ctx context.Context, branch string) ([]byte, bool, error) {
	value, err := r.table.Get(ctx, branch)
	if errors.Is(err, txlog.ErrNotFound) {
		return nil, false, nil
	}
	return value, err == nil, err
}

// Save implements interceptor.Rows.
func (r rows) Save(ctx context.Context, branch string, old, row []byte, sync bool) error {
	if r.shared {
		return r.table.Swap(ctx, branch, old, row)
	}
	return r.table.Put(ctx, []txlog.Row{{Key: branch, Value: row}}, sync)
}

// Each implements interceptor.Rows.
func (r rows) Each(ctx context.Context, f func(branch string, row []byte) bool) error {
	for row, err := range r.table.Scan(ctx, "") {
		if err != nil {
			return err
		}
		if !f(row.Key, row.Value) {
			return nil
		}
	}
	return nil
}
