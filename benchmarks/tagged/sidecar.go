package main

import (
	"bufio"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"time"
)

// policy names one rule per path.
const policy = `apiVersion: txmesh.io/v1beta1
kind: TransactionPolicy
metadata: {name: bench, namespace: bench}
spec:
  start:
  - {name: root, match: {service: a, method: POST, path: "/begin/{id}"}}
  calls:
  - {name: plain, match: {service: bare, method: POST, path: "/plain/{id}"}, barrier: None, onUnknown: Stop, undo: {method: DELETE, path: "/plain/{path.id}"}}
  - name: reads
    match: {service: bare, method: POST, path: "/reads/{id}"}
    barrier: None
    query: {method: GET, path: "/reads/{path.id}"}
    undo: {method: DELETE, path: "/reads/{response.body.id}"}
  - {name: proxy, match: {service: b, method: POST, path: "/proxy/{id}"}, undo: {method: DELETE, path: "/proxy/{response.body.id}"}}
`

const (
	secret   = "0123456789abcdef0123456789abcdef"
	readyMax = 10 * time.Second
)

// sidecar is one running process.
type sidecar struct {
	cmd       *exec.Cmd
	Inbound   string
	API       string
	Peer      string
	Upstreams map[string]string
	idle      int64 // RssAnon before anything was asked of it
}

// startSidecar starts one beside the service at app.
func startSidecar(o options, name, app string, more ...string) (*sidecar, error) {
	files := map[string]string{"policy.yaml": policy, "secret": secret}
	for file, text := range files {
		if err := os.WriteFile(filepath.Join(o.dir, file), []byte(text), 0o600); err != nil {
			return nil, err
		}
	}
	zero := "127.0.0.1:0"
	args := []string{"--service", "bench/" + name, "--app", app, "--inbound", zero, "--outbound", "off", "--api", zero, "--peer", zero,
		"--policies", filepath.Join(o.dir, "policy.yaml"), "--data-dir", filepath.Join(o.dir, name), "--mesh-secret-file",
		filepath.Join(o.dir, "secret"), "--token-file", filepath.Join(o.dir, "secret"), "--grace-period", "1s", "--log-level", "error"}
	s := &sidecar{cmd: exec.CommandContext(context.Background(), o.sidecar, append(args, more...)...)}
	s.cmd.Stderr = os.Stderr
	out, err := s.cmd.StdoutPipe()
	if err != nil {
		return nil, err
	}
	if err := s.cmd.Start(); err != nil {
		return nil, fmt.Errorf("%w; build it with make build", err)
	}
	line, err := bufio.NewReader(out).ReadBytes('\n')
	if err == nil {
		err = json.Unmarshal(line, s)
	}
	if err != nil {
		s.stop()
		return nil, fmt.Errorf("sidecar %s is not ready: %w", name, err)
	}
	return s, nil
}

func (s *sidecar) stop() {
	_ = s.cmd.Process.Kill() // it may have ended
	_ = s.cmd.Wait()         // "signal: killed" is what was asked for
}

// rssAnon is the resident memory that is not a file's.
func (s *sidecar) rssAnon() (int64, error) {
	text, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", s.cmd.Process.Pid))
	if err != nil {
		return 0, err
	}
	for line := range strings.Lines(string(text)) {
		if rest, ok := strings.CutPrefix(line, "RssAnon:"); ok {
			kb, err := strconv.ParseInt(strings.Fields(rest)[0], 10, 64)
			return kb << 10, err
		}
	}
	return 0, fmt.Errorf("no RssAnon in /proc: Linux only")
}

// synced is how many appends of the journal were synced so far. Metrics lag behind by a second: it is read until it
// stands still for longer.
func (s *sidecar) synced() (float64, error) {
	last, still := -1.0, time.Now()
	for {
		v, err := s.metric(`txmesh_append_seconds_count{sync="true"}`)
		if err != nil {
			return 0, err
		}
		if v != last {
			last, still = v, time.Now()
		}
		if time.Since(still) > 1500*time.Millisecond {
			return last, nil
		}
		time.Sleep(100 * time.Millisecond)
	}
}

func (s *sidecar) metric(name string) (float64, error) {
	text, err := s.api(http.MethodGet, "/metrics", "")
	if err != nil {
		return 0, err
	}
	for line := range strings.Lines(string(text)) {
		if rest, ok := strings.CutPrefix(line, name+" "); ok {
			return strconv.ParseFloat(strings.TrimSpace(rest), 64)
		}
	}
	return 0, nil // counted from the first one on
}

// begin opens a transaction over the API and returns its id and context.
func (s *sidecar) begin() (id, context string, err error) {
	text, err := s.api("POST", "/v1/transactions", `{"timeout":"10m"}`)
	var v struct{ ID, Context string }
	if err == nil {
		err = json.Unmarshal(text, &v)
	}
	return v.ID, v.Context, err
}

func (s *sidecar) commit(id string) error {
	_, err := s.api("POST", "/v1/transactions/"+id+"/commit", "")
	return err
}

func (s *sidecar) api(method, path, body string) ([]byte, error) {
	req, err := http.NewRequestWithContext(context.Background(), method, "http://"+s.API+path, strings.NewReader(body))
	if err != nil {
		return nil, err
	}
	req.Header.Set("Authorization", "Bearer "+secret)
	res, err := http.DefaultClient.Do(req)
	if err != nil {
		return nil, err
	}
	defer res.Body.Close()
	text, err := io.ReadAll(res.Body)
	if err == nil && res.StatusCode >= 300 {
		err = fmt.Errorf("%s %s: %d %s", method, path, res.StatusCode, text)
	}
	return text, err
}

// listen opens a port of this process.
func listen() (net.Listener, error) { return net.Listen("tcp", "127.0.0.1:0") }
