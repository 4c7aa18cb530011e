// Package controlplane assembles the control plane: policies from files, presence from the streams of sidecars, and
// certificates from an authority of its own, served over xDS and HTTP. Replicas keep no state of their own: what one
// knows it has from files that all share, from the sidecars connected to it, and from the other replicas. It never
// touches a transaction. Start at New for what is wired to what, at Run for what happens in which order.
package controlplane

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/http"
	"sync"
	"time"

	"txmesh/controlplane/api"
	"txmesh/controlplane/authority"
	"txmesh/controlplane/directory"
	"txmesh/controlplane/port"
	"txmesh/controlplane/source"
	"txmesh/controlplane/xds"
)

// Source brings policies. Run tells of each good set and each problem until ctx ends; calls of update do not overlap.
type Source interface {
	Run(ctx context.Context, update func(source.Update)) error
}

// ControlPlane is one replica. Many can live in one process.
type ControlPlane struct {
	cfg       Config
	log       *slog.Logger
	tokenFile string

	metrics   *metrics
	source    Source
	authority *authority.Authority
	directory *directory.Directory
	xds       *xds.Server
	shared    *http.Server
	local     *http.Server
	dirty     chan struct{} // the directory, or what is known of its members, has changed

	mu       sync.Mutex // guards all below
	here     map[string]connected
	others   map[string]*other
	outdated map[string]bool // owners whose acceptance may be another than the directory knows
	recount  bool            // what the gauges count may be another
	problem  string          // why the newest policies are not in force
	started  bool
}

// New wires the parts. Nothing runs and no port is open before Run. Close it in any case.
func New(cfg Config, version string, log *slog.Logger) (*ControlPlane, error) {
	c := &ControlPlane{cfg: cfg, log: log, metrics: newMetrics(version), source: source.Directory{Paths: cfg.Policies},
		directory: directory.New(directory.Options{Grace: cfg.Grace, Lease: cfg.Lease, Offer: cfg.Takeover}),
		dirty:     make(chan struct{}, 1), here: map[string]connected{}, others: map[string]*other{}, outdated: map[string]bool{}, recount: true}
	for _, address := range cfg.Replicas {
		c.others[address] = &other{}
	}
	if err := c.wire(); err != nil {
		return nil, errors.Join(err, c.Close())
	}
	return c, nil
}

func (c *ControlPlane) wire() error {
	var err error
	c.authority, err = authority.New(authority.Options{TrustDomain: c.cfg.TrustDomain, Dir: c.cfg.DataDir, CertFile: c.cfg.RootCertificate,
		KeyFile: c.cfg.RootKey, AlsoFile: c.cfg.MoreRoots, Life: c.cfg.CertificateLife, Names: c.cfg.Names, Now: time.Now})
	if err != nil {
		return err
	}
	token, err := c.token()
	if err != nil {
		return fmt.Errorf("token-file: %w", err)
	}
	c.xds = xds.New(xds.Options{Credentials: port.Credentials(), Authenticate: c.authenticate, Joined: c.joined, Left: c.left,
		Changed: c.outdate, Answered: c.metrics.onAnswered, Refused: c.metrics.onRefused, Beat: c.cfg.Heartbeat, Now: time.Now, Log: c.log})
	if err := c.setSecrets(); err != nil {
		return err
	}
	opt := api.Options{Authority: c.authority, Reviewers: []api.Reviewer{authority.Tokens{Dir: c.cfg.TokensDir}}, Secure: !c.cfg.Insecure,
		Token: token, Status: c.status, Ready: c.notReady, Metrics: c.metrics.handler(), Issued: c.metrics.onIssued, Log: c.log}
	c.shared, c.local = server(api.Shared(opt)), server(api.Local(opt))
	return nil
}

func server(h http.Handler) *http.Server {
	return &http.Server{Handler: h, ReadHeaderTimeout: 10 * time.Second, ReadTimeout: 30 * time.Second, WriteTimeout: time.Minute,
		IdleTimeout: 2 * time.Minute, MaxHeaderBytes: 32 << 10, ErrorLog: slog.NewLogLogger(slog.DiscardHandler, slog.LevelDebug)}
}

