// Package sidecar assembles the data plane: configuration, journal, engine, Gate, forwarders and ports become one
// process beside one application. It decides nothing about transactions. Start at New for what is wired to what, at
// Run for what happens in which order; config.go has the surface.
package sidecar

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"os"
	"sync"
	"sync/atomic"
	"time"

	"txmesh/interceptor"
	"txmesh/interceptor/dtm"
	"txmesh/interceptor/redirect"
	"txmesh/interceptor/traffic"
	"txmesh/policies"
	"txmesh/sidecar/admin"
	"txmesh/sidecar/identity"
	"txmesh/sidecar/outbound"
	"txmesh/sidecar/owners"
	"txmesh/sidecar/peer"
	"txmesh/sidecar/takeover"
	"txmesh/txlog"
)

// Sidecar is one data plane. Many can live in one process.
type Sidecar struct {
	cfg       Config
	log       *slog.Logger
	owner     string // of the store
	token     string
	tokenFile string

	store   txlog.Store
	shared  txlog.Shared  // nil: the store is embedded
	home    string        // where barrier rows live
	lock    *os.File      // of the data directory beside a shared store
	epoch   atomic.Uint64 // of this sidecar's own journal in a shared store; 0: another holds it
	metrics *metrics
	traffic *traffic.Clusters
	docs    *documents
	set     atomic.Pointer[policies.Set]
	unkept  atomic.Pointer[policies.Set] // its documents are not in the shared store yet; nil: none
	watch   *policies.Watcher            // nil without policies

	identity     *identity.Identity // nil: off
	certificates identity.Source    // of identity

	owners    *owners.Owners
	keeper    *takeover.Keeper // nil: the store is embedded
	leased    atomic.Bool      // keeper has claimed the own journal and runs
	dialer    *net.Dialer      // of all connections
	guard     redirect.Guard
	services  *destinations
	caller    *outbound.Caller
	app       *outbound.App
	dtm       *dtm.Service // nil: no clients of DTM are served
	client    *peer.Client
	directory *peer.Directory
	gate      *interceptor.Gate
	peers     *peer.Server
	admin     *admin.Server
	control   *control // nil without a control plane
	ports     ports
	serving   sync.WaitGroup // of the ports

	mu      sync.Mutex // guards reasons
	reasons []string   // why the sidecar is not ready
	orphans orphans
}

// New opens the store and wires the parts. Nothing runs and no port is open before Run. Close it in any case.
func New(cfg Config, version string, log *slog.Logger) (*Sidecar, error) {
	return newOn(nil, cfg, version, log)
}

// newOn is New on a shared store that is open already.
func newOn(shared txlog.Shared, cfg Config, version string, log *slog.Logger) (*Sidecar, error) {
	s := &Sidecar{cfg: cfg, shared: shared, log: log, metrics: newMetrics(version), reasons: []string{"starting"},
		dialer: &net.Dialer{Control: redirect.Marked(cfg.Redirect.Mark)}, services: newDestinations(cfg.Upstreams)}
	if err := s.wire(version); err != nil {
		return nil, errors.Join(err, s.Close())
	}
	return s, nil
}

func (s *Sidecar) wire(version string) error {
	if err := s.openStore(); err != nil {
		return err
	}
	secret, token, err := s.secrets()
	if err != nil {
		return err
	}
	s.token = token
	keys, err := interceptor.NewKeys(secret)
	if err != nil {
		return fmt.Errorf("mesh-secret-file: %w", err)
	}
	auth, err := peer.NewAuth(secret, time.Now)
	if err != nil {
		return fmt.Errorf("mesh-secret-file: %w", err)
	}
	s.docs = newDocuments(s.store.Table("policies"))
	if err := s.loadPolicies(); err != nil {
		return err
	}
	s.newTraffic()
	if err := s.newIdentity(); err != nil {
		return err
	}
	if err := s.wirePeers(auth); err != nil {
		return err
	}
	if err := s.wireControl(version); err != nil {
		return err
	}
	s.app = outbound.NewApp(s.cfg.App, s.cfg.MaxBody, s.dialer.Control)
	doors := map[string]interceptor.Door{admin.DoorName: admin.Door{Keys: keys}}
	s.caller = outbound.New(outbound.Options{Doors: doors, Documents: s.docs, Homes: (*homes)(s), Places: (*places)(s), Keys: keys,
		SecretsDir: s.cfg.SecretsDir, Control: s.dialer.Control, Secure: s.secureService, BodyMax: s.cfg.MaxBody, AllowLinkLocal: s.cfg.AllowLinkLocal, Now: time.Now})
	s.owners = s.newOwners()
	if s.cfg.DTM.Open() || s.shared != nil { // an adopted journal may hold transactions of its clients
		s.dtm = s.newDTM(version)
		doors[dtm.Name] = s.dtm // nothing is called before Run
	}
	if s.gate, err = s.newGate(keys, peer.NewRelay(s.owners, s.client, s.docs)); err != nil {
		return err
	}
	s.peers = peer.NewServer(peer.ServerOptions{Identity: s.selfNow, Local: s.owners, Documents: s.docs, Home: s.gate,
		Offered: s.offered(), Auth: auth, Caller: callerOf, May: s.mayJoin, Refused: s.metrics.onRefused, Log: s.log})
	s.admin = admin.New(admin.Options{Service: s.cfg.Service, Engine: s.owners, Journal: s.store, Keys: keys, NewID: s.newID, Token: s.token,
		Caller: callerOf, Access: s.access, Denied: s.metrics.denied, Ready: s.notReady, Notes: s.notes, Metrics: s.metrics.handler(), TakeOver: s.takeOver(), CommitWait: s.cfg.CommitWait,
		TimeoutDefault: s.cfg.TimeoutDefault, Log: s.log})
	return nil
}

