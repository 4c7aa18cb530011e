package main

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"os"
	"slices"
	"strconv"
	"strings"
	"time"

	"txmesh/cmd/txmesh/diagram"
)

// apiClient talks to the API of one sidecar.
type apiClient struct {
	base  string // http://host:port
	token string
	http  *http.Client
}

// apiTimeout is longer than the sidecar lets a commit wait.
const apiTimeout = 30 * time.Second

// newAPIClient checks the address and reads the token.
func newAPIClient(api, tokenFile string) (*apiClient, error) {
	base := api
	if !strings.Contains(base, "://") {
		base = "http://" + base
	}
	u, err := url.Parse(base)
	if err != nil || u.Host == "" || u.Scheme != "http" && u.Scheme != "https" || strings.Trim(u.Path, "/") != "" {
		return nil, fmt.Errorf("--api %q is not the address of an API; write for example 127.0.0.1:15820", api)
	}
	if tokenFile == "" {
		return nil, errors.New("--token-file is missing; name the file with the API's token, which the sidecar logs when it starts")
	}
	token, err := os.ReadFile(tokenFile)
	if err != nil {
		return nil, fmt.Errorf("--token-file: %w; name the file with the API's token, which the sidecar logs when it starts", err)
	}
	return &apiClient{base: u.Scheme + "://" + u.Host, token: strings.TrimSpace(string(token)),
		http: &http.Client{Timeout: apiTimeout}}, nil
}

// apiError is what the API refused, as problem+json says it.
type apiError struct {
	Status int    `json:"status"`
	Code   string `json:"code"`
	Title  string `json:"title"`
	Detail string `json:"detail"`
	Remedy string `json:"remedy"`
}

// Error says what was refused and what to do.
func (e *apiError) Error() string {
	text := e.Title
	if e.Code != "" {
		text = e.Code + ": " + text
	}
	if e.Detail != "" {
		text += ": " + e.Detail
	}
	if e.Remedy != "" {
		text += "; " + e.Remedy
	}
	return text
}

// call makes one request and returns the body of a 2xx answer.
func (c *apiClient) call(ctx context.Context, method, path string, in any) ([]byte, error) {
	var body io.Reader
	if in != nil {
		text, err := json.Marshal(in)
		if err != nil {
			return nil, fmt.Errorf("encode the request: %w", err)
		}
		body = bytes.NewReader(text)
	}
	req, err := http.NewRequestWithContext(ctx, method, c.base+path, body)
	if err != nil {
		return nil, fmt.Errorf("call the API: %w", err)
	}
	req.Header.Set("Authorization", "Bearer "+c.token)
	if in != nil {
		req.Header.Set("Content-Type", "application/json")
	}
	res, err := c.http.Do(req)
	if err != nil {
		return nil, fmt.Errorf("call the API: %w; is the sidecar running, and is its API at %s?", err, c.base)
	}
	defer res.Body.Close()
	text, err := io.ReadAll(res.Body)
	if err != nil {
		return nil, fmt.Errorf("read the answer of the API: %w", err)
	}
	if res.StatusCode >= 300 {
		refused := &apiError{Status: res.StatusCode}
		if json.Unmarshal(text, refused) != nil || refused.Title == "" {
			refused.Title = fmt.Sprintf("%s answered %s, which is no answer of a sidecar's API", c.base, res.Status)
			refused.Remedy = "check --api"
		}
		return nil, refused
	}
	return text, nil
}

// txSummary is a transaction in a list.
type txSummary struct {
	ID       string    `json:"id"`
	Mode     string    `json:"mode"`
	Name     string    `json:"name,omitempty"`
	Phase    string    `json:"phase"`
	Reason   string    `json:"reason,omitempty"`
	Branches int       `json:"branches"`
	Begun    time.Time `json:"begun"`
	Finished time.Time `json:"finished,omitzero"`
}

// txFilter selects transactions.
type txFilter struct {
	phases []string
	name   string
	limit  int
}

