package identity

import (
	"bufio"
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"txmesh/sidecar/identity/identitytest"
)

const domain = "mesh.test"

// party is an Identity with what it counted.
type party struct {
	*Identity
	mu      sync.Mutex // guards all below
	refused []string
	renewed int
}

func (p *party) refusals() []string {
	p.mu.Lock()
	defer p.mu.Unlock()
	return append([]string(nil), p.refused...)
}

func newParty(t *testing.T, trust string) *party {
	t.Helper()
	p := &party{}
	var err error
	p.Identity, err = New(Options{TrustDomain: trust, Log: slog.New(slog.NewTextHandler(t.Output(), nil)),
		Refused: func(by By, reason Reason) {
			p.mu.Lock()
			defer p.mu.Unlock()
			p.refused = append(p.refused, string(by)+" "+string(reason))
		},
		Renewed: func(ok bool) {
			p.mu.Lock()
			defer p.mu.Unlock()
			if ok {
				p.renewed++
			}
		}})
	if err != nil {
		t.Fatal(err)
	}
	return p
}

// with gives a party a certificate of an authority.
func (p *party) with(t *testing.T, a *identitytest.Authority, service string) *party {
	t.Helper()
	cert, key := a.Issue(a.ID(service), time.Now().Add(-time.Minute), time.Now().Add(time.Hour))
	got := secrets{cert, key, a.Bundle()}
	if err := got.take(p.Identity); err != nil {
		t.Fatal(err)
	}
	return p
}

// force puts a certificate in force that Take refuses.
func (p *party) force(t *testing.T, cert, key, roots []byte) {
	t.Helper()
	pair, err := tls.X509KeyPair(cert, key)
	if err != nil {
		t.Fatal(err)
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	m, err := p.get()
	if err != nil {
		t.Fatal(err)
	}
	client := m.client.Clone()
	client.GetClientCertificate = func(*tls.CertificateRequestInfo) (*tls.Certificate, error) { return &pair, nil }
	wants := m.wants.Clone()
	wants.Certificates = []tls.Certificate{pair}
	p.Identity.current = &material{svid: m.svid, bundle: m.bundle, client: client, wants: wants, takes: wants}
}

// echo answers lines with them and the caller's id.
func (p *party) echo(t *testing.T, mode Mode) string {
	t.Helper()
	bare, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	var open sync.WaitGroup
	l := p.Listener(bare, mode)
	open.Go(func() {
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			open.Go(func() {
				defer c.Close()
				for in := bufio.NewScanner(c); in.Scan(); {
					fmt.Fprintf(c, "%s from %q\n", in.Text(), c.(*serverConn).Caller())
				}
			})
		}
	})
	t.Cleanup(func() { bare.Close(); open.Wait() })
	return bare.Addr().String()
}

// say sends a line and returns the answer.
func say(c net.Conn, line string) (string, error) {
	if err := c.SetDeadline(time.Now().Add(10 * time.Second)); err != nil {
		return "", err
	}
	if _, err := io.WriteString(c, line+"\n"); err != nil {
		return "", err
	}
	answer, err := bufio.NewReader(c).ReadString('\n')
	return strings.TrimSpace(answer), err
}

// ask opens a connection, says one line and closes.
func (p *party) ask(t *testing.T, address string) (string, error) {
	t.Helper()
	c, err := p.Dial(t.Context(), "tcp", address)
	if err != nil {
		return "", err
	}
	defer c.Close()
	return say(c, "hello")
}

func eventually(t *testing.T, what string, holds func() bool) {
	t.Helper()
	for end := time.Now().Add(20 * time.Second); !holds(); {
		if time.Now().After(end) {
			t.Fatalf("not in 20 s: %s", what)
		}
		time.Sleep(5 * time.Millisecond)
	}
}

// runs lets a source run until the test ends or the function is called.
func runs(t *testing.T, s Source, i *Identity) (stop func()) {
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan struct{})
	go func() { s.Run(ctx, i); close(done) }()
	stop = func() { cancel(); <-done }
	t.Cleanup(stop)
	return stop
}

