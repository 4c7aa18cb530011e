package sidecar

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/http"
	"path/filepath"
	"slices"
	"sync"
	"time"

	"txmesh/interceptor"
	"txmesh/interceptor/dtm"
	"txmesh/policies"
	"txmesh/sidecar/identity"
	"txmesh/sidecar/peer"
)

// Identity says where this sidecar's certificate comes from and what it is used for.
type Identity struct {
	From        string // off, control-plane, sds or files
	TrustDomain string

	JoinAddress   string
	JoinTokenFile string
	JoinCAFile    string
	JoinKeepKey   bool

	SDSSocket      string
	SDSCertificate string
	SDSRoots       string

	CertFile, KeyFile, CAFile string

	Peers    string // permissive or strict: TLS of the peer port
	Services string // off, permissive or strict: TLS of calls between services
}

// Used reports whether there is an identity at all.
func (i Identity) Used() bool { return i.From != "off" && i.From != "" }

// TLS reports whether calls between services use TLS.
func (i Identity) TLS() bool { return i.Services != "off" && i.Services != "" }

// identityKeys are the keys of the certificate.
func identityKeys() []key {
	return []key{
		{name: "identity", kind: word, def: "off", words: []string{"off", "control-plane", "sds", "files"}, doc: "where the certificate of this sidecar comes from. With one, peer traffic goes over TLS, see `peer-mtls`"},
		{name: "trust-domain", kind: text, def: "cluster.local", doc: "trust domain of the SPIFFE ids; certificates of others are refused"},
		{name: "join-address", kind: address, doc: "host:port where the control plane gives out certificates. Required with identity control-plane"},
		{name: "join-token-file", kind: text, doc: "file with the join token, or with a Kubernetes service account's token; read for each join. Required with identity control-plane"},
		{name: "join-ca-file", kind: text, doc: "file with the roots that the control plane's certificate is verified by, PEM; none: those of the system"},
		{name: "join-keep-key", kind: boolean, def: "false", doc: "keep key and certificate in the data directory (identity.pem, mode 0600), so that a restart within its life works without the control plane"},
		{name: "sds-socket", kind: text, doc: "path of the Unix socket of an SDS source such as SPIRE's agent. Required with identity sds"},
		{name: "sds-certificate", kind: text, def: "default", doc: "name of the certificate there: SPIRE's name for it, or a SPIFFE id"},
		{name: "sds-roots", kind: text, def: "ROOTCA", doc: "name of the roots there: SPIRE's name for them, or the SPIFFE id of the trust domain"},
		{name: "identity-cert-file", kind: text, doc: "file with the certificate and its chain, PEM; watched. Required with identity files"},
		{name: "identity-key-file", kind: text, doc: "file with its key, PEM. Required with identity files"},
		{name: "identity-ca-file", kind: text, doc: "file with the roots, PEM; more than one while they change. Required with identity files"},
		{name: "peer-mtls", kind: word, def: "strict", words: []string{"permissive", "strict"}, doc: "with an identity. strict: peer traffic is TLS with a certificate, or refused; permissive: plain is taken, and used where the other side has no TLS, while identity is being turned on in a mesh"},
		{name: "service-mtls", kind: word, def: "off", words: []string{"off", "permissive", "strict"}, doc: "TLS of calls between services that both have sidecars. permissive: the inbound port takes plain and TLS; strict: it takes plain from this host alone"},
	}
}

// identity reads the keys of the certificate and checks what belongs together.
func (p *problems) identity(one func(string) string) Identity {
	i := Identity{From: p.word("identity", one("identity")), TrustDomain: one("trust-domain"),
		JoinAddress: p.address("join-address", one("join-address"), true), JoinTokenFile: one("join-token-file"), JoinCAFile: one("join-ca-file"),
		JoinKeepKey: p.boolean("join-keep-key", one("join-keep-key")), SDSSocket: one("sds-socket"), SDSCertificate: one("sds-certificate"),
		SDSRoots: one("sds-roots"), CertFile: one("identity-cert-file"), KeyFile: one("identity-key-file"), CAFile: one("identity-ca-file"),
		Peers: p.word("peer-mtls", one("peer-mtls")), Services: p.word("service-mtls", one("service-mtls"))}
	need := func(from string, keys ...[2]string) {
		for _, k := range keys {
			if i.From == from && k[1] == "" {
				p.add(k[0], "", "is missing, but identity is "+from, "give it, see docs/guide/identity.md")
			}
		}
	}
	need("control-plane", [2]string{"join-address", i.JoinAddress}, [2]string{"join-token-file", i.JoinTokenFile})
	need("sds", [2]string{"sds-socket", i.SDSSocket}, [2]string{"sds-certificate", i.SDSCertificate}, [2]string{"sds-roots", i.SDSRoots})
	need("files", [2]string{"identity-cert-file", i.CertFile}, [2]string{"identity-key-file", i.KeyFile}, [2]string{"identity-ca-file", i.CAFile})
	if i.TLS() && !i.Used() {
		p.add("service-mtls", i.Services, "needs a certificate, but identity is off", "set identity, or set service-mtls to off")
	}
	if _, err := identity.New(identity.Options{TrustDomain: i.TrustDomain}); i.Used() && err != nil {
		p.add("trust-domain", i.TrustDomain, "is not a trust domain", "use lower-case letters, digits, '.', '-' and '_', for example bank.example")
	}
	return i
}

