package main

import (
	"bufio"
	"bytes"
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"encoding/json"
	"encoding/pem"
	"errors"
	"fmt"
	"io"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"time"

	"txmesh/benchmarks/profile"
)

// plane is the control plane's process.
type plane struct {
	dir   string
	cmd   *exec.Cmd
	ready struct{ Listen, API, Bundle string }
	roots *x509.CertPool
}

const token = "token-of-this-benchmark"

func service(n int) string { return fmt.Sprintf("bench/service-%d", n) }

// mark is what a changed policy can be known by.
func mark(version int) string { return fmt.Sprintf("mark-%d.", version) }

func writePolicy(dir string, n, version int) error {
	text := fmt.Sprintf("# %s\napiVersion: txmesh.io/v1beta1\nkind: TransactionPolicy\nmetadata: {name: p-%d, namespace: bench}\nspec:\n  calls:\n"+
		"  - name: take\n    match: {service: service-%d, method: POST, path: \"/accounts/{id}/withdrawals\"}\n"+
		"    undo: {method: DELETE, path: \"/accounts/{path.id}/withdrawals/{response.body.id}\"}\n", mark(version), n, n)
	path := filepath.Join(dir, fmt.Sprintf("p-%d.yaml", n))
	if err := os.WriteFile(path+".new", []byte(text), 0o600); err != nil {
		return err
	}
	return os.Rename(path+".new", path)
}

func startPlane(ctx context.Context, o options, dir string) (*plane, error) {
	p := &plane{dir: dir}
	for _, d := range []string{"policies", "tokens/bench"} {
		if err := os.MkdirAll(filepath.Join(dir, d), 0o700); err != nil {
			return nil, err
		}
	}
	for n := range o.policies {
		if err := writePolicy(filepath.Join(dir, "policies"), n, 0); err != nil {
			return nil, err
		}
	}
	for n := range o.services {
		if err := os.WriteFile(filepath.Join(dir, "tokens", service(n)), []byte(token), 0o600); err != nil {
			return nil, err
		}
	}
	if err := os.WriteFile(filepath.Join(dir, "token"), []byte(token), 0o600); err != nil {
		return nil, err
	}
	p.cmd = exec.CommandContext(ctx, o.binary, "--listen=127.0.0.1:0", "--api=127.0.0.1:0", "--log-level=warn", "--policies", filepath.Join(dir, "policies"),
		"--data-dir", filepath.Join(dir, "data"), "--token-file", filepath.Join(dir, "token"), "--tokens-dir", filepath.Join(dir, "tokens"))
	p.cmd.Stderr = os.Stderr
	out, err := p.cmd.StdoutPipe()
	if err != nil {
		return nil, err
	}
	if err := p.cmd.Start(); err != nil {
		return nil, fmt.Errorf("start the control plane: %w; make build makes it", err)
	}
	line, err := bufio.NewReader(out).ReadBytes('\n')
	if err == nil {
		err = json.Unmarshal(line, &p.ready)
	}
	if err != nil {
		return nil, errors.Join(fmt.Errorf("read the control plane's ready line: %w", err), p.end())
	}
	bundle, err := os.ReadFile(p.ready.Bundle)
	if err != nil {
		return nil, errors.Join(err, p.end())
	}
	p.roots = x509.NewCertPool()
	p.roots.AppendCertsFromPEM(bundle)
	return p, nil
}

func (p *plane) end() error {
	if err := p.cmd.Process.Signal(syscall.SIGTERM); err != nil {
		return fmt.Errorf("end the control plane: %w", err)
	}
	return p.cmd.Wait()
}

// idle waits, and returns the processor time that the control plane has used meanwhile. What it did is written beside file.
func (p *plane) idle(ctx context.Context, d time.Duration, file string) (time.Duration, error) {
	before, err := profile.CPU(p.cmd.Process.Pid)
	if err != nil {
		return 0, err
	}
	var profiled chan error
	if file != "" {
		profiled = make(chan error, 1)
		go func() {
			profiled <- profile.Take(ctx, p.ready.API, token, fmt.Sprintf("profile?seconds=%d", max(int(d.Seconds()), 1)), file+".cpu")
		}()
	}
	select {
	case <-ctx.Done():
		return 0, ctx.Err()
	case <-time.After(d):
	}
	after, err := profile.CPU(p.cmd.Process.Pid)
	if err == nil && profiled != nil {
		err = <-profiled
	}
	return after - before, err
}

// profile writes what the control plane's heap and goroutines consist of.
func (p *plane) profile(ctx context.Context, file string) error {
	if file == "" {
		return nil
	}
	for what, to := range map[string]string{"heap": file, "goroutine": file + ".goroutine"} {
		if err := profile.Take(ctx, p.ready.API, token, what, to); err != nil {
			return err
		}
	}
	return nil
}

// usage is the memory of a process, as the kernel says it.
type usage struct{ now, peak string }

func (p *plane) memory() (usage, error) {
	data, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", p.cmd.Process.Pid))
	if err != nil {
		return usage{}, fmt.Errorf("memory of the control plane: %w", err)
	}
	value := func(key string) string {
		_, rest, _ := strings.Cut(string(data), key+":")
		line, _, _ := strings.Cut(rest, "\n")
		var kib int
		if _, err := fmt.Sscanf(line, "%d kB", &kib); err != nil {
			return "unknown"
		}
		return fmt.Sprintf("%d MiB", kib>>10)
	}
	return usage{now: value("VmRSS"), peak: value("VmHWM")}, nil
}

// join gets a certificate of a service, as a sidecar does.
func (p *plane) join(ctx context.Context, service string) (*tls.Config, error) {
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return nil, err
	}
	der, err := x509.CreateCertificateRequest(rand.Reader, &x509.CertificateRequest{}, key)
	if err != nil {
		return nil, err
	}
	body, err := json.Marshal(map[string]string{"csr": string(pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE REQUEST", Bytes: der})), "service": service})
	if err != nil {
		return nil, err
	}
	r, err := http.NewRequestWithContext(ctx, http.MethodPost, "https://"+p.ready.Listen+"/v1/certificates", bytes.NewReader(body))
	if err != nil {
		return nil, err
	}
	r.Header.Set("Authorization", "Bearer "+token)
	client := http.Client{Transport: &http.Transport{DisableKeepAlives: true, TLSClientConfig: &tls.Config{RootCAs: p.roots}}}
	res, err := client.Do(r)
	if err != nil {
		return nil, fmt.Errorf("join as %s: %w", service, err)
	}
	defer res.Body.Close()
	text, err := io.ReadAll(res.Body)
	var got struct{ Certificate string }
	if err = errors.Join(err, json.Unmarshal(text, &got)); err != nil || res.StatusCode != http.StatusOK {
		return nil, fmt.Errorf("join as %s: %s %s: %w", service, res.Status, text, err)
	}
	leaf, _ := pem.Decode([]byte(got.Certificate))
	return &tls.Config{RootCAs: p.roots, Certificates: []tls.Certificate{{Certificate: [][]byte{leaf.Bytes}, PrivateKey: key}}}, nil
}