func tokenFile(t *testing.T, a *identitytest.Authority) string {
	t.Helper()
	return write(t, filepath.Join(t.TempDir(), "token"), []byte(a.Token+"\n"))
}

func write(t *testing.T, path string, data []byte) string {
	t.Helper()
	if err := os.WriteFile(path, data, 0o600); err != nil {
		t.Fatal(err)
	}
	return path
}

func authority(t *testing.T, a *identitytest.Authority, address, service string) Authority {
	t.Helper()
	return Authority{Address: address, Service: service, TokenFile: tokenFile(t, a),
		RootsFile: write(t, filepath.Join(t.TempDir(), "roots.pem"), a.Bundle())}
}

func TestMembersKnowEachOther(t *testing.T) {
	a := identitytest.New(t, domain)
	server, client := newParty(t, domain).with(t, a, "bank/accounts"), newParty(t, domain).with(t, a, "bank/transfers")
	for _, mode := range []Mode{Strict, StrictOutside, Permissive, Optional} {
		got, err := client.ask(t, server.echo(t, mode))
		if want := `hello from "spiffe://mesh.test/ns/bank/sa/transfers"`; err != nil || got != want {
			t.Errorf("mode %d: answer %q, %v, want %q", mode, got, err, want)
		}
	}
}

func TestRefusalsSayWhyOnBothSides(t *testing.T) {
	a, other := identitytest.New(t, domain), identitytest.New(t, domain)
	now := time.Now()
	server := func(t *testing.T) *party { return newParty(t, domain).with(t, a, "bank/accounts") }
	for _, tt := range []struct {
		name           string
		client         func(t *testing.T) *party
		want           string
		server, caller []string
	}{
		{"expired certificate", func(t *testing.T) *party {
			p := newParty(t, domain).with(t, a, "bank/transfers")
			cert, key := a.Issue(a.ID("bank/transfers"), now.Add(-2*time.Hour), now.Add(-time.Hour))
			p.force(t, cert, key, a.Bundle())
			return p
		}, "this sidecar's clock", []string{"self expired"}, []string{"other expired"}},
		{"certificate of another authority", func(t *testing.T) *party {
			p := newParty(t, domain).with(t, a, "bank/transfers")
			cert, key := other.Issue(other.ID("bank/transfers"), now.Add(-time.Hour), now.Add(time.Hour))
			p.force(t, cert, key, a.Bundle())
			return p
		}, "under the same roots", []string{"self foreign"}, []string{"other foreign"}},
		{"id of another trust domain", func(t *testing.T) *party {
			p := newParty(t, domain).with(t, a, "bank/transfers")
			cert, key := a.Issue("spiffe://elsewhere/ns/bank/sa/transfers", now.Add(-time.Hour), now.Add(time.Hour))
			p.force(t, cert, key, a.Bundle())
			return p
		}, "same trust-domain", []string{"self foreign"}, []string{"other not_authorised"}},
		{"no SPIFFE id", func(t *testing.T) *party {
			p := newParty(t, domain).with(t, a, "bank/transfers")
			cert, key := a.Issue("https://mesh.test/x", now.Add(-time.Hour), now.Add(time.Hour))
			p.force(t, cert, key, a.Bundle())
			return p
		}, "needs one SPIFFE id", []string{"self not_authorised"}, []string{"other not_authorised"}},
	} {
		t.Run(tt.name, func(t *testing.T) {
			s, c := server(t), tt.client(t)
			_, err := c.ask(t, s.echo(t, Strict))
			if err == nil || !strings.Contains(err.Error(), tt.want) {
				t.Errorf("error %v, want one that says %q", err, tt.want)
			}
			eventually(t, "the server counts", func() bool { return len(s.refusals()) > 0 })
			if diff := cmp.Diff([2][]string{tt.server, tt.caller}, [2][]string{s.refusals(), c.refusals()}); diff != "" {
				t.Errorf("counted at the server and at the client differ (-want +got):\n%s", diff)
			}
		})
	}
}

