package main

import (
	"bytes"
	"context"
	"crypto/rand"
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"strings"
	"time"
)

// callTimeout bounds one call to accounts or savings.
const callTimeout = 30 * time.Second

// transfers moves money by two calls. It keeps nothing: what became of a transfer stands in the ledgers of the
// two services it called.
type transfers struct {
	accounts, savings string
	client            *http.Client
}

// order is one transfer as the client asks for it.
type order struct {
	From   string   `json:"from"`
	To     string   `json:"to"`
	Amount *float64 `json:"amount"`
}

func newTransfers(c config) *transfers {
	transport := &http.Transport{Proxy: http.ProxyFromEnvironment, MaxIdleConnsPerHost: 256}
	return &transfers{
		accounts: strings.TrimSuffix(c.accounts, "/"), savings: strings.TrimSuffix(c.savings, "/"),
		client: &http.Client{
			Transport: transport, Timeout: callTimeout,
			CheckRedirect: func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse },
		},
	}
}

func (t *transfers) handler() http.Handler {
	mux := http.NewServeMux()
	mux.HandleFunc("POST /transfers", t.transfer)
	mux.HandleFunc("GET /healthz", healthy)
	mux.HandleFunc("/", unknownRoute)
	return mux
}

// transfer takes from one account, then gives to the other, and stops at the first answer that is not a success.
// The first call is not taken back here.
func (t *transfers) transfer(w http.ResponseWriter, r *http.Request) {
	body, ok := readBody(w, r)
	if !ok {
		return
	}
	var o order
	if err := json.Unmarshal(body, &o); err != nil || o.From == "" || o.To == "" {
		answer(w, http.StatusBadRequest, refusal("body: want a JSON object with from, to and amount"))
		return
	}
	amount, ok := wholeAmount(o.Amount)
	if !ok {
		answer(w, http.StatusBadRequest, refusal("amount: want an integer from 1 to 9007199254740991"))
		return
	}
	id := transferID(r.Header)
	change := compact(map[string]any{"amount": amount, "transfer": id})
	for _, target := range []string{
		t.accounts + "/accounts/" + url.PathEscape(o.From) + "/withdrawals",
		t.savings + "/accounts/" + url.PathEscape(o.To) + "/deposits",
	} {
		status, text := t.call(r, target, change)
		if status != http.StatusCreated {
			answer(w, status, text)
			return
		}
	}
	answer(w, http.StatusCreated, compact(map[string]string{"id": id}))
}

// call returns 201, or what the client is to be told instead: 409 for a refusal, 502 for anything that leaves
// the effect unknown.
func (t *transfers) call(in *http.Request, target string, body []byte) (int, []byte) {
	// A client that goes away does not stop a transfer in the middle.
	out, err := http.NewRequestWithContext(context.WithoutCancel(in.Context()), http.MethodPost, target, bytes.NewReader(body))
	if err != nil {
		return http.StatusBadGateway, refusal(err.Error())
	}
	out.Header.Set("Content-Type", "application/json")
	// As any traced service does; X-Bank-Hold-Ms lets a demonstration hold an answer further down.
	for _, name := range []string{"Traceparent", "Tracestate", "Baggage", "X-Bank-Hold-Ms"} {
		for _, v := range in.Header.Values(name) {
			out.Header.Add(name, v)
		}
	}
	res, err := t.client.Do(out)
	if err != nil {
		return http.StatusBadGateway, refusal(err.Error())
	}
	defer res.Body.Close()
	text, err := io.ReadAll(io.LimitReader(res.Body, bodyBytesMax))
	if err != nil {
		return http.StatusBadGateway, refusal(fmt.Sprintf("read the answer of %s: %v", target, err))
	}
	return verdict(res.StatusCode), passOn(target, res.StatusCode, text)
}

// verdict maps a status to what the client hears. Time-outs and overload say nothing about the effect.
func verdict(status int) int {
	switch {
	case status >= 200 && status < 300:
		return http.StatusCreated
	case status == http.StatusRequestTimeout, status == http.StatusTooEarly, status == http.StatusTooManyRequests:
		return http.StatusBadGateway
	case status >= 400 && status < 500:
		return http.StatusConflict
	}
	return http.StatusBadGateway
}

// passOn is the error that the called service gave, or one that says what it answered.
func passOn(target string, status int, text []byte) []byte {
	var said struct {
		Error string `json:"error"`
	}
	if json.Unmarshal(text, &said) == nil && said.Error != "" {
		return refusal(said.Error)
	}
	return refusal(fmt.Sprintf("%s answered %d", target, status))
}

// transferID is the reference under which both services book the transfer: the client's Idempotency-Key, so that
// it can ask what became of it even if it was never answered, else a random one.
func transferID(h http.Header) string {
	if key := strings.Trim(h.Get("Idempotency-Key"), `"`); key != "" {
		return key
	}
	return "t-" + rand.Text()
}
