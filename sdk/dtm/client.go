package dtm

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"strings"
	"time"
)

// answerBytesMax is more than any answer of a door or a branch should have.
const answerBytesMax = 16 << 20

// Client asks a door what concerns no transaction of the caller's own.
type Client struct {
	Server string       // base URL of the door, such as http://localhost:36789/api/dtmsvr
	HTTP   *http.Client // nil means http.DefaultClient
}

// NewGID returns an id that the door has never given before.
func (c Client) NewGID(ctx context.Context) (string, error) {
	answer, err := c.do(ctx, http.MethodGet, "newGid", nil)
	if err != nil {
		return "", fmt.Errorf("get a gid: %w", err)
	}
	var a struct {
		GID string `json:"gid"`
	}
	if err := json.Unmarshal(answer, &a); err != nil {
		return "", fmt.Errorf("get a gid: %w", err)
	}
	if a.GID == "" {
		return "", fmt.Errorf("get a gid: %s has none; is %s the base URL of a DTM door?", answer, c.Server)
	}
	return a.GID, nil
}

// The statuses of a transaction; the last two are final.
const (
	StatusPrepared  = "prepared"
	StatusSubmitted = "submitted"
	StatusAborting  = "aborting"
	StatusSucceed   = "succeed"
	StatusFailed    = "failed"
)

// Transaction is what the door tells of one.
type Transaction struct {
	GID            string     `json:"gid"`
	TransType      string     `json:"trans_type"`
	Status         string     `json:"status"`
	RollbackReason string     `json:"rollback_reason"`
	Result         string     `json:"result"` // of a workflow, in base64
	CreateTime     *time.Time `json:"create_time"`
	FinishTime     *time.Time `json:"finish_time"`
	RollbackTime   *time.Time `json:"rollback_time"`
	Branches       []Row      `json:"-"`
}

// Final reports whether the transaction has ended.
func (t Transaction) Final() bool { return t.Status == StatusSucceed || t.Status == StatusFailed }

// Row is one op of one branch as the door keeps it.
type Row struct {
	BranchID string `json:"branch_id"`
	Op       string `json:"op"`
	Status   string `json:"status"`
	URL      string `json:"url"`
	Data     []byte `json:"bin_data"`
}

// Query returns what the door knows of a transaction, or ErrNotFound.
func (c Client) Query(ctx context.Context, gid string) (Transaction, error) {
	answer, err := c.do(ctx, http.MethodGet, "query?gid="+url.QueryEscape(gid), nil)
	if err != nil {
		return Transaction{}, fmt.Errorf("query %s: %w", gid, err)
	}
	var a struct {
		Transaction *Transaction `json:"transaction"`
		Branches    []Row        `json:"branches"`
	}
	if err := json.Unmarshal(answer, &a); err != nil {
		return Transaction{}, fmt.Errorf("query %s: %w", gid, err)
	}
	if a.Transaction == nil {
		return Transaction{}, fmt.Errorf("query %s: %w", gid, ErrNotFound)
	}
	a.Transaction.Branches = a.Branches
	return *a.Transaction, nil
}

func (c Client) post(ctx context.Context, verb string, value any) ([]byte, error) {
	text, err := json.Marshal(value)
	if err != nil {
		return nil, err
	}
	return c.do(ctx, http.MethodPost, verb, text)
}

// do makes one call to the door. The status decides, and the word in its own field: the answer may tell of failures.
func (c Client) do(ctx context.Context, method, path string, body []byte) ([]byte, error) {
	status, answer, err := exchange(ctx, c.HTTP, method, strings.TrimSuffix(c.Server, "/")+"/"+path, body, nil)
	if err != nil {
		return nil, err
	}
	var a struct {
		Result  string `json:"dtm_result"`
		Message string `json:"message"`
	}
	_ = json.Unmarshal(answer, &a) // what is no JSON has no fields; the status speaks
	if a.Message == "" {
		a.Message = strings.TrimSpace(string(answer))
	}
	switch {
	case status == http.StatusTooEarly || a.Result == ErrOngoing.Error():
		return nil, fmt.Errorf("the door answers %d %s: %w", status, a.Message, ErrOngoing)
	case status == http.StatusConflict || a.Result == ErrFailure.Error():
		return nil, fmt.Errorf("the door answers %d %s: %w", status, a.Message, ErrFailure)
	case status != http.StatusOK:
		return nil, fmt.Errorf("the door answers %d %s", status, a.Message)
	}
	return answer, nil
}

// outcome is the protocol's rule for the answer of a branch, where the words count wherever they stand.
func outcome(status int, answer []byte) error {
	switch {
	case status == http.StatusTooEarly || bytes.Contains(answer, []byte(ErrOngoing.Error())):
		return fmt.Errorf("%d %s: %w", status, answer, ErrOngoing)
	case status == http.StatusConflict || bytes.Contains(answer, []byte(ErrFailure.Error())):
		return fmt.Errorf("%d %s: %w", status, answer, ErrFailure)
	case status != http.StatusOK:
		return fmt.Errorf("%d %s", status, answer)
	}
	return nil
}

func exchange(ctx context.Context, c *http.Client, method, target string, body []byte, headers map[string]string) (int, []byte, error) {
	req, err := http.NewRequestWithContext(ctx, method, target, bytes.NewReader(body))
	if err != nil {
		return 0, nil, err
	}
	if body != nil {
		req.Header.Set("Content-Type", "application/json")
	}
	for name, value := range headers {
		req.Header.Set(name, value)
	}
	if c == nil {
		c = http.DefaultClient
	}
	res, err := c.Do(req)
	if err != nil {
		return 0, nil, err
	}
	defer res.Body.Close()
	answer, err := io.ReadAll(io.LimitReader(res.Body, answerBytesMax+1))
	if err != nil {
		return 0, nil, fmt.Errorf("read the answer of %s: %w", target, err)
	}
	if len(answer) > answerBytesMax {
		return 0, nil, errors.New(target + " answers more than 16 MiB")
	}
	return res.StatusCode, answer, nil
}
