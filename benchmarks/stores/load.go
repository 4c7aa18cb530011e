package main

import (
	"bytes"
	"errors"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/valyala/fasthttp"

	"txmesh/tests/processes"
)

// result is what a cell gave in one round.
type result struct {
	times []time.Duration // sorted
	took  time.Duration
	cost  cost
	unit  string  // of cost.count
	load  float64 // of the machine, at the beginning: others may use it
}

func (r result) rate() float64 { return float64(len(r.times)) / r.took.Seconds() }

func (r result) at(q float64) time.Duration { return r.times[int(q*float64(len(r.times)-1))] }

// sidecar is one of those that are measured.
type sidecar struct {
	process *processes.Process
	API     string
	Token   string `json:"token_file"`
	token   string
}

// serve starts the participant, which does and undoes nothing at once, and lives as long as the process.
func serve() (string, error) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		return "", err
	}
	s := &fasthttp.Server{Handler: func(r *fasthttp.RequestCtx) { r.SetBodyString("{}") }}
	go func() { _ = s.Serve(l) }() // ends with the process
	return l.Addr().String(), nil
}

// measure starts sidecars on an empty place of a store, warms up and measures.
func (b *bench) measure(s *store, place string, n int) (r result, err error) {
	address, err := s.place(place)
	if err != nil {
		return r, err
	}
	var all []*sidecar
	defer func() {
		for _, one := range all {
			one.process.Kill()
		}
	}()
	dir := filepath.Join(b.dir, s.kind+place)
	for i := range n {
		one, err := b.sidecar(address, filepath.Join(dir, fmt.Sprint(i)))
		if err != nil {
			return r, err
		}
		all = append(all, one)
	}
	long := time.Duration(b.seconds * float64(time.Second))
	if _, _, err := b.drive(all, long/4); err != nil {
		return r, err
	}
	if r.load, err = loadAverage(); err != nil {
		return r, err
	}
	before, err := s.cost(all)
	if err != nil {
		return r, err
	}
	if r.times, r.took, err = b.drive(all, long); err != nil {
		return r, err
	}
	after, err := s.cost(all)
	r.cost, r.unit = after.minus(before), s.unit
	return r, errors.Join(err, os.RemoveAll(dir))
}

func (b *bench) sidecar(address, dir string) (*sidecar, error) {
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return nil, err
	}
	secret := filepath.Join(dir, "secret")
	if err := os.WriteFile(secret, []byte("0123456789abcdef0123456789abcdef"), 0o600); err != nil {
		return nil, err
	}
	zero := "127.0.0.1:0"
	args := append([]string{"--service", "bench/work", "--app", b.service, "--inbound", zero, "--peer", zero, "--api", zero, "--outbound", "off",
		"--store", address, "--data-dir", filepath.Join(dir, "data"), "--mesh-secret-file", secret, "--log-level", "warn", "--grace-period", "1s"}, b.flags...)
	s := &sidecar{process: &processes.Process{Name: filepath.Base(dir), Path: b.binary, Args: args, Log: filepath.Join(dir, "log")}}
	if err := s.process.Start(s); err != nil {
		return nil, err
	}
	token, err := os.ReadFile(s.Token)
	s.token = strings.TrimSpace(string(token))
	return s, err
}

// drive runs the clients for a while and returns how long each transaction took, from the request to the answer that it
// is committed, which is durable.
func (b *bench) drive(all []*sidecar, long time.Duration) ([]time.Duration, time.Duration, error) {
	target := func(path string) string {
		return fmt.Sprintf(`{"url":"http://%s%s","body":{"amount":30}}`, b.service, path)
	}
	branch := fmt.Sprintf(`{"action":%s,"compensate":%s}`, target("/do"), target("/undo"))
	body := fmt.Sprintf(`{"mode":"saga","branches":[%s,%s]}`, branch, branch)
	client := &fasthttp.Client{MaxConnsPerHost: b.clients, MaxIdemponentCallAttempts: 1}
	defer client.CloseIdleConnections()
	var mu sync.Mutex // guards times, errs
	var times []time.Duration
	var errs []error
	var wg sync.WaitGroup
	start := time.Now()
	for i := range b.clients {
		wg.Go(func() {
			var own []time.Duration
			var err error
			for err == nil && time.Since(start) < long {
				began := time.Now()
				err = transact(client, all[i%len(all)], body)
				own = append(own, time.Since(began))
			}
			mu.Lock()
			defer mu.Unlock()
			times, errs = append(times, own...), append(errs, err)
		})
	}
	wg.Wait()
	took := time.Since(start)
	slices.Sort(times)
	return times, took, errors.Join(errs...)
}

func transact(client *fasthttp.Client, at *sidecar, body string) error {
	req, res := fasthttp.AcquireRequest(), fasthttp.AcquireResponse()
	defer fasthttp.ReleaseRequest(req)
	defer fasthttp.ReleaseResponse(res)
	req.SetRequestURI("http://" + at.API + "/v1/transactions?wait=30s")
	req.Header.SetMethod(fasthttp.MethodPost)
	req.Header.SetContentType("application/json")
	req.Header.Set("Authorization", "Bearer "+at.token)
	req.SetBodyString(body)
	if err := client.Do(req, res); err != nil {
		return err
	}
	if res.StatusCode() >= 300 || !bytes.Contains(res.Body(), []byte(`"committed"`)) {
		return fmt.Errorf("a saga ended with %d %s", res.StatusCode(), res.Body())
	}
	return nil
}
