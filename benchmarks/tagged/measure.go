package main

import (
	"bytes"
	"cmp"
	"context"
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
)

// bench is two sidecars and the services, which this process serves.
type bench struct {
	options
	a, b    *sidecar
	service *http.Server
	client  *http.Client
	toBare  string // where a root's calls go: a's port for bare
}

func newBench(o options) (*bench, error) {
	l, err := listen()
	if err != nil {
		return nil, err
	}
	b := &bench{options: o, client: &http.Client{Transport: &http.Transport{MaxIdleConnsPerHost: 256}}}
	b.service = &http.Server{Handler: http.HandlerFunc(b.serve)}
	go func() { _ = b.service.Serve(l) }() // ends with close
	app := l.Addr().String()
	bare := "service=bench/bare,listen=127.0.0.1:0,to=" + app
	// b has to know a before a is there: its peer port is chosen first.
	p, err := listen()
	if err != nil {
		return nil, err
	}
	peer := p.Addr().String()
	if err := p.Close(); err != nil {
		return nil, err
	}
	if b.b, err = startSidecar(o, "b", app, "--upstreams", bare, "--peers", peer); err != nil {
		return nil, err
	}
	b.a, err = startSidecar(o, "a", app, "--peer", peer, "--peers", b.b.Peer, "--upstreams", bare,
		"--upstreams", "service=bench/b,listen=127.0.0.1:0,to="+b.b.Inbound)
	if err != nil {
		b.close()
		return nil, err
	}
	b.toBare = b.a.Upstreams["bench/bare"]
	return b, nil
}

func (b *bench) close() {
	for _, s := range []*sidecar{b.a, b.b} {
		if s != nil {
			s.stop()
		}
	}
	_ = b.service.Close() // nothing is left to be answered
}

// serve answers every service's requests. A root under /begin/two makes two calls.
func (b *bench) serve(w http.ResponseWriter, r *http.Request) {
	_, _ = io.Copy(io.Discard, r.Body) // bodies mean nothing here
	if base, two := strings.CutSuffix(r.URL.Path, "/two"); two {
		call := map[string]string{"/begin": "/plain/1", "/free": "/free/1"}[base]
		for range 2 {
			if _, err := b.call("http://"+b.toBare+call, "Baggage", r.Header.Get("Baggage")); err != nil {
				w.WriteHeader(http.StatusInternalServerError)
				return
			}
		}
	}
	w.Header().Set("Content-Type", "application/json")
	w.WriteHeader(http.StatusCreated)
	_, _ = io.WriteString(w, `{"id":"1"}`) // a client that went away needs no answer
}

// call makes one request that must succeed, and says how long it took.
func (b *bench) call(url string, header ...string) (time.Duration, error) {
	req, err := http.NewRequestWithContext(context.Background(), http.MethodPost, url, strings.NewReader(`{"amount":30}`))
	if err != nil {
		return 0, err
	}
	for i := 0; i < len(header); i += 2 {
		req.Header.Set(header[i], header[i+1])
	}
	start := time.Now()
	res, err := b.client.Do(req)
	if err != nil {
		return 0, err
	}
	text, err := io.ReadAll(res.Body)
	took := time.Since(start)
	if err := errors.Join(err, res.Body.Close()); err != nil {
		return 0, err
	}
	if res.StatusCode != http.StatusCreated {
		return 0, fmt.Errorf("%s: %d %s", url, res.StatusCode, text)
	}
	return took, nil
}

// path is one way of a call: with a rule on it, and the same without.
type path struct {
	name             string
	tagged, untagged string
	root             bool // opens its own transaction
	syncsMax         int
	extra            time.Duration
}

func (b *bench) paths() []path {
	bare, homed, relayed := "http://"+b.toBare, "http://"+b.a.Upstreams["bench/b"], "http://"+b.b.Upstreams["bench/bare"]
	return []path{
		{name: "local owner, callee without barrier", tagged: bare + "/plain/1", untagged: bare + "/free/1", syncsMax: 1, extra: 300 * time.Microsecond},
		{name: "... and a template reads the response", tagged: bare + "/reads/1", untagged: bare + "/free/1", syncsMax: 2, extra: 400 * time.Microsecond},
		{name: "local owner, barrier at the callee's sidecar", tagged: homed + "/proxy/1", untagged: homed + "/free/1"},
		{name: "relay: the owner is another sidecar, callee without barrier", tagged: relayed + "/plain/1", untagged: relayed + "/free/1"},
		{name: "a whole root without calls", tagged: "http://" + b.a.Inbound + "/begin/1", untagged: "http://" + b.a.Inbound + "/free/1", root: true},
		{name: "a whole root with two calls as in the first row", tagged: "http://" + b.a.Inbound + "/begin/two", untagged: "http://" + b.a.Inbound + "/free/two", root: true},
	}
}