func TestClientRefusesAForeignServer(t *testing.T) {
	a, other := identitytest.New(t, domain), identitytest.New(t, domain)
	server, client := newParty(t, domain).with(t, other, "bank/accounts"), newParty(t, domain).with(t, a, "bank/transfers")
	_, err := client.ask(t, server.echo(t, Strict))
	var r *Refusal
	if !errors.As(err, &r) || r.By != Self || r.Reason != Foreign {
		t.Fatalf("error %v, want a refusal by self, foreign", err)
	}
	eventually(t, "the server is told", func() bool { return len(server.refusals()) > 0 })
	if diff := cmp.Diff([]string{"other not_authorised"}, server.refusals()); diff != "" {
		t.Errorf("counted at the server differs (-want +got):\n%s", diff)
	}
}

func TestNoCertificateIsRefused(t *testing.T) {
	server := newParty(t, domain).with(t, identitytest.New(t, domain), "bank/accounts")
	c, err := tls.Dial("tcp", server.echo(t, Strict), &tls.Config{InsecureSkipVerify: true})
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = c.Close() }() // all is said
	_, err = say(c, "hello")
	if err == nil || refusalOf(err).Reason != NoCertificate || refusalOf(err).By != Other {
		t.Errorf("client sees %v, want that a certificate is required", err)
	}
	eventually(t, "the server counts", func() bool { return cmp.Equal(server.refusals(), []string{"self no_certificate"}) })
}

func TestPlainAndTLSAreToldApart(t *testing.T) {
	a := identitytest.New(t, domain)
	server := newParty(t, domain).with(t, a, "bank/accounts")
	plain := func(mode Mode) (string, error) {
		c, err := net.Dial("tcp", server.echo(t, mode))
		if err != nil {
			t.Fatal(err)
		}
		defer c.Close()
		return say(c, "hello")
	}
	for _, mode := range []Mode{StrictOutside, Permissive, Optional} { // this test is on the same host
		if got, err := plain(mode); err != nil || got != `hello from ""` {
			t.Errorf("mode %d: plain answer %q, %v", mode, got, err)
		}
	}
	if got, err := plain(Strict); err != nil || got != "HTTP/1.1 400 Bad Request" {
		t.Errorf("strict: plain answer %q, %v, want 400", got, err)
	}
	if diff := cmp.Diff([]string{"self plain"}, server.refusals()); diff != "" {
		t.Errorf("counted differs (-want +got):\n%s", diff)
	}
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	go func() {
		if c, err := l.Accept(); err == nil {
			fmt.Fprint(c, "HTTP/1.1 400 Bad Request\r\n\r\n")
			c.Close()
		}
	}()
	client := newParty(t, domain).with(t, a, "bank/transfers")
	_, err = client.ask(t, l.Addr().String())
	var r *Refusal
	if !errors.As(err, &r) || r.Reason != Plain || !strings.Contains(err.Error(), "on both sides, or on none") {
		t.Errorf("TLS to a plain server: %v, want a refusal, plain", err)
	}
}

// far is a connection from another host.
type far struct{ net.Conn }

func (far) RemoteAddr() net.Addr { return &net.TCPAddr{IP: net.IPv4(192, 0, 2, 1), Port: 1} }

func TestStrictOutsideRefusesPlainFromElsewhere(t *testing.T) {
	server := newParty(t, domain).with(t, identitytest.New(t, domain), "bank/accounts")
	near, theirs := net.Pipe()
	c := &serverConn{Conn: far{near}, i: server.Identity, mode: StrictOutside}
	go func() {
		fmt.Fprint(theirs, "G")
		_, _ = io.Copy(io.Discard, theirs) // it ends with the pipe
	}()
	t.Cleanup(func() { theirs.Close() })
	if _, err := c.Read(make([]byte, 1)); err == nil || refusalOf(err).By != Self {
		t.Errorf("plain from elsewhere: %v, want a refusal", err)
	}
	if diff := cmp.Diff([]string{"self plain"}, server.refusals()); diff != "" {
		t.Errorf("counted differs (-want +got):\n%s", diff)
	}
}