// list returns at most limit transactions, newest first and never nil, and whether there are more.
func (c *apiClient) list(ctx context.Context, f txFilter) ([]txSummary, bool, error) {
	const pageMax = 1000
	found, cursor := []txSummary{}, ""
	for {
		q := url.Values{"phase": f.phases, "limit": {strconv.Itoa(min(f.limit-len(found), pageMax))}}
		if f.name != "" {
			q.Set("name", f.name)
		}
		if cursor != "" {
			q.Set("cursor", cursor)
		}
		text, err := c.call(ctx, http.MethodGet, "/v1/transactions?"+q.Encode(), nil)
		if err != nil {
			return nil, false, err
		}
		var page struct {
			Transactions []txSummary `json:"transactions"`
			Next         string      `json:"next"`
		}
		if err := json.Unmarshal(text, &page); err != nil {
			return nil, false, fmt.Errorf("read the list of transactions: %w", err)
		}
		found, cursor = append(found, page.Transactions...), page.Next
		if cursor == "" || len(found) >= f.limit {
			return found, cursor != "", nil
		}
	}
}

// txDetail is one transaction with all that its journal says.
type txDetail struct {
	ID       string          `json:"id"`
	Service  string          `json:"service,omitempty"` // beside the owner
	Mode     string          `json:"mode"`
	Name     string          `json:"name,omitempty"`
	Phase    string          `json:"phase"`
	Reason   string          `json:"reason,omitempty"`
	Begun    time.Time       `json:"begun"`
	Expires  time.Time       `json:"expires,omitzero"`
	Finished time.Time       `json:"finished,omitzero"`
	Branches []txBranch      `json:"branches"`
	Asked    *txOp           `json:"asked,omitempty"`
	Told     *txOp           `json:"told,omitempty"`
	History  []diagram.Event `json:"history"`
}

type txBranch struct {
	Branch  string   `json:"branch"`
	Name    string   `json:"name,omitempty"`
	Service string   `json:"service,omitempty"`
	Home    string   `json:"home,omitempty"`
	After   []string `json:"after,omitempty"`
	Fate    string   `json:"fate"`
	Ops     []txOp   `json:"ops"`
}

type txOp struct {
	Op       string    `json:"op"`
	Outcome  string    `json:"outcome"`
	Attempts int       `json:"attempts,omitempty"`
	Since    time.Time `json:"since,omitzero"`
	Next     time.Time `json:"next,omitzero"`
	Cause    string    `json:"cause,omitempty"`
	Halted   bool      `json:"halted,omitempty"`
	Forced   bool      `json:"forced,omitempty"`
}

// show returns one transaction, and the API's own words for it.
func (c *apiClient) show(ctx context.Context, id string) (txDetail, []byte, error) {
	text, err := c.call(ctx, http.MethodGet, "/v1/transactions/"+url.PathEscape(id), nil)
	if err != nil {
		return txDetail{}, nil, err
	}
	var d txDetail
	if err := json.Unmarshal(text, &d); err != nil {
		return txDetail{}, nil, fmt.Errorf("read transaction %s: %w", id, err)
	}
	return d, text, nil
}

// txOutcome is what the API answers to an act.
type txOutcome struct {
	ID      string `json:"id"`
	Status  string `json:"status"`
	Reason  string `json:"reason,omitempty"`
	Waiting []struct {
		Branch string `json:"branch"`
		Name   string `json:"name"`
		Cause  string `json:"cause,omitempty"`
	} `json:"waiting,omitempty"`
}

// act posts to a path below the transaction.
func (c *apiClient) act(ctx context.Context, id, path string, in any) (txOutcome, []byte, error) {
	text, err := c.call(ctx, http.MethodPost, "/v1/transactions/"+url.PathEscape(id)+path, in)
	if err != nil {
		return txOutcome{}, nil, err
	}
	var o txOutcome
	if err := json.Unmarshal(text, &o); err != nil {
		return txOutcome{}, nil, fmt.Errorf("read the answer for transaction %s: %w", id, err)
	}
	return o, text, nil
}

// forward is the state of the branch's own call.
func (b txBranch) forward() txOp {
	i := slices.IndexFunc(b.Ops, func(o txOp) bool { return o.Op == "forward" })
	if i < 0 {
		return txOp{}
	}
	return b.Ops[i]
}

// drawing is the transaction as a diagram.
func (d txDetail) drawing() diagram.Drawing {
	g := diagram.Drawing{Service: d.Service, Rooted: d.Mode == "intercepted", History: d.History}
	for _, b := range d.Branches {
		g.Branches = append(g.Branches, diagram.Branch{ID: b.Branch, Name: b.Name, Service: b.Service, Sidecar: b.Home != ""})
	}
	return g
}