// Run loads the journal, opens the ports and serves until ctx ends, then drains. ready is called once, when all
// ports are open. The error of a drain that had to leave transactions open is OpenWork.
func (s *Sidecar) Run(ctx context.Context, ready func(Addresses)) error {
	background, stop := context.WithCancel(context.WithoutCancel(ctx))
	var loops sync.WaitGroup
	defer loops.Wait()
	defer stop()

	s.prove(background, &loops)
	s.directory.Refresh(ctx) // so that the first calls find their homes
	s.services.refresh(ctx)
	if s.shared != nil {
		if err := errors.Join(s.bindPeer(), s.newKeeper()); err != nil {
			return err
		}
	}
	held := s.hold(background)
	if held != nil && (s.shared == nil || !errors.Is(held, txlog.ErrUnavailable)) {
		return fmt.Errorf("load journal: %w", held)
	}

	// Listeners open last: a call that arrives finds everything that was durable before.
	if err := s.bind(); err != nil {
		return err
	}
	running := []func(context.Context){s.directory.Run, s.services.run, s.trimLoop, s.sweepLoop, s.gaugeLoop, s.learnLoop}
	if s.keeper != nil {
		running = append(running, func(ctx context.Context) { s.keepLeases(ctx, held) })
	}
	if s.control != nil {
		running = append(running, s.follow)
	}
	for _, loop := range running {
		loops.Go(func() { loop(background) })
	}
	s.awaitControl(ctx)
	failed := s.serve()
	s.setNotReady()
	ready(s.addresses())

	var err error
	select {
	case <-ctx.Done():
		err = s.drain()
	case err = <-failed:
	}
	return errors.Join(err, s.shutdown())
}

// Close gives everything free that New took. Run must have returned.
func (s *Sidecar) Close() error {
	var errs []error
	if s.watch != nil {
		errs = append(errs, s.watch.Close())
	}
	if s.owners != nil {
		errs = append(errs, s.owners.Close())
	}
	if s.caller != nil {
		s.caller.Close()
		s.app.Close()
	}
	if s.dtm != nil {
		s.dtm.Close()
	}
	if s.client != nil {
		s.client.Close()
	}
	if s.store != nil {
		errs = append(errs, s.store.Close())
	}
	if s.shared != nil {
		errs = append(errs, s.shared.Close())
	}
	if s.lock != nil {
		errs = append(errs, s.lock.Close())
	}
	return errors.Join(append(errs, s.metrics.closer.Close())...)
}

// notReady returns why the sidecar is not ready; nothing: it is.
func (s *Sidecar) notReady() []string {
	s.mu.Lock()
	reasons := s.reasons
	s.mu.Unlock()
	reasons = reasons[:len(reasons):len(reasons)]
	reasons = append(reasons, s.control.lacking()...)
	if err := s.store.Accepts(); err != nil {
		reasons = append(reasons, err.Error())
	}
	if err := s.owners.Refusal(); err != nil {
		reasons = append(reasons, err.Error())
	}
	if err := s.unproven(); err != nil {
		reasons = append(reasons, "identity: "+err.Error())
	}
	return reasons
}

func (s *Sidecar) setNotReady(reasons ...string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.reasons = reasons
}