func TestOptionalTakesClientsWithoutCertificate(t *testing.T) {
	a := identitytest.New(t, domain)
	server := newParty(t, domain).with(t, a, "bank/accounts")
	c, err := tls.Dial("tcp", server.echo(t, Optional), &tls.Config{InsecureSkipVerify: true})
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = c.Close() }() // all is said
	if got, err := say(c, "hello"); err != nil || got != `hello from ""` {
		t.Errorf("answer %q, %v", got, err)
	}
}

func TestNothingIsSentWithoutCertificate(t *testing.T) {
	p := newParty(t, domain)
	_, err := p.ask(t, newParty(t, domain).echo(t, Strict))
	if !errors.Is(err, ErrNone) {
		t.Errorf("error %v, want ErrNone", err)
	}
	if err := p.Ready(); !errors.Is(err, ErrNone) || !strings.Contains(err.Error(), "has not answered") {
		t.Errorf("Ready = %v", err)
	}
}

func TestJoinAndRenewalOverTheOldCertificate(t *testing.T) {
	a := identitytest.New(t, domain)
	a.Life = 4 * time.Second
	at := a.Serve()
	server, client := newParty(t, domain), newParty(t, domain)
	runs(t, authority(t, a, at, "bank/accounts"), server.Identity)
	runs(t, authority(t, a, at, "bank/transfers"), client.Identity)
	eventually(t, "both have joined", func() bool { return server.Ready() == nil && client.Ready() == nil })
	first := client.Expires()
	c, err := client.Dial(t.Context(), "tcp", server.echo(t, Strict))
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	eventually(t, "both have renewed", func() bool {
		n := map[string]int{}
		for _, j := range a.Joins() {
			n[j.Service+" "+j.Caller]++
		}
		return n["bank/accounts "+a.ID("bank/accounts")] >= 2 && n["bank/transfers "+a.ID("bank/transfers")] >= 2
	})
	eventually(t, "a later certificate is in force", func() bool { return client.Expires().After(first) })
	if got, err := say(c, "still here"); err != nil || !strings.HasPrefix(got, "still here") {
		t.Errorf("connection from before the renewal: %q, %v", got, err)
	}
	tokens := 0
	for _, j := range a.Joins() {
		if j.Caller == "" {
			tokens++
		}
	}
	if tokens != 2 {
		t.Errorf("%d joins by token, want one a service", tokens)
	}
}

func TestAKeptCertificateOutlivesTheProcess(t *testing.T) {
	a := identitytest.New(t, domain)
	source := authority(t, a, a.Serve(), "bank/accounts")
	source.KeepFile = filepath.Join(t.TempDir(), "identity.pem")
	first := newParty(t, domain)
	stop := runs(t, source, first.Identity)
	eventually(t, "it has joined and kept", func() bool { _, err := os.Stat(source.KeepFile); return err == nil })
	stop()
	info, err := os.Stat(source.KeepFile)
	if err != nil || info.Mode().Perm() != 0o600 {
		t.Fatalf("kept file has mode %v, %v, want 0600", info.Mode(), err)
	}
	a.Down(true)
	second := newParty(t, domain)
	runs(t, source, second.Identity)
	eventually(t, "the kept certificate is in force", func() bool { return second.Ready() == nil })
	if got := second.ID(); got != a.ID("bank/accounts") || len(a.Joins()) != 1 {
		t.Errorf("id %s after %d joins", got, len(a.Joins()))
	}
	if got, err := second.ask(t, first.echo(t, Strict)); err != nil || !strings.Contains(got, "accounts") {
		t.Errorf("it is of no use: %q, %v", got, err)
	}
}

