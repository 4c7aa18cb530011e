package takeover

import (
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"strings"
	"sync"
	"testing"
)

// books are what the replicas of a service share: its database. A call is known by its reference.
type books struct {
	mu     sync.Mutex // guards all below
	done   map[string]int
	undone map[string]int
	hang   map[string]chan struct{} // calls that take effect and are not answered
	down   chan struct{}            // not nil: calls wait for it and take no effect before
}

func newBooks() *books {
	return &books{done: map[string]int{}, undone: map[string]int{}, hang: map[string]chan struct{}{}}
}

// replica starts one server of the service.
func (b *books) replica(t *testing.T) string { return serve(t, b) }

// serve starts a service.
func serve(t *testing.T, h http.Handler) string {
	s := httptest.NewServer(h)
	t.Cleanup(s.CloseClientConnections)
	t.Cleanup(s.Close)
	return s.Listener.Addr().String()
}

// ServeHTTP does and undoes: POST /entries with the reference as the body, DELETE and GET /entries/{reference}.
func (b *books) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	body, err := io.ReadAll(r.Body)
	if err != nil {
		return
	}
	ref := strings.Trim(string(body), `"{}ref: `)
	if rest, ok := strings.CutPrefix(r.URL.Path, "/entries/"); ok {
		ref = rest
	}
	b.mu.Lock()
	down := b.down
	b.mu.Unlock()
	if down != nil {
		select {
		case <-down:
		case <-r.Context().Done():
			return
		}
	}
	b.mu.Lock()
	hang := b.hang[ref]
	switch r.Method {
	case "POST":
		b.done[ref]++
	case "DELETE":
		b.undone[ref]++
		hang = nil
	}
	stands := b.done[ref] > 0
	b.mu.Unlock()
	if hang != nil && r.Method == "POST" {
		select {
		case <-hang:
		case <-r.Context().Done():
			return
		}
	}
	if r.Method == "GET" && !stands {
		w.WriteHeader(http.StatusNotFound)
		return
	}
	fmt.Fprintf(w, `{"ref":%q}`, ref)
}

// balance compares the books with what should be in them: each reference done once, and undone once or not at all.
func (b *books) balance(t *testing.T, refs []string, undone int) {
	t.Helper()
	b.mu.Lock()
	defer b.mu.Unlock()
	wrong := 0
	for _, ref := range refs {
		if b.done[ref] != 1 || b.undone[ref] != undone {
			if wrong++; wrong <= 5 {
				t.Errorf("%s was done %d times and undone %d times, want 1 and %d", ref, b.done[ref], b.undone[ref], undone)
			}
		}
	}
	if wrong > 0 {
		t.Errorf("%d of %d are wrong", wrong, len(refs))
	}
}
