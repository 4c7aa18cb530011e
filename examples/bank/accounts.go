package main

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"io"
	"math"
	"net/http"
	"strconv"
	"strings"
	"time"
)

const (
	bodyBytesMax = 64 << 10
	keyBytesMax  = 255
)

// accounts serves a book over HTTP, as accounts or as savings.
type accounts struct {
	book  *book
	delay time.Duration
	hold  time.Duration
}

func newAccounts(c config, b *book) *accounts {
	return &accounts{book: b, delay: c.delay, hold: c.hold}
}

func (a *accounts) handler() http.Handler {
	mux := http.NewServeMux()
	kinds := "/accounts/{account}/" + a.book.kind + "s"
	mux.HandleFunc("POST "+kinds, a.change)
	mux.HandleFunc("DELETE "+kinds+"/{id}", a.undo)
	mux.HandleFunc("GET /accounts/{account}", a.account)
	mux.HandleFunc("GET /balances", a.balances)
	mux.HandleFunc("GET /entries", a.entries)
	mux.HandleFunc("GET /healthz", healthy)
	mux.HandleFunc("/", unknownRoute)
	return mux
}

func (a *accounts) change(w http.ResponseWriter, r *http.Request) {
	body, ok := readBody(w, r)
	if !ok {
		return
	}
	var want struct {
		Amount   *float64 `json:"amount"`
		Transfer string   `json:"transfer"`
	}
	if err := json.Unmarshal(body, &want); err != nil {
		answer(w, http.StatusBadRequest, refusal("body: want a JSON object with amount and transfer"))
		return
	}
	amount, ok := wholeAmount(want.Amount)
	if !ok {
		answer(w, http.StatusBadRequest, refusal("amount: want an integer from 1 to 9007199254740991"))
		return
	}
	account := r.PathValue("account")
	a.once(w, r, body, func() entry { return a.book.change(account, amount, want.Transfer) })
}

func (a *accounts) undo(w http.ResponseWriter, r *http.Request) {
	body, ok := readBody(w, r)
	if !ok {
		return
	}
	account, id := r.PathValue("account"), r.PathValue("id")
	a.once(w, r, body, func() entry { return a.book.undo(account, id) })
}

// once answers after the effect is durable, so that a held or delayed answer is one that may get lost on its
// way, not one whose request did nothing.
func (a *accounts) once(w http.ResponseWriter, r *http.Request, body []byte, decide func() entry) {
	key := strings.Trim(r.Header.Get("Idempotency-Key"), `"`)
	if len(key) > keyBytesMax {
		answer(w, http.StatusBadRequest, refusal("idempotency-key: want at most 255 bytes"))
		return
	}
	sum := sha256.Sum256([]byte(r.Method + " " + r.URL.EscapedPath() + "\n" + string(body)))
	status, text := a.book.once(key, hex.EncodeToString(sum[:]), decide)
	pause(r.Context(), a.delay+a.held(r))
	answer(w, status, text)
}

// held is how long the answer waits so that somebody can break something meanwhile.
func (a *accounts) held(r *http.Request) time.Duration {
	if ms, err := strconv.Atoi(r.Header.Get("X-Bank-Hold-Ms")); err == nil && ms > 0 {
		return time.Duration(ms) * time.Millisecond
	}
	if r.Method == http.MethodPost && r.PathValue("account") == "slow" {
		return a.hold
	}
	return 0
}

func (a *accounts) account(w http.ResponseWriter, r *http.Request) {
	account := r.PathValue("account")
	a.read(w, func() (int, any) {
		balance, known := a.book.balances[account]
		if !known {
			return http.StatusNotFound, refusal("no account " + account)
		}
		return http.StatusOK, struct {
			ID      string `json:"id"`
			Balance int64  `json:"balance"`
			Closed  bool   `json:"closed,omitempty"`
		}{account, balance, a.book.closed[account]}
	})
}

func (a *accounts) balances(w http.ResponseWriter, _ *http.Request) {
	a.read(w, func() (int, any) { return http.StatusOK, a.book.balances })
}

func (a *accounts) entries(w http.ResponseWriter, r *http.Request) {
	transfer := r.URL.Query().Get("transfer")
	a.read(w, func() (int, any) {
		found := []entry{}
		for _, e := range a.book.entries {
			if transfer == "" || e.Transfer == transfer {
				found = append(found, e)
			}
		}
		return http.StatusOK, map[string][]entry{"entries": found}
	})
}

// read answers with what is durable: nobody sees a balance that a crash could take back.
func (a *accounts) read(w http.ResponseWriter, view func() (int, any)) {
	a.book.mu.Lock()
	status, v := view()
	text := compact(v)
	n := a.book.submitted()
	a.book.mu.Unlock()
	a.book.file.wait(n)
	answer(w, status, text)
}

func wholeAmount(f *float64) (int64, bool) {
	if f == nil || *f != math.Trunc(*f) || *f < 1 || *f > amountMax {
		return 0, false
	}
	return int64(*f), true
}

func readBody(w http.ResponseWriter, r *http.Request) ([]byte, bool) {
	body, err := io.ReadAll(http.MaxBytesReader(w, r.Body, bodyBytesMax))
	if large := (*http.MaxBytesError)(nil); errors.As(err, &large) {
		answer(w, http.StatusRequestEntityTooLarge, refusal("body: want at most 65536 bytes"))
		return nil, false
	}
	if err != nil {
		answer(w, http.StatusBadRequest, refusal("body: broke off"))
		return nil, false
	}
	return body, true
}

func healthy(w http.ResponseWriter, _ *http.Request) { answer(w, http.StatusOK, []byte(`{"ok":true}`)) }

func unknownRoute(w http.ResponseWriter, r *http.Request) {
	answer(w, http.StatusNotFound, refusal("no route "+r.Method+" "+r.URL.Path))
}

func answer(w http.ResponseWriter, status int, text []byte) {
	w.Header().Set("Content-Type", "application/json")
	w.Header().Set("Content-Length", strconv.Itoa(len(text)))
	w.WriteHeader(status)
	_, _ = w.Write(text) // the client may be gone; the entry is durable whether it hears of it or not
}

// pause waits, unless the caller goes away first.
func pause(ctx context.Context, d time.Duration) {
	if d <= 0 {
		return
	}
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-t.C:
	case <-ctx.Done():
	}
}