// newIdentity makes the identity and the source that fills it; neither, if it is off.
func (s *Sidecar) newIdentity() error {
	c := s.cfg.Identity
	if !c.Used() {
		return nil
	}
	m := s.metrics
	var err error
	s.identity, err = identity.New(identity.Options{TrustDomain: c.TrustDomain, Refused: m.onTLSRefused, Renewed: m.onRenewed, Log: s.log, Dialer: s.dialer})
	switch c.From {
	case "control-plane":
		a := identity.Authority{Address: c.JoinAddress, Service: s.cfg.Service, TokenFile: c.JoinTokenFile, RootsFile: c.JoinCAFile}
		if c.JoinKeepKey {
			a.KeepFile = filepath.Join(s.cfg.DataDir, "identity.pem")
		}
		s.certificates = a
	case "sds":
		s.certificates = identity.SDS{Socket: c.SDSSocket, Node: s.cfg.Service, Name: c.SDSCertificate, Roots: c.SDSRoots}
	case "files":
		s.certificates = identity.Files{Cert: c.CertFile, Key: c.KeyFile, Roots: c.CAFile}
	}
	return err
}

// firstCertificateMax is how long the start waits for a certificate, so that the first calls find their homes. Without
// one the sidecar runs, is not ready and says why.
const firstCertificateMax = 5 * time.Second

// prove runs the source of certificates until ctx ends and waits a while for the first one.
func (s *Sidecar) prove(ctx context.Context, loops *sync.WaitGroup) {
	if s.identity == nil {
		return
	}
	loops.Go(func() { s.certificates.Run(ctx, s.identity) })
	wait, cancel := context.WithTimeout(ctx, firstCertificateMax)
	defer cancel()
	tick := time.NewTicker(20 * time.Millisecond)
	defer tick.Stop()
	for s.identity.Ready() != nil {
		select {
		case <-tick.C:
		case <-wait.Done():
			s.log.Warn("no certificate yet", "error", s.identity.Ready())
			return
		}
	}
}

// unproven returns why there is no valid certificate of this service, if one is wanted.
func (s *Sidecar) unproven() error {
	if s.identity == nil {
		return nil
	}
	if err := s.identity.Ready(); err != nil {
		return err
	}
	id := s.identity.ID()
	if proven := policies.ServiceOf(id); proven != "" && proven != s.cfg.Service {
		return fmt.Errorf("service is %s, but the certificate %s is of %s: peers refuse this sidecar until one of them is changed",
			s.cfg.Service, id, proven)
	}
	return nil
}

// disbelieved counts and logs a peer that is not what it says, or not what it is taken for.
func (s *Sidecar) disbelieved(cause, address string, err error) {
	s.metrics.onRefused(cause)
	s.log.Warn("peer refused", "peer", address, "cause", cause, "error", err)
}

// secured returns what makes TLS of a listener's connections, in the mode given; without an identity nothing does.
func (s *Sidecar) secured(mode identity.Mode, protocols ...string) func(net.Listener) net.Listener {
	if s.identity == nil {
		return func(l net.Listener) net.Listener { return l }
	}
	return func(l net.Listener) net.Listener { return s.identity.Listener(l, mode, protocols...) }
}

// callerOf is the SPIFFE id of the client of a port; empty: it proved none.
func callerOf(r *http.Request) string { return identity.Caller(r.Context()) }

// selfNow is what this sidecar says of itself, with the id of the certificate in force.
func (s *Sidecar) selfNow() peer.Identity {
	id := s.directory.Self()
	id.TLS = s.cfg.Identity.TLS()
	if s.identity != nil {
		id.SPIFFE = s.identity.ID()
	}
	return id
}

