package main

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"strings"
	"sync"
	"time"
)

// app is what stands behind the sidecar: it answers, echoes, or speaks what could be WebSocket.
type app struct {
	address string
	server  *http.Server
}

func newApp() (*app, error) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		return nil, err
	}
	a := &app{address: l.Addr().String()}
	a.server = &http.Server{Handler: a, ReadHeaderTimeout: time.Minute}
	go func() { _ = a.server.Serve(l) }() // until close
	return a, nil
}

func (a *app) close() { _ = a.server.Close() } // nothing is left to say

// ServeHTTP answers one request.
func (a *app) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	if r.Header.Get("Upgrade") != "" {
		c, _, err := http.NewResponseController(w).Hijack()
		if err != nil {
			return
		}
		defer func() { _ = c.Close() }() // the client has gone
		_, _ = io.WriteString(c, "HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\r\n")
		_, _ = io.Copy(c, c) // until the client goes
		return
	}
	n, _ := io.Copy(io.Discard, r.Body) // the client tells what is missing
	if r.URL.Path == "/large" {
		w.Header().Set("Content-Length", fmt.Sprint(large))
		_, _ = io.CopyN(w, zeros{}, large) // the same
		return
	}
	_, _ = fmt.Fprintf(w, "%d bytes, and some more of them to make an answer of one kilobyte: %s", n, strings.Repeat("x", 950))
}

// large is the size of a streamed body.
const large = 100 << 20

type zeros struct{}

func (zeros) Read(p []byte) (int, error) { return len(p), nil }

// once opens a connection, asks once and closes it.
func (b *bench) once() error {
	c, err := dial(b.Inbound)
	if err != nil {
		return err
	}
	defer func() { _ = c.Close() }() // it has answered, or the error is told
	return ask(c)
}

func ask(c net.Conn) error {
	if _, err := io.WriteString(c, "GET / HTTP/1.1\r\nHost: x\r\n\r\n"); err != nil {
		return err
	}
	res, err := http.ReadResponse(bufio.NewReader(c), nil)
	if err != nil {
		return err
	}
	return swallow(res)
}

func dial(address string) (net.Conn, error) {
	return new(net.Dialer).DialContext(context.Background(), "tcp", address)
}

// churn opens, uses and closes connections, a hundred at a time.
func (b *bench) churn(n int) error {
	var workers sync.WaitGroup
	errs := make([]error, 100)
	for i := range errs {
		workers.Go(func() {
			for range n / len(errs) {
				if errs[i] = b.once(); errs[i] != nil {
					return
				}
			}
		})
	}
	workers.Wait()
	return errors.Join(errs...)
}

// rest is how long after a burst it is looked whether the memory was given back.
const rest = 45 * time.Second

// burst has n connections open at the same time.
func (b *bench) burst(n int) error {
	conns, err := b.hold(n, ask)
	for _, c := range conns {
		_ = c.Close() // it has served
	}
	time.Sleep(rest)
	return err
}

func (b *bench) hold(n int, greet func(net.Conn) error) (conns []net.Conn, err error) {
	for range n {
		c, err := dial(b.Inbound)
		if err == nil {
			conns = append(conns, c)
			err = greet(c)
		}
		if err != nil {
			return conns, err
		}
	}
	return conns, nil
}

func upgrade(c net.Conn) error {
	if _, err := io.WriteString(c, "GET /ws HTTP/1.1\r\nHost: x\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\r\n"); err != nil {
		return err
	}
	res, err := http.ReadResponse(bufio.NewReader(c), nil)
	if err != nil {
		return err
	}
	if res.StatusCode != 101 {
		err = fmt.Errorf("upgrade: %s", res.Status)
	}
	return errors.Join(err, res.Body.Close())
}

// websockets tells what each of n idle tunnels costs.
func (b *bench) websockets(n int) error {
	before, err := b.resident()
	if err != nil {
		return err
	}
	heap, stacks, err := b.live()
	if err != nil {
		return err
	}
	conns, err := b.hold(n, upgrade)
	defer func() {
		for _, c := range conns {
			_ = c.Close() // it has served
		}
	}()
	if err != nil {
		return err
	}
	time.Sleep(3 * time.Second)
	after, err := b.row(fmt.Sprintf("beside %d idle WebSockets", n))
	if err != nil {
		return err
	}
	heap2, stacks2, err := b.live()
	if err != nil {
		return err
	}
	fmt.Printf("  each: %.1f KiB resident; heap %.1f KiB, stacks %.1f KiB\n", float64(after.rss-before.rss)/float64(n),
		(heap2-heap)/1024/float64(n), (stacks2-stacks)/1024/float64(n))
	return nil
}

// streams sends 100 MB up and down, and tells the most that the sidecar had meanwhile.
func (b *bench) streams(idle resident) error {
	peak, done := make(chan resident, 1), make(chan struct{})
	go func() {
		most := idle
		for {
			select {
			case <-done:
				peak <- most
				return
			case <-time.After(5 * time.Millisecond):
				if r, err := b.resident(); err == nil && r.rss > most.rss {
					most = r
				}
			}
		}
	}()
	err := errors.Join(b.post(large), b.get("/large"))
	close(done)
	r := <-peak
	fmt.Printf("%-44s %8.1f %8.1f %8.1f\n", "most during 100 MB up and 100 MB down", mib(r.rss), mib(r.anon), mib(r.file))
	return err
}

func (b *bench) post(n int64) error {
	return fetch(http.MethodPost, "http://"+b.Inbound+"/", io.LimitReader(zeros{}, n))
}

func (b *bench) get(path string) error {
	return fetch(http.MethodGet, "http://"+b.Inbound+path, nil)
}

func fetch(method, url string, body io.Reader) error {
	r, err := http.NewRequestWithContext(context.Background(), method, url, body)
	if err != nil {
		return err
	}
	res, err := http.DefaultClient.Do(r)
	if err != nil {
		return err
	}
	return swallow(res)
}

func swallow(res *http.Response) error {
	_, err := io.Copy(io.Discard, res.Body)
	return errors.Join(err, res.Body.Close())
}

// soak asks over 32 kept connections, and opens others, as fast as it goes, and tells the memory every 30 s.
func (b *bench) soak(length time.Duration) error {
	stop := time.Now().Add(length)
	var workers sync.WaitGroup
	errs := make([]error, 33)
	for i := range 32 {
		workers.Go(func() {
			c, err := dial(b.Inbound)
			for err == nil && time.Now().Before(stop) {
				err = ask(c)
			}
			errs[i] = err
		})
	}
	workers.Go(func() {
		for errs[32] == nil && time.Now().Before(stop) {
			errs[32] = errors.Join(b.once(), b.post(1<<20))
		}
	})
	ended := make(chan struct{})
	go func() {
		workers.Wait()
		close(ended)
	}()
	for began := time.Now(); ; {
		select {
		case <-ended:
			return errors.Join(errs...)
		case <-time.After(30 * time.Second):
			if _, err := b.row(fmt.Sprintf("load for %v", time.Since(began).Round(time.Second))); err != nil {
				return err
			}
		}
	}
}