// Addresses is where a running control plane listens. It is printed as one line of JSON when the ports are open.
type Addresses struct {
	Ready       bool   `json:"ready"`
	Name        string `json:"name"`
	Listen      string `json:"listen"`
	API         string `json:"api"`
	TrustDomain string `json:"trust_domain"`
	Bundle      string `json:"bundle"`      // file with the roots
	Fingerprint string `json:"fingerprint"` // SHA-256 of the root's certificate, in hexadecimal
	TokenFile   string `json:"token_file"`
}

// Run opens the ports and serves until ctx ends. ready is called once, when the ports are open.
func (c *ControlPlane) Run(ctx context.Context, ready func(Addresses)) error {
	listen, err := net.Listen("tcp", c.cfg.Listen)
	if err != nil {
		return fmt.Errorf("open the port for sidecars: %w", err)
	}
	local, err := net.Listen("tcp", c.cfg.API)
	if err != nil {
		return errors.Join(fmt.Errorf("open the api port: %w", err), listen.Close())
	}
	ctx, stop := context.WithCancel(ctx)
	var running sync.WaitGroup
	defer running.Wait()
	defer stop()

	shared := c.split(listen)
	failed := make(chan error, 8)
	for _, serve := range []func() error{shared.Run, func() error { return c.xds.Serve(shared.GRPC()) },
		func() error { return c.shared.Serve(shared.HTTP()) }, func() error { return c.local.Serve(local) },
		func() error { return c.source.Run(ctx, c.update) }} {
		running.Go(func() {
			if err := serve(); err != nil && !errors.Is(err, http.ErrServerClosed) && ctx.Err() == nil {
				failed <- err
			}
		})
	}
	for _, loop := range []func(context.Context){c.publishLoop, c.beatLoop, c.reloadLoop, c.settle, c.gaugeLoop} {
		running.Go(func() { loop(ctx) })
	}
	c.follow(ctx, &running)
	c.setStarted()
	ready(Addresses{Ready: true, Name: c.cfg.Name, Listen: listen.Addr().String(), API: local.Addr().String(), TrustDomain: c.cfg.TrustDomain,
		Bundle: c.authority.BundleFile(), Fingerprint: c.authority.Fingerprint(), TokenFile: c.tokenFile})

	select {
	case <-ctx.Done():
	case err = <-failed:
	}
	stop()
	return errors.Join(err, c.shutdown(shared))
}

func (c *ControlPlane) split(l net.Listener) *port.Port {
	if c.cfg.Insecure {
		return port.Split(l, nil)
	}
	return port.Split(l, c.authority.ServerTLS(port.Protocols()...))
}

// shutdownMax bounds how long running requests may take.
const shutdownMax = time.Second

func (c *ControlPlane) shutdown(shared *port.Port) error {
	ctx, cancel := context.WithTimeout(context.Background(), shutdownMax)
	defer cancel()
	err := shared.Close()
	c.xds.Close()
	for _, s := range []*http.Server{c.shared, c.local} {
		if s.Shutdown(ctx) != nil {
			err = errors.Join(err, s.Close()) // whoever is still reading has had a second
		}
	}
	return err
}

// Close gives everything free that New took. Run must have returned.
func (c *ControlPlane) Close() error {
	if c.xds != nil {
		c.xds.Close()
	}
	return c.metrics.closer.Close()
}

func (c *ControlPlane) setStarted() {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.started = true
}

// notReady returns why this replica is not ready; nothing: it is.
func (c *ControlPlane) notReady() []string {
	c.mu.Lock()
	started, problem := c.started, c.problem
	c.mu.Unlock()
	switch {
	case !started:
		return []string{"starting"}
	case c.xds.Policies() == "":
		return []string{"no good policies yet: " + problem}
	}
	return nil
}

// setSecrets hands out what is in the files now.
func (c *ControlPlane) setSecrets() error {
	var secret []byte
	if c.cfg.MeshSecretFile != "" {
		text, err := readSecret(c.cfg.MeshSecretFile)
		if err != nil {
			return fmt.Errorf("mesh-secret-file: %w", err)
		}
		secret = []byte(text)
	}
	return c.xds.SetSecrets(bytes.TrimSpace(c.authority.Bundle()), secret)
}
