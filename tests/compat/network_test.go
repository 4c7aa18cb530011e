package compat

import (
	"bytes"
	"cmp"
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"slices"
	"sync"
	"testing"
)

// network is the way to one service: all calls of its branches go through it. It notes them and can fail.
type network struct {
	*httptest.Server
	service  string
	lose     string // branch and op, as calls has them, of the request that is not delivered: its caller hears a refusal
	cut      string // branch and op of the request that is delivered, but whose answer is lost, once
	together int    // none is delivered before so many have come

	met chan struct{} // closed when they have

	mu    sync.Mutex // guards the rest
	calls []string   // branch and op, in the order of their arrival
	lost  *http.Request
}

func newNetwork(t *testing.T, service string) *network {
	n := &network{service: service, met: make(chan struct{})}
	n.Server = httptest.NewServer(n)
	t.Cleanup(n.Close)
	return n
}

// ServeHTTP implements http.Handler.
func (n *network) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	q := r.URL.Query()
	// clients before DTM 1.10 name the op branch_type
	call := q.Get("branch_id") + " " + cmp.Or(q.Get("op"), q.Get("branch_type"))
	body, err := io.ReadAll(r.Body)
	if err != nil {
		http.Error(w, err.Error(), http.StatusBadGateway)
		return
	}
	// not in the context of r: it may be sent after r has ended
	out, err := http.NewRequest(r.Method, "http://"+n.service+r.URL.RequestURI(), bytes.NewReader(body))
	if err != nil {
		http.Error(w, err.Error(), http.StatusBadGateway)
		return
	}
	out.Header = r.Header.Clone()

	n.mu.Lock()
	first := !slices.Contains(n.calls, call)
	n.calls = append(n.calls, call)
	if len(n.calls) == n.together {
		close(n.met)
	}
	if call == n.lose {
		n.lost = out
	}
	n.mu.Unlock()
	if call == n.lose {
		http.Error(w, `{"dtm_result":"FAILURE"}`, http.StatusConflict)
		return
	}
	if n.together > 0 {
		select {
		case <-n.met:
		case <-r.Context().Done(): // the caller has given up
			return
		}
	}
	status, answer, err := deliver(out)
	if err != nil || call == n.cut && first {
		http.Error(w, fmt.Sprint("no answer: ", err), http.StatusBadGateway)
		return
	}
	w.Header().Set("Content-Type", "application/json")
	w.WriteHeader(status)
	_, _ = w.Write(answer) // the caller may be gone
}

func deliver(r *http.Request) (int, []byte, error) {
	res, err := http.DefaultClient.Do(r)
	if err != nil {
		return 0, nil, err
	}
	defer res.Body.Close()
	body, err := io.ReadAll(res.Body)
	return res.StatusCode, body, err
}

// deliverLate brings the request that was lost to the service after all.
func (n *network) deliverLate(t *testing.T) {
	t.Helper()
	n.mu.Lock()
	lost := n.lost
	n.mu.Unlock()
	if lost == nil {
		t.Fatalf("no request %q came to be lost", n.lose)
	}
	if status, body, err := deliver(lost); err != nil || status != http.StatusOK {
		t.Errorf("the late request: status %d, body %s, error %v; want 200: the barrier drops it in silence", status, body, err)
	}
}

func (n *network) seen() []string {
	n.mu.Lock()
	defer n.mu.Unlock()
	return slices.Clone(n.calls)
}

func getJSON(t *testing.T, url string, reply any) {
	t.Helper()
	r, err := http.NewRequestWithContext(t.Context(), http.MethodGet, url, nil)
	if err != nil {
		t.Fatal(err)
	}
	status, body, err := deliver(r)
	if err == nil && status == http.StatusOK {
		err = json.Unmarshal(body, reply)
	}
	if err != nil || status != http.StatusOK {
		t.Fatalf("get %s: status %d, body %s, error %v", url, status, body, err)
	}
}