func TestAKeptCertificateThatIsCutShortIsOfNoUse(t *testing.T) {
	a := identitytest.New(t, domain)
	source := authority(t, a, "127.0.0.1:1", "bank/accounts")
	cert, key := a.Issue(a.ID("bank/accounts"), time.Now().Add(-time.Minute), time.Now().Add(time.Hour))
	source.KeepFile = filepath.Join(t.TempDir(), "identity.pem")
	if err := keep(source.KeepFile, cert, key, a.Bundle()); err != nil {
		t.Fatal(err)
	}
	whole, err := os.ReadFile(source.KeepFile)
	if err != nil {
		t.Fatal(err)
	}
	for n := 0; n < len(whole)-2; n += 7 {
		write(t, source.KeepFile, whole[:n])
		p := newParty(t, domain)
		source.recall(p.Identity)
		if p.Ready() == nil {
			t.Fatalf("%d of %d bytes were taken", n, len(whole))
		}
	}
	write(t, source.KeepFile, whole)
	p := newParty(t, domain)
	if source.recall(p.Identity); p.Ready() != nil {
		t.Errorf("the whole file is not taken: %v", p.Ready())
	}
}

func TestTheControlPlaneMayNotGiveAnotherName(t *testing.T) {
	a := identitytest.New(t, domain)
	cert, key := a.Issue(a.ID("bank/other"), time.Now().Add(-time.Minute), time.Now().Add(time.Hour))
	p := newParty(t, domain)
	err := Authority{Service: "bank/accounts"}.take(p.Identity, cert, key, a.Bundle())
	if err == nil || !strings.Contains(err.Error(), "/ns/bank/sa/accounts") || p.Ready() == nil {
		t.Errorf("take = %v, Ready = %v", err, p.Ready())
	}
}

func TestJoinSaysWhatTheControlPlaneSaid(t *testing.T) {
	a := identitytest.New(t, domain)
	source := authority(t, a, a.Serve(), "bank/accounts")
	write(t, source.TokenFile, []byte("wrong"))
	p := newParty(t, domain)
	err := source.renew(t.Context(), p.Identity, newKey(t), true)
	if err == nil || !strings.Contains(err.Error(), "401 join token is not known") {
		t.Errorf("wrong token: %v", err)
	}
	if err := p.Ready(); err == nil || !strings.Contains(err.Error(), "join token is not known") {
		t.Errorf("Ready does not tell the cause: %v", err)
	}
	source.RootsFile = write(t, filepath.Join(t.TempDir(), "r"), identitytest.New(t, domain).Bundle())
	if err := source.renew(t.Context(), p.Identity, newKey(t), true); err == nil || !strings.Contains(err.Error(), "unknown authority") {
		t.Errorf("control plane of another authority: %v", err)
	}
}

// Authorities set the begin of a certificate back; that must not make it due at once, and again and again.
func TestRenewalIsDueAtHalfOfWhatIsLeft(t *testing.T) {
	now := time.Now()
	for _, tt := range []struct {
		name     string
		from, to time.Duration // before and after now
		min, max time.Duration
	}{
		{"an hour", 0, time.Hour, 24 * time.Minute, 36 * time.Minute},
		{"a minute that began long ago", time.Hour, time.Minute, 24 * time.Second, 36 * time.Second},
		{"a moment", time.Hour, time.Millisecond, time.Second, time.Second},
		{"expired", time.Hour, -time.Minute, time.Second, time.Second},
	} {
		for range 100 {
			got := renewAfter(&x509.Certificate{NotBefore: now.Add(-tt.from), NotAfter: now.Add(tt.to)}, now)
			if got < tt.min || got > tt.max {
				t.Fatalf("%s: due after %v, want %v to %v", tt.name, got, tt.min, tt.max)
			}
		}
	}
}

