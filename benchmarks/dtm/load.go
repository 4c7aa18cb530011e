package main

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/valyala/fasthttp"

	"txmesh/benchmarks/profile"
)

// result is what one turn of a row gave.
type result struct {
	times  []time.Duration // sorted
	took   time.Duration
	errors int
	fsync  time.Duration
	cpu    time.Duration // of the sidecar
}

func (r result) rate() float64 { return float64(len(r.times)) / r.took.Seconds() }

func (r result) at(q float64) time.Duration {
	if len(r.times) == 0 {
		return 0
	}
	return r.times[min(int(q*float64(len(r.times))), len(r.times)-1)]
}

// load runs clients in closed loops for a while.
func (b *bench) load(kind string, clients int, d time.Duration) (result, error) {
	if !strings.Contains("saga saga-empty tcc tcc-empty msg msg-empty", kind) {
		return result{}, fmt.Errorf("-kinds %q: want saga, tcc or msg, with -empty or not", kind)
	}
	fsync, err := b.fsync()
	if err != nil {
		return result{}, err
	}
	profiled := b.startProfile(d)
	before, err := b.cpu()
	if err != nil {
		return result{}, err
	}
	var mu sync.Mutex
	var wg sync.WaitGroup
	r := result{fsync: fsync}
	start := time.Now()
	for range clients {
		wg.Go(func() {
			c := &client{b: b, kind: strings.TrimSuffix(kind, "-empty"), empty: strings.HasSuffix(kind, "-empty")}
			for time.Since(start) < d {
				c.one()
			}
			mu.Lock()
			defer mu.Unlock()
			r.times, r.errors = append(r.times, c.times...), r.errors+c.errors
		})
	}
	wg.Wait()
	r.took = time.Since(start)
	after, err := b.cpu()
	r.cpu = after - before
	slices.Sort(r.times)
	if r.errors > 0 && len(r.times) == 0 {
		return r, fmt.Errorf("%s: all of %d failed, the last with: %w", kind, r.errors, b.lastError())
	}
	return r, errors.Join(err, <-profiled)
}

// client makes one transaction after another.
type client struct {
	b      *bench
	kind   string
	empty  bool
	times  []time.Duration
	errors int
}

func (c *client) one() {
	gid := c.b.gid()
	start := time.Now()
	var err error
	switch c.kind {
	case "saga":
		err = c.b.post("submit", fmt.Sprintf(`{"gid":%q,"trans_type":"saga","wait_result":true,"steps":[{"action":%q,"compensate":%q},{"action":%q,"compensate":%q}],"payloads":["{\"amount\":30}","{\"amount\":30}"]}`,
			gid, c.url("/a"), c.url("/c"), c.url("/a"), c.url("/c")))
	case "msg":
		err = c.b.post("submit", fmt.Sprintf(`{"gid":%q,"trans_type":"msg","wait_result":true,"steps":[{"action":%q},{"action":%q}],"payloads":["{\"amount\":30}","{\"amount\":30}"]}`,
			gid, c.url("/a"), c.url("/a")))
	case "tcc":
		err = c.tcc(gid)
	}
	if err != nil {
		c.errors++
		c.b.failed(err)
		return
	}
	c.times = append(c.times, time.Since(start))
}

// tcc is what an SDK does: prepare, register and try each branch, submit.
func (c *client) tcc(gid string) error {
	if err := c.b.post("prepare", fmt.Sprintf(`{"gid":%q,"trans_type":"tcc","wait_result":true}`, gid)); err != nil {
		return err
	}
	for _, id := range []string{"01", "02"} {
		if err := c.b.post("registerBranch", fmt.Sprintf(`{"gid":%q,"trans_type":"tcc","branch_id":%q,"confirm":%q,"cancel":%q,"data":"{\"amount\":30}"}`,
			gid, id, c.url("/confirm"), c.url("/cancel"))); err != nil {
			return err
		}
		if !c.empty {
			if err := c.b.send("http://"+c.b.service+"/try?gid="+gid, `{"amount":30}`); err != nil {
				return err
			}
		}
	}
	return c.b.post("submit", fmt.Sprintf(`{"gid":%q,"trans_type":"tcc","wait_result":true}`, gid))
}

func (c *client) url(path string) string {
	if c.empty {
		return ""
	}
	return "http://" + c.b.service + path
}

func (b *bench) post(api, body string) error { return b.send("http://"+b.DTM+"/api/dtmsvr/"+api, body) }

func (b *bench) send(url, body string) error {
	req, res := fasthttp.AcquireRequest(), fasthttp.AcquireResponse()
	defer fasthttp.ReleaseRequest(req)
	defer fasthttp.ReleaseResponse(res)
	req.SetRequestURI(url)
	req.Header.SetMethod(http.MethodPost)
	req.Header.SetContentType("application/json")
	req.SetBodyString(body)
	if err := b.client.Do(req, res); err != nil {
		return err
	}
	if res.StatusCode() != http.StatusOK {
		return fmt.Errorf("%s: %d %s", url, res.StatusCode(), res.Body())
	}
	return nil
}

// fsync is the median of 50 writes and fsyncs of 300 bytes on the disk that is measured.
func (b *bench) fsync() (time.Duration, error) {
	f, err := os.Create(filepath.Join(b.dir, "fsync"))
	if err != nil {
		return 0, err
	}
	var times []time.Duration
	for range 50 {
		start := time.Now()
		if _, err := f.Write(make([]byte, 300)); err != nil {
			return 0, err
		}
		if err := f.Sync(); err != nil {
			return 0, err
		}
		times = append(times, time.Since(start))
	}
	slices.Sort(times)
	return times[len(times)/2], f.Close()
}

// startProfile asks the sidecar for a CPU profile of this turn.
func (b *bench) startProfile(d time.Duration) <-chan error {
	done := make(chan error, 1)
	if b.profile == "" {
		done <- nil
		return done
	}
	go func() {
		done <- profile.Take(context.Background(), b.API, token, fmt.Sprintf("profile?seconds=%d", max(int(d.Seconds())-1, 1)), b.profile)
	}()
	return done
}
