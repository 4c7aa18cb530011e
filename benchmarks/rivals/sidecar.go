package main

import (
	"bufio"
	"context"
	"encoding/json"
	"fmt"
	"os"
	"path/filepath"
	"sync"
	"time"

	"github.com/valyala/fasthttp"

	"txmesh/benchmarks/load"
)

const (
	taggedPath = "/bench.Echo/Tagged"
	secret     = "0123456789abcdef0123456789abcdef"
	// apiMax is how long the sidecar's API may take to answer.
	apiMax = 10 * time.Second
)

// sidecar starts the sidecar of the one who calls: clients call its port for the service echo. Its policies are loaded
// from config/policy.yaml and its journal is embedded, in a directory of its own; everything else is as it comes.
func (b *bench) sidecar(ctx context.Context, name string, p place) (*instance, error) {
	policy, err := p.write("policy.yaml")
	if err != nil {
		return nil, err
	}
	token := filepath.Join(p.Dir, "token")
	if err := os.WriteFile(token, []byte(secret), 0o600); err != nil {
		return nil, err
	}
	const zero = "127.0.0.1:0"
	c, err := launch(name, b.program("txmesh-sidecar"), "--service", "bench/caller", "--app", p.Origin, "--inbound", zero, "--outbound", "off",
		"--api", zero, "--peer", zero, "--upstreams", "service=bench/echo,listen="+p.Address+",to="+p.Origin, "--policies", policy,
		"--data-dir", filepath.Join(p.Dir, "data"), "--token-file", token, "--log-level", "error")
	if err != nil {
		return nil, err
	}
	out, err := c.cmd.StdoutPipe()
	if err != nil {
		return nil, err
	}
	if err := c.start(); err != nil {
		return nil, err
	}
	ended := context.AfterFunc(ctx, c.stop) // so that the pipe ends
	defer ended()
	var ready struct{ API string }
	line, err := bufio.NewReader(out).ReadBytes('\n')
	if err == nil {
		err = json.Unmarshal(line, &ready)
	}
	if err != nil {
		c.stop()
		return nil, fmt.Errorf("the sidecar does not get ready: %w: %s", err, c.stderr.text())
	}
	return &instance{address: p.Address, process: c, api: ready.API}, nil
}

func (b *bench) taggedSidecar(ctx context.Context, p place) (*instance, error) {
	i, err := b.sidecar(ctx, tagged, p)
	if err != nil {
		return nil, err
	}
	i.calls = &transactions{api: i.api, each: b.Branches, open: map[int]*transaction{},
		client: &fasthttp.HostClient{Addr: i.api, MaxConns: 4096, ReadTimeout: apiMax, MaxIdemponentCallAttempts: 1}}
	return i, nil
}

// transactions gives each connection of the driver a transaction for its calls, and a new one after so many.
type transactions struct {
	api    string
	each   int
	client *fasthttp.HostClient

	mu   sync.Mutex // guards the map; a transaction belongs to its connection
	open map[int]*transaction
}

type transaction struct {
	ID      string `json:"id"`
	Context string `json:"context"`
	calls   int
	header  string
}

// next is the transaction of a connection's next call. It commits the one before it, and begins one, when it is time.
func (t *transactions) next(conn int) (*transaction, error) {
	t.mu.Lock()
	tx := t.open[conn]
	t.mu.Unlock()
	if tx != nil && tx.calls < t.each {
		tx.calls++
		return tx, nil
	}
	if tx != nil {
		if _, err := t.ask("commit", "POST", "/v1/transactions/"+tx.ID+"/commit", ""); err != nil {
			return nil, err
		}
	}
	text, err := t.ask("begin", "POST", "/v1/transactions", `{"timeout":"10m"}`)
	if err != nil {
		return nil, err
	}
	tx = &transaction{calls: 1}
	if err := json.Unmarshal(text, tx); err != nil {
		return nil, fmt.Errorf("begin: %w", err)
	}
	tx.header = "Tx-Context: " + tx.Context + "\r\n"
	t.mu.Lock()
	t.open[conn] = tx
	t.mu.Unlock()
	return tx, nil
}

func (t *transactions) header(conn int) (string, error) {
	tx, err := t.next(conn)
	if err != nil {
		return "", err
	}
	return tx.header, nil
}

func (t *transactions) metadata(conn int) (name, value string, err error) {
	tx, err := t.next(conn)
	if err != nil {
		return "", "", err
	}
	return "tx-context", tx.Context, nil
}

// enlisted is how many branches the open transaction of a connection has: a call that passes without becoming one costs
// nothing, and would be a splendid result.
func (t *transactions) enlisted(conn int) (int, error) {
	t.mu.Lock()
	tx := t.open[conn]
	t.mu.Unlock()
	text, err := t.ask("show", "GET", "/v1/transactions/"+tx.ID, "")
	if err != nil {
		return 0, err
	}
	var view struct {
		Branches []json.RawMessage `json:"branches"`
	}
	err = json.Unmarshal(text, &view)
	return len(view.Branches), err
}

func (t *transactions) ask(what, method, path, body string) ([]byte, error) {
	req, res := fasthttp.AcquireRequest(), fasthttp.AcquireResponse()
	defer fasthttp.ReleaseRequest(req)
	defer fasthttp.ReleaseResponse(res)
	req.SetRequestURI("http://" + t.api + path)
	req.Header.SetMethod(method)
	req.Header.Set("Authorization", "Bearer "+secret)
	req.SetBodyString(body)
	if err := t.client.DoTimeout(req, res, apiMax); err != nil {
		return nil, fmt.Errorf("%s: %w", what, err)
	}
	if res.StatusCode() >= 300 {
		return nil, load.Failure(fmt.Sprintf("%s: status %d", what, res.StatusCode()))
	}
	return append([]byte(nil), res.Body()...), nil
}
