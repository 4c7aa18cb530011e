package sidecar

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"sync"
	"time"

	"google.golang.org/grpc/credentials"

	"txmesh/policies"
	"txmesh/sidecar/peer"
	"txmesh/sidecar/xds"
	"txmesh/txlog"
)

// control is the control plane as this sidecar follows it.
type control struct {
	*xds.Client
	version string // of this program

	mu    sync.Mutex // guards acked
	acked map[string]time.Time
}

// checkControl finds what is wrong with the keys of the control plane.
func (p *problems) checkControl(c *Config) {
	if len(c.ControlPlane) == 0 {
		if c.ControlPlaneCA != "" {
			p.add("control-plane-ca", c.ControlPlaneCA, "is given without a control plane", "set control-plane, or leave this out")
		}
		return
	}
	for _, a := range c.ControlPlane {
		if c.ControlPlaneCA == "" && !xds.IsLoopback(a) {
			p.add("control-plane", a, "would be called in plain text, which only loopback may be", "set control-plane-ca to the file with its roots")
		}
	}
	if len(c.Policies) > 0 {
		p.add("policies", c.Policies[0], "is given beside a control plane, which brings all policies", "hand it to the control plane, or leave out control-plane")
	}
	if c.MeshSecretFile == "" && len(c.Peers) == 0 {
		p.add("mesh-secret-file", "", "is missing, but the control plane brings peers", "make one file for the whole mesh with `openssl rand -hex 32`")
	}
}

// wireControl makes the client of the control plane, if there is one, and puts in force what it last brought.
func (s *Sidecar) wireControl(version string) error {
	if len(s.cfg.ControlPlane) == 0 {
		return nil
	}
	secure, err := s.controlCredentials(s.cfg.ControlPlaneCA)
	if err != nil {
		return fmt.Errorf("control-plane-ca: %w", err)
	}
	c := &control{version: version, acked: map[string]time.Time{}}
	opt := xds.Options{Addresses: s.cfg.ControlPlane, Credentials: secure, Log: s.log, Dial: s.dialer.DialContext, File: filepath.Join(s.cfg.DataDir, "control-plane"),
		Policies: s.usePolicies, Peers: s.useFleet, Takeovers: s.useTakeovers, Observer: xds.Observer{Acked: c.onAcked, Nacked: s.metrics.onNacked}}
	if s.cfg.Identity.From == "control-plane" {
		opt.Roots = s.identity.SetRoots
	}
	c.Client, err = xds.New(opt)
	if err != nil {
		return err
	}
	s.control = c
	return c.Restore(context.Background())
}

// controlCredentials trusts the roots in a file, and shows this sidecar's certificate if it has one; without roots the
// connection is plain text.
func (s *Sidecar) controlCredentials(file string) (func(host string) credentials.TransportCredentials, error) {
	if file == "" {
		return nil, nil
	}
	pem, err := os.ReadFile(file)
	if err != nil {
		return nil, err
	}
	roots := x509.NewCertPool()
	if !roots.AppendCertsFromPEM(pem) {
		return nil, fmt.Errorf("%s holds no certificate in PEM form", file)
	}
	if s.identity != nil {
		return func(host string) credentials.TransportCredentials { return s.identity.Credentials(host, roots) }, nil
	}
	return func(host string) credentials.TransportCredentials {
		return credentials.NewTLS(&tls.Config{MinVersion: tls.VersionTLS13, RootCAs: roots, ServerName: host})
	}, nil
}

// usePolicies puts a set of the control plane in force when its documents are durable. The first of a start does not
// wait for a store that is away: nothing begins before that is there.
func (s *Sidecar) usePolicies(ctx context.Context, set *policies.Set) error {
	err := s.docs.keepAll(ctx, set)
	switch {
	case errors.Is(err, txlog.ErrUnavailable) && !s.control.Status().Policies:
		s.unkept.Store(set)
	case err != nil:
		s.metrics.reloadErrors.Inc(1)
		return err
	default:
		s.unkept.Store(nil)
	}
	s.inForce(set)
	return nil
}

func (s *Sidecar) useFleet(f xds.Fleet) {
	var members []peer.Member
	for _, n := range f.Sidecars {
		members = append(members, peer.Member{Address: n.Peer, Identity: peer.Identity{Owner: n.Owner, Incarnation: n.Incarnation,
			Service: n.Service, Inbound: n.Inbound, Home: n.Home, TLS: n.TLS, SPIFFE: n.SPIFFE}})
	}
	s.directory.SetFleet(members, f.Live)
}