// result is what one path gave.
type result struct {
	tagged, untagged []time.Duration
	fsyncs           []time.Duration // of the same minutes, for comparison
	appends          float64         // synced appends of the journals for each call, by the sidecars' metrics
	calls            string          // system calls that sync, by strace where the machine has it
}

// measure lets both sides and the bare disk take turns, then counts the syncs of one more turn.
func (b *bench) measure(p path) (result, error) {
	var r result
	for round := range b.rounds + 1 {
		slow, err := b.turn(p)
		if err != nil {
			return r, err
		}
		var fast []time.Duration
		for range b.calls {
			took, err := b.call(p.untagged)
			if err != nil {
				return r, err
			}
			fast = append(fast, took)
		}
		disk, err := b.fsyncs()
		if err != nil {
			return r, err
		}
		if round > 0 { // the first warms up
			r.tagged, r.untagged, r.fsyncs = append(r.tagged, slow...), append(r.untagged, fast...), append(r.fsyncs, disk...)
		}
	}
	return r, b.count(p, &r)
}

// branchesEach is how many calls share a transaction.
const branchesEach = 10

// turn makes the calls of one turn, in as few transactions as may be, or as many roots.
func (b *bench) turn(p path) ([]time.Duration, error) {
	var all []time.Duration
	for len(all) < b.calls {
		var id string
		var header []string
		if !p.root {
			var context string
			var err error
			if id, context, err = b.a.begin(); err != nil {
				return nil, err
			}
			header = []string{"Tx-Context", context}
		}
		for range min(branchesEach, b.calls-len(all)) {
			took, err := b.call(p.tagged, header...)
			if err != nil {
				return nil, err
			}
			all = append(all, took)
		}
		if p.root {
			continue
		}
		if err := b.a.commit(id); err != nil {
			return nil, err
		}
	}
	return all, nil
}

// count makes one more turn and counts. What the transactions themselves sync, begin and commit, is taken off.
func (b *bench) count(p path, r *result) error {
	own := 2 * float64((b.calls+branchesEach-1)/branchesEach)
	if p.root {
		own = 0
	}
	before, err := b.synced()
	if err != nil {
		return err
	}
	stop := b.trace()
	_, err = b.turn(p)
	calls := stop()
	if err != nil {
		return err
	}
	after, err := b.synced()
	if err != nil {
		return err
	}
	r.appends = (after - before - own) / float64(b.calls)
	r.calls = "no strace here"
	if calls >= 0 {
		r.calls = fmt.Sprintf("%.2f", (float64(calls)-own)/float64(b.calls))
	}
	return nil
}

func (b *bench) synced() (float64, error) {
	a, err := b.a.synced()
	if err != nil {
		return 0, err
	}
	other, err := b.b.synced()
	return a + other, err
}

// trace counts the system calls by which both sidecars sync, until stop, which gives -1 if it cannot be done.
func (b *bench) trace() (stop func() int) {
	path, err := exec.LookPath("strace")
	if err != nil {
		return func() int { return -1 }
	}
	out := cmp.Or(b.traced, filepath.Join(b.dir, "strace"))
	c := exec.CommandContext(context.Background(), path, "-f", "-y", "-ttt", "-e", "trace=fsync,fdatasync,msync,sync_file_range", "-o", out, "-p", fmt.Sprint(b.a.cmd.Process.Pid),
		"-p", fmt.Sprint(b.b.cmd.Process.Pid))
	if err := c.Start(); err != nil {
		return func() int { return -1 }
	}
	time.Sleep(time.Second) // until it has attached to all threads
	return func() int {
		_ = c.Process.Signal(syscall.SIGINT) // it detaches
		_ = c.Wait()                         // its exit status tells nothing
		text, err := os.ReadFile(out)
		if err != nil {
			return -1
		}
		n := 0
		for _, name := range []string{"fsync(", "fdatasync(", "msync("} {
			n += bytes.Count(text, []byte(" "+name))
		}
		return n
	}
}

// fsyncs measures the disk: a small record appended to a file, and synced.
func (b *bench) fsyncs() ([]time.Duration, error) {
	f, err := os.Create(filepath.Join(b.dir, "fsync"))
	if err != nil {
		return nil, err
	}
	defer f.Close()
	var all []time.Duration
	record := make([]byte, 300)
	for range b.calls {
		start := time.Now()
		if _, err := f.Write(record); err != nil {
			return nil, err
		}
		if err := f.Sync(); err != nil {
			return nil, err
		}
		all = append(all, time.Since(start))
	}
	return all, nil
}