// securedPeers makes TLS of the connections of the peer port, as far as peer-mtls says.
func (s *Sidecar) securedPeers(l net.Listener) net.Listener {
	if s.cfg.Identity.Peers == "permissive" {
		return s.secured(identity.Permissive)(l)
	}
	return s.secured(identity.Strict)(l)
}

// dialPeer opens a connection to a peer port: over TLS, unless one side has none of it yet and peer-mtls permits that.
func (s *Sidecar) dialPeer(ctx context.Context, network, address string) (net.Conn, error) {
	conn, err := s.identity.Dial(ctx, network, address)
	r, refused := errors.AsType[*identity.Refusal](err)
	if s.cfg.Identity.Peers == "permissive" && (errors.Is(err, identity.ErrNone) || refused && r.By == identity.Self && r.Reason == identity.Plain) {
		return s.dial(ctx, network, address)
	}
	return conn, err
}

// securedServices makes TLS of the connections of the inbound port, as far as service-mtls says.
func (s *Sidecar) securedServices(l net.Listener) net.Listener {
	switch s.cfg.Identity.Services {
	case "permissive":
		return s.secured(identity.Permissive, "h2", "http/1.1")(l)
	case "strict":
		return s.secured(identity.StrictOutside, "h2", "http/1.1")(l)
	default:
		return l
	}
}

// dialService opens a connection to a service: over TLS where its sidecar takes that.
func (s *Sidecar) dialService(ctx context.Context, network, address string) (net.Conn, error) {
	conn, err := s.dial(ctx, network, address)
	if err == nil {
		conn, err = s.elsewhere(conn)
	}
	if err != nil {
		return nil, err
	}
	return s.secureService(ctx, conn, address)
}

// dialOnward is dialService for a connection that was redirected: it may lead to a port by which applications call out,
// and the guard finds loops.
func (s *Sidecar) dialOnward(ctx context.Context, network, address string) (net.Conn, error) {
	conn, err := s.dial(ctx, network, address)
	if err != nil {
		return nil, err
	}
	return s.secureService(ctx, conn, address)
}

// dialHTTP2 is dialService for a connection that will speak HTTP/2: TLS is told so.
func (s *Sidecar) dialHTTP2(ctx context.Context, network, address string) (net.Conn, error) {
	conn, err := s.dial(ctx, network, address)
	if err == nil {
		conn, err = s.elsewhere(conn)
	}
	if err != nil {
		return nil, err
	}
	return s.secureHTTP2(ctx, conn, address)
}

// dialOnwardHTTP2 is dialOnward for a connection that will speak HTTP/2.
func (s *Sidecar) dialOnwardHTTP2(ctx context.Context, network, address string) (net.Conn, error) {
	conn, err := s.dial(ctx, network, address)
	if err != nil {
		return nil, err
	}
	return s.secureHTTP2(ctx, conn, address)
}

func (s *Sidecar) secureHTTP2(ctx context.Context, conn net.Conn, address string) (net.Conn, error) {
	if !s.cfg.Identity.TLS() || !s.directory.TLSAt(address) {
		return conn, nil
	}
	return s.identity.Client(ctx, conn, "h2")
}

// secureService implements outbound.Secure. There is no way back to plain where TLS fails.
func (s *Sidecar) secureService(ctx context.Context, conn net.Conn, endpoint string) (net.Conn, error) {
	if !s.cfg.Identity.TLS() || !s.directory.TLSAt(endpoint) {
		return conn, nil
	}
	return s.identity.Client(ctx, conn)
}

// access is what governs the service beside this sidecar; nil: nothing does.
func (s *Sidecar) access() *policies.Access { return s.Current().Access(s.cfg.Service) }

// mayJoin implements peer.ServerOptions.May.
func (s *Sidecar) mayJoin(caller string) error {
	return s.may(caller, policies.Target{}, policies.Join)
}

// mayAsk implements dtm.Options.May.
func (s *Sidecar) mayAsk(a dtm.Asker, oneOf ...policies.Act) error {
	return s.may(a.Caller, policies.Target{Service: s.cfg.Service, Method: a.Method, Path: a.Path}, oneOf...)
}

// may holds a caller to the access policies: one of the acts must be allowed.
func (s *Sidecar) may(caller string, t policies.Target, oneOf ...policies.Act) error {
	allowed := func(act policies.Act) bool { return s.access().Allows(act, caller, t) }
	if slices.ContainsFunc(oneOf, allowed) {
		return nil
	}
	s.metrics.onDenied(oneOf[0], caller)
	if caller == "" {
		caller = "a caller without certificate"
	}
	return fmt.Errorf("%s at %s by %s: %w", oneOf[0], s.cfg.Service, caller, interceptor.ErrDenied)
}