// useTakeovers passes the orders for this sidecar on. They only shorten the wait for a lease that stands still.
func (s *Sidecar) useTakeovers(all []xds.Takeover) {
	if s.keeper == nil || !s.leased.Load() {
		return
	}
	for _, t := range all {
		if t.Adopter != s.owner {
			continue
		}
		l, err := s.keeper.Lookup(context.Background(), t.Owner)
		if err != nil {
			s.log.Warn("order of the control plane not followed", "owner", t.Owner, "error", err)
			continue
		}
		s.keeper.Ordered(l.Owner, t.Adopter)
	}
}

// follow runs the client of the control plane. Its first request names the ports, so they are bound before.
func (s *Sidecar) follow(ctx context.Context) {
	self := s.selfNow()
	s.control.Run(ctx, xds.Node{TLS: self.TLS, SPIFFE: self.SPIFFE, Owner: s.owner, Incarnation: s.gate.Incarnation, Service: s.cfg.Service, Home: s.home,
		Inbound: s.reachable(s.ports.inbound, s.cfg.Advertise), Peer: s.reachable(s.ports.peer, s.cfg.AdvertisePeer),
		Version: s.control.version, Standby: s.cfg.Standby})
}

// awaitControl gives the control plane a short while to say what is wanted before requests are taken.
func (s *Sidecar) awaitControl(ctx context.Context) {
	if s.control == nil {
		return
	}
	wait := time.NewTimer(s.cfg.ControlPlaneWait)
	defer wait.Stop()
	select {
	case <-s.control.Synced():
	case <-ctx.Done():
	case <-wait.C:
		s.log.Warn("starting without the control plane", "policies", s.control.Status().Policies, "problem", s.control.Status().Problem)
	}
}

// reachable is a bound port as other hosts can call it: as configured, as bound, or by the address that this host has
// towards the control plane.
func (s *Sidecar) reachable(l net.Listener, advertised string) string {
	if l == nil || advertised != "" {
		return advertised
	}
	host, port, err := net.SplitHostPort(l.Addr().String())
	if ip := net.ParseIP(host); err != nil || ip == nil || !ip.IsUnspecified() {
		return l.Addr().String()
	}
	// Nothing is sent by this.
	conn, err := (&net.Dialer{Timeout: time.Second}).Dial("udp", s.cfg.ControlPlane[0])
	if err != nil {
		s.log.Warn("this host's own address is not known: set advertise and advertise-peer", "error", err)
		return dialable(l.Addr())
	}
	host, _, err = net.SplitHostPort(conn.LocalAddr().String())
	if err = errors.Join(err, conn.Close()); err != nil {
		return dialable(l.Addr())
	}
	return net.JoinHostPort(host, port)
}

// lacking says why this sidecar is not ready, as far as it is the control plane's matter.
func (c *control) lacking() []string {
	if c == nil || c.Status().Policies {
		return nil
	}
	text := "control plane: no policies yet"
	if p := c.Status().Problem; p != "" {
		text += ": " + p
	}
	return []string{text}
}

// notes says what people should know of a sidecar that is ready.
func (s *Sidecar) notes() []string {
	if s.control == nil {
		return nil
	}
	st := s.control.Status()
	switch {
	case st.Fresh && st.Problem != "":
		return []string{"control plane: " + st.Problem}
	case st.Fresh:
		return nil
	case st.Heard.IsZero():
		return []string{"control plane: stale since the start: " + st.Problem}
	default:
		return []string{"control plane: stale since " + st.Heard.UTC().Format(time.RFC3339) + ": " + st.Problem}
	}
}

func (c *control) onAcked(kind string) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.acked[kind] = time.Now()
}

// gauge shows how far the control plane is away.
func (c *control) gauge(m *metrics, now time.Time) {
	if c == nil {
		return
	}
	fresh := c.Status().Fresh
	m.xdsConnected.Update(float64(index(fresh)))
	m.xdsStale.Update(float64(index(!fresh)))
	c.mu.Lock()
	defer c.mu.Unlock()
	for kind, at := range c.acked {
		m.xdsLastAck[kind].Update(now.Sub(at).Seconds())
	}
}