// A certificate that the control plane does not take any more must not keep a sidecar out that has a token.
func TestTheTokenIsTriedWhereTheCertificateIsRefused(t *testing.T) {
	a := identitytest.New(t, domain)
	source := authority(t, a, a.Serve(), "bank/accounts")
	p := newParty(t, domain)
	was := identitytest.New(t, domain) // the root of before, which the control plane has forgotten
	p.with(t, was, "bank/accounts")
	cert, key := was.Issue(a.ID("bank/accounts"), time.Now().Add(-2*time.Hour), time.Now().Add(8*time.Second))
	if err := (&secrets{cert, key, was.Bundle()}).take(p.Identity); err != nil {
		t.Fatal(err)
	}
	first := p.Expires()
	runs(t, source, p.Identity)
	eventually(t, "a new certificate has come", func() bool { return p.Expires().After(first) })
	if j := a.Joins(); len(j) != 1 || j[0].Caller != "" {
		t.Errorf("joins %v, want one by token", j)
	}
}

// A token that is good once belongs to the first key: a lost answer must not cost the token.
func TestAJoinIsRepeatedWithTheSameKey(t *testing.T) {
	a := identitytest.New(t, domain)
	a.Once = true
	source := authority(t, a, a.Serve(), "bank/accounts")
	a.LoseAnswers(1)
	p := newParty(t, domain)
	runs(t, source, p.Identity)
	eventually(t, "it has joined", func() bool { return p.Ready() == nil })
}

func newKey(t *testing.T) *ecdsa.PrivateKey {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	return key
}

func TestAWorkloadCannotPassForTheControlPlane(t *testing.T) {
	a := identitytest.New(t, domain)
	p := newParty(t, domain).with(t, a, "bank/accounts")
	cert, key := a.Issue(a.ID("bank/evil"), time.Now().Add(-time.Minute), time.Now().Add(time.Hour))
	pair, err := tls.X509KeyPair(cert, key)
	if err != nil {
		t.Fatal(err)
	}
	evil, err := tls.Listen("tcp", "127.0.0.1:0", &tls.Config{Certificates: []tls.Certificate{pair}})
	if err != nil {
		t.Fatal(err)
	}
	defer evil.Close()
	go func() {
		for {
			c, err := evil.Accept()
			if err != nil {
				return
			}
			_ = c.(*tls.Conn).Handshake() // the client refuses
			c.Close()
		}
	}()
	for _, also := range []*x509.CertPool{nil, x509.NewCertPool()} {
		if c, err := tls.Dial("tcp", evil.Addr().String(), p.ControlPlane("127.0.0.1", also)); err == nil {
			_ = c.Close() // nothing was sent
			t.Error("a workload's certificate was taken for the control plane's")
		}
	}
	c, err := tls.Dial("tcp", a.Serve(), p.ControlPlane("127.0.0.1", nil))
	if err != nil {
		t.Fatalf("the real one: %v", err)
	}
	_ = c.Close() // nothing was sent
}

func TestRootsChangeWithoutALoss(t *testing.T) {
	a := identitytest.New(t, domain)
	server, client := newParty(t, domain).with(t, a, "bank/accounts"), newParty(t, domain).with(t, a, "bank/transfers")
	at := server.echo(t, Strict)
	c, err := client.Dial(t.Context(), "tcp", at)
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	held := func(when string) {
		t.Helper()
		if _, err := say(c, when); err != nil {
			t.Errorf("%s: the connection from before: %v", when, err)
		}
		if _, err := client.ask(t, at); err != nil {
			t.Errorf("%s: a new connection: %v", when, err)
		}
	}
	before := a.Bundle()
	a.Also(a.Turn()) // from here on the bundle has both roots
	for _, p := range []*party{server, client} {
		if err := p.SetRoots(a.Bundle()); err != nil {
			t.Fatal(err)
		}
		held("both roots are known")
	}
	for _, p := range []struct {
		*party
		service string
	}{{server, "bank/accounts"}, {client, "bank/transfers"}} {
		p.with(t, a, p.service)
		held(p.service + " has a certificate of the new root")
	}
	only := strings.Replace(string(a.Bundle()), string(before), "", 1)
	for _, p := range []*party{server, client} {
		if err := p.SetRoots([]byte(only)); err != nil {
			t.Fatal(err)
		}
		held("the old root is gone")
	}
	if err := client.SetRoots(before); err == nil {
		t.Error("roots were taken that the certificate in force does not hold against")
	}
	held("refused roots")
}
