package main

import (
	"context"
	"crypto/rand"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	mathrand "math/rand/v2"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"time"
)

// demo is a running demonstration.
type demo struct {
	screen   *screen
	dir      string
	programs programs
	token    string // file with the token of all APIs

	transfers, accounts, savings *member
	api                          *apiClient // of the sidecar beside transfers, which owns all transactions
	client                       *http.Client
}

// member is a service with the sidecar beside it. Its addresses stay the same over a restart.
type member struct {
	name     string
	language string
	app      *process
	sidecar  *process

	listen, inbound, adminAPI, peer string
	upstreams                       map[string]string // service -> address on this side
}

// holdMax is how long the account named slow keeps its callers waiting.
const holdMax = 1500 * time.Millisecond

func (d *demo) members() []*member { return []*member{d.accounts, d.savings, d.transfers} }

func (d *demo) children() []*process {
	var all []*process
	for _, m := range d.members() {
		all = append(all, m.app, m.sidecar)
	}
	return all
}

// start brings up the services, then their sidecars. The one of transfers comes last and finds its peers at once.
func (d *demo) start(ctx context.Context) error {
	if err := d.prepare(); err != nil {
		return err
	}
	began := time.Now()
	for _, m := range d.members() {
		var ready struct{ Service, Address string }
		if err := d.startOne(ctx, m.app, &ready); err != nil {
			return err
		}
	}
	for _, m := range d.members() {
		if err := d.startSidecar(ctx, m); err != nil {
			return err
		}
	}
	for _, m := range []*member{d.transfers, d.accounts, d.savings} {
		d.screen.say("  %-10s %-7s at %-16s its sidecar at %s", m.name, m.language, m.listen, m.inbound)
	}
	d.screen.say("  up in %s", took(time.Since(began)))
	return nil
}

func (d *demo) startOne(ctx context.Context, p *process, ready any) error {
	ctx, cancel := context.WithTimeout(ctx, startMax)
	defer cancel()
	return p.start(ctx, ready)
}

// startSidecar returns when the sidecar is ready.
func (d *demo) startSidecar(ctx context.Context, m *member) error {
	var line struct{ Ready bool }
	if err := d.startOne(ctx, m.sidecar, &line); err != nil {
		return err
	}
	err := poll(ctx, startMax, func() (bool, error) {
		if !m.sidecar.running() {
			return false, errEnded
		}
		status, _, _, err := d.request(ctx, http.MethodGet, "http://"+m.adminAPI+"/readyz", "", nil)
		return err == nil && status == http.StatusOK, nil
	})
	if err != nil {
		return fmt.Errorf("wait until %s is ready: %w\n%s", m.sidecar.name, err, m.sidecar.tail())
	}
	return nil
}

// prepare picks the ports, writes the secrets and describes all children.
func (d *demo) prepare() error {
	ports, err := freePorts(14)
	if err != nil {
		return err
	}
	next := func() string {
		p := ports[0]
		ports = ports[1:]
		return p
	}
	for _, m := range []struct {
		at   **member
		name string
	}{{&d.transfers, "transfers"}, {&d.accounts, "accounts"}, {&d.savings, "savings"}} {
		*m.at = &member{name: m.name, language: "Go", listen: next(), inbound: next(), adminAPI: next(), peer: next()}
	}
	d.transfers.upstreams = map[string]string{"accounts": next(), "savings": next()}
	secret := filepath.Join(d.dir, "mesh-secret")
	d.token = filepath.Join(d.dir, "api-token")
	err = errors.Join(os.MkdirAll(filepath.Join(d.dir, "log"), 0o700),
		os.WriteFile(secret, []byte(rand.Text()+"\n"), 0o600), os.WriteFile(d.token, []byte(rand.Text()+"\n"), 0o600))
	if err != nil {
		return fmt.Errorf("prepare the demonstration: %w", err)
	}
	d.describeServices()
	for _, m := range d.members() {
		d.describeSidecar(m, secret)
	}
	d.client = &http.Client{Timeout: sceneMax}
	d.api, err = newAPIClient(d.transfers.adminAPI, d.token)
	return err
}

// describeServices says how the services are started: in three languages where the machine has them.
func (d *demo) describeServices() {
	t := d.transfers
	t.app = d.child("transfers", d.programs.goBank, "--as", "transfers", "--listen", t.listen,
		"--accounts-url", "http://"+t.upstreams["accounts"], "--savings-url", "http://"+t.upstreams["savings"])
	for _, s := range []struct {
		m                         *member
		language, program, script string
		balances                  string
	}{
		{d.accounts, "Python", d.programs.python, "accounts.py", "alice=100"},
		{d.savings, "Node", d.programs.node, "savings.mjs", "bob=20,carol=closed,slow=0"},
	} {
		args := []string{"--listen", s.m.listen, "--data", filepath.Join(d.dir, s.m.name+".jsonl"),
			"--balances", s.balances, "--hold", fmt.Sprintf("%dms", holdMax.Milliseconds())}
		if s.program == "" {
			d.screen.say("  %s is not on this machine: %s runs in Go instead", s.language, s.m.name)
			s.m.app = d.child(s.m.name, d.programs.goBank, append([]string{"--as", s.m.name}, args...)...)
			continue
		}
		s.m.language = s.language
		s.m.app = d.child(s.m.name, s.program, append([]string{filepath.Join(d.programs.bank, s.script)}, args...)...)
	}
}

