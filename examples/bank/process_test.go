package main

import (
	"bufio"
	"bytes"
	"encoding/json"
	"io"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
)

// serveEnv makes the test binary serve as the bank, so that a test can kill it.
const serveEnv = "BANK_TEST_SERVE"

func TestMain(m *testing.M) {
	if os.Getenv(serveEnv) != "" {
		main()
		return
	}
	os.Exit(m.Run())
}

// implementation is one program that serves accounts or savings.
type implementation struct {
	name    string
	service string
	program string // what runs it; empty: this test binary
	script  string
}

func implementations() []implementation {
	return []implementation{
		{name: "accounts in Go", service: "accounts"},
		{name: "accounts in Python", service: "accounts", program: "python3", script: "accounts.py"},
		{name: "savings in Go", service: "savings"},
		{name: "savings in Node", service: "savings", program: "node", script: "savings.mjs"},
	}
}

// needs ends the test on a machine without the language.
func (i implementation) needs(t *testing.T) {
	t.Helper()
	if i.program == "" {
		return
	}
	if _, err := exec.LookPath(i.program); err != nil {
		t.Skipf("%s is not on this machine: %s is not tried, the Go service is", i.program, i.script)
	}
	// Read here, so that go test knows the script as an input and runs again when it changes.
	if _, err := os.ReadFile(i.script); err != nil {
		t.Fatal(err)
	}
}

func (i implementation) kind() string {
	return map[string]string{"accounts": "withdrawal", "savings": "deposit"}[i.service]
}

func (i implementation) command(args ...string) *exec.Cmd {
	if i.program != "" {
		return exec.Command(i.program, append([]string{i.script}, args...)...)
	}
	c := exec.Command(os.Args[0], append([]string{"--as", i.service}, args...)...)
	c.Env = append(os.Environ(), serveEnv+"=1")
	return c
}

// service is one running process of an implementation.
type service struct {
	i      implementation
	data   string
	args   []string
	cmd    *exec.Cmd
	stderr *bytes.Buffer
	url    string
}

func start(t *testing.T, i implementation, data string, args ...string) *service {
	t.Helper()
	i.needs(t)
	s := &service{i: i, data: data, args: args}
	if data != "" {
		s.args = append([]string{"--data", data}, args...)
	}
	s.start(t)
	t.Cleanup(func() { s.kill(t) })
	return s
}

func (s *service) start(t *testing.T) {
	t.Helper()
	s.cmd, s.stderr = s.i.command(s.args...), &bytes.Buffer{}
	s.cmd.Stderr = s.stderr
	stdout, err := s.cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := s.cmd.Start(); err != nil {
		t.Fatal(err)
	}
	line, err := bufio.NewReader(stdout).ReadBytes('\n')
	var started struct{ Service, Address string }
	if err == nil {
		err = json.Unmarshal(line, &started)
	}
	if err != nil || started.Service != s.i.service {
		t.Fatalf("%s printed %q (%v) instead of its address; stderr: %s", s.i.name, line, err, s.stderr)
	}
	s.url = "http://" + started.Address
}

func (s *service) kill(t *testing.T) {
	t.Helper()
	if s.cmd.ProcessState != nil {
		return
	}
	if err := s.cmd.Process.Kill(); err != nil {
		t.Error(err)
	}
	_ = s.cmd.Wait() // "signal: killed" is what was asked for
}

func (s *service) stop(t *testing.T) {
	t.Helper()
	if err := s.cmd.Process.Signal(syscall.SIGTERM); err != nil {
		t.Fatal(err)
	}
	if err := s.cmd.Wait(); err != nil {
		t.Fatalf("%s after SIGTERM: %v; stderr: %s", s.i.name, err, s.stderr)
	}
}

// client keeps a connection for each of many concurrent callers.
var client = &http.Client{Transport: &http.Transport{MaxIdleConnsPerHost: 64}}

// reply is what a call came back with.
type reply struct {
	status int
	body   string
}

func (s *service) call(method, path, key, body string, headers ...string) (reply, error) {
	return s.send(method, path, key, strings.NewReader(body), headers...)
}

// send makes a call. A body whose length the HTTP client cannot see goes out in chunks.
func (s *service) send(method, path, key string, body io.Reader, headers ...string) (reply, error) {
	req, err := http.NewRequest(method, s.url+path, body)
	if err != nil {
		return reply{}, err
	}
	if key != "" {
		req.Header.Set("Idempotency-Key", key)
	}
	for i := 0; i+1 < len(headers); i += 2 {
		req.Header.Set(headers[i], headers[i+1])
	}
	res, err := client.Do(req)
	if err != nil {
		return reply{}, err
	}
	defer res.Body.Close()
	text, err := io.ReadAll(res.Body)
	return reply{res.StatusCode, string(text)}, err
}

func (s *service) mustCall(t *testing.T, method, path, key, body string) reply {
	t.Helper()
	r, err := s.call(method, path, key, body)
	if err != nil {
		t.Fatalf("%s: %s %s: %v; stderr: %s", s.i.name, method, path, err, s.stderr)
	}
	return r
}

// readEntries reads the ledger of a service from its file.
func readEntries(t *testing.T, path string) []entry {
	t.Helper()
	data, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	var entries []entry
	for line := range bytes.Lines(data) {
		var e entry
		if err := json.Unmarshal(line, &e); err != nil {
			t.Fatalf("%s: %q: %v", path, line, err)
		}
		entries = append(entries, e)
	}
	return entries
}

func tempLedger(t *testing.T) string {
	t.Helper()
	return filepath.Join(t.TempDir(), "ledger.jsonl")
}
