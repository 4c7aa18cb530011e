package dtm

import (
	"context"
	"fmt"
	"net/http"
	"net/url"
	"sync"
)

// Branch says which part of which transaction a call is for.
type Branch struct {
	TransType string
	GID       string
	ID        string
	Op        string

	Server    string       // base URL of the door, if the caller has sent it
	Phase2URL string       // of an XA action: where commit and rollback go
	HTTP      *http.Client // for calls to the door and to others; nil means http.DefaultClient
}

// BranchOf reads who is called from the query of a request, or from its dtm- headers. What must be there and is not is
// an error.
func BranchOf(r *http.Request) (Branch, error) {
	query := r.URL.Query()
	get := func(name string) string {
		if v := query.Get(name); v != "" {
			return v
		}
		return r.Header.Get("dtm-" + name)
	}
	b := Branch{TransType: get("trans_type"), GID: get("gid"), ID: get("branch_id"), Op: get("op"), Server: get("dtm"), Phase2URL: get("phase2_url")}
	if b.Op == "" {
		b.Op = query.Get("branch_type") // two clients call it so
	}
	return b, b.Check()
}

// Check returns an error that names what is missing.
func (b Branch) Check() error {
	for _, field := range []struct{ name, value string }{{"trans_type", b.TransType}, {"gid", b.GID}, {"branch_id", b.ID}, {"op", b.Op}} {
		if field.value == "" {
			return fmt.Errorf("branch %q of %q: %s is missing; a DTM door sends it in the query", b.ID, b.GID, field.name)
		}
	}
	return nil
}

// Post calls a URL as this branch and returns the body of a success. The error wraps ErrFailure or ErrOngoing if the
// answer says so. A workflow makes its calls with it.
func (b Branch) Post(ctx context.Context, target string, payload any) ([]byte, error) {
	return b.call(ctx, http.MethodPost, target, payload, nil, nil)
}

// call adds the branch and what is extra to the target's own query.
func (b Branch) call(ctx context.Context, method, target string, payload any, extra, headers map[string]string) ([]byte, error) {
	u, err := url.Parse(target)
	if err != nil {
		return nil, fmt.Errorf("%s of branch %s: %w", b.Op, b.ID, err)
	}
	q := u.Query()
	q.Set("gid", b.GID)
	q.Set("trans_type", b.TransType)
	q.Set("branch_id", b.ID)
	q.Set("op", b.Op)
	for name, value := range extra {
		q.Set(name, value)
	}
	u.RawQuery = q.Encode()
	text, err := payloadText(payload)
	if err != nil {
		return nil, fmt.Errorf("payload for %s: %w", target, err)
	}
	var body []byte
	if method == http.MethodPost {
		body = []byte(text)
	}
	status, answer, err := exchange(ctx, b.HTTP, method, u.String(), body, headers)
	if err == nil {
		err = outcome(status, answer)
	}
	if err != nil {
		return nil, fmt.Errorf("%s of branch %s at %s: %w", b.Op, b.ID, target, err)
	}
	return answer, nil
}

// The bounds of branch ids, which have two digits for each level.
const (
	childrenMax  = 99
	parentLenMax = 19
)

// numbers gives the ids of the branches below one parent.
type numbers struct {
	parent string
	mu     sync.Mutex // guards last
	last   int
}

func (n *numbers) next() (string, error) {
	n.mu.Lock()
	defer n.mu.Unlock()
	if len(n.parent) > parentLenMax {
		return "", fmt.Errorf("branch %s: has no room for branches of its own; nest ten levels at most", n.parent)
	}
	if n.last == childrenMax {
		return "", fmt.Errorf("branch %q: has %d branches already, which is the most", n.parent, childrenMax)
	}
	n.last++
	return fmt.Sprintf("%s%02d", n.parent, n.last), nil
}