func (d *demo) describeSidecar(m *member, secret string) {
	args := []string{"--service", "bank/" + m.name, "--app", m.listen, "--inbound", m.inbound, "--outbound", "off",
		"--api", m.adminAPI, "--peer", m.peer, "--policies", filepath.Join(d.programs.bank, "policy.yaml"),
		"--data-dir", filepath.Join(d.dir, m.name+".journal"), "--mesh-secret-file", secret, "--token-file", d.token,
		"--log-format", "text", "--grace-period", "2s"}
	var peers []string
	for _, other := range d.members() {
		if other == m {
			continue
		}
		peers = append(peers, other.peer)
		if listen, ok := m.upstreams[other.name]; ok {
			args = append(args, "--upstreams", fmt.Sprintf("service=bank/%s,listen=%s,to=%s", other.name, listen, other.inbound))
		}
	}
	m.sidecar = d.child("sidecar of "+m.name, d.programs.sidecar, append(args, "--peers", strings.Join(peers, ","))...)
}

func (d *demo) child(name, path string, args ...string) *process {
	file := strings.ReplaceAll(name, " ", "-") + ".log"
	return &process{name: name, path: path, args: args, env: childEnv(), log: filepath.Join(d.dir, "log", file)}
}

// stop ends all children: services first, because a sidecar waits for its application.
func (d *demo) stop() {
	if d.transfers == nil {
		return
	}
	for _, part := range []func(*member) *process{
		func(m *member) *process { return m.app }, func(m *member) *process { return m.sidecar },
	} {
		ended := make(chan struct{})
		for _, m := range d.members() {
			go func() {
				defer func() { ended <- struct{}{} }()
				if p := part(m); p != nil {
					p.stop(stopMax)
				}
			}()
		}
		for range d.members() {
			<-ended
		}
	}
}

// request makes one call as a client of the bank.
func (d *demo) request(ctx context.Context, method, url, key string, body any) (status int, header http.Header, text []byte, err error) {
	var in io.Reader
	if body != nil {
		data, err := json.Marshal(body)
		if err != nil {
			return 0, nil, nil, fmt.Errorf("encode the request: %w", err)
		}
		in = strings.NewReader(string(data))
	}
	req, err := http.NewRequestWithContext(ctx, method, url, in)
	if err != nil {
		return 0, nil, nil, fmt.Errorf("call %s: %w", url, err)
	}
	if key != "" {
		req.Header.Set("Idempotency-Key", `"`+key+`"`)
	}
	if body != nil {
		req.Header.Set("Content-Type", "application/json")
	}
	res, err := d.client.Do(req)
	if err != nil {
		return 0, nil, nil, err
	}
	defer res.Body.Close()
	text, err = io.ReadAll(res.Body)
	return res.StatusCode, res.Header, text, err
}

// poll asks until the answer is yes.
func poll(ctx context.Context, max time.Duration, ask func() (bool, error)) error {
	ctx, cancel := context.WithTimeoutCause(ctx, max, fmt.Errorf("not within %v", max))
	defer cancel()
	tick := time.NewTicker(10 * time.Millisecond)
	defer tick.Stop()
	for {
		if yes, err := ask(); yes || err != nil {
			return err
		}
		select {
		case <-ctx.Done():
			return context.Cause(ctx)
		case <-tick.C:
		}
	}
}

// freePorts picks addresses on loopback that nobody listens on. They lie below the range from which systems take the
// ports of outgoing connections, so that nobody gets one while the process that it belongs to is restarted.
func freePorts(n int) ([]string, error) {
	const lowest, highest, triesMax = 20000, 29999, 1000
	var found []string
	var held []net.Listener
	defer func() {
		for _, l := range held {
			l.Close()
		}
	}()
	for range triesMax {
		if len(found) == n {
			return found, nil
		}
		l, err := net.Listen("tcp", fmt.Sprintf("127.0.0.1:%d", lowest+mathrand.IntN(highest-lowest+1)))
		if err != nil {
			continue
		}
		held, found = append(held, l), append(found, l.Addr().String())
	}
	return nil, fmt.Errorf("found %d of %d free ports from %d to %d on 127.0.0.1; end some other programs", len(found), n, lowest, highest)
}
