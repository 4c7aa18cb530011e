package takeover

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"time"
)

// Server is a server of DTM that runs. It is asked by its HTTP API.
type Server struct {
	Base   string // http://host:port
	Client *http.Client
}

// Serves implements Source.
func (s *Server) Serves() bool { return true }

// List implements Source. A server that filters less than it is asked to is filtered here.
func (s *Server) List(ctx context.Context, since time.Time) ([]Title, error) {
	var found []Title
	seen := map[string]bool{} // some stores show an item twice
	for _, status := range []string{prepared, submitted, aborting, succeed, failed} {
		q := url.Values{"limit": {"100"}, "status": {status}}
		ended := Title{Status: status}.Finished()
		if ended {
			q.Set("createTimeStart", fmt.Sprint(since.UnixMilli()))
		}
		titles, err := s.pages(ctx, q)
		if errors.Is(err, errAnswer) && ended {
			// Some stores cannot compare times once a workflow has ended.
			q.Del("createTimeStart")
			titles, err = s.pages(ctx, q)
		}
		if err != nil {
			return nil, fmt.Errorf("list transactions that are %s: %w", status, err)
		}
		for _, t := range titles {
			if t.Status == status && !seen[t.GID] && (!ended || !t.Created.Before(since)) {
				seen[t.GID], found = true, append(found, t)
			}
		}
	}
	return found, nil
}

func (s *Server) pages(ctx context.Context, q url.Values) ([]Title, error) {
	var found []Title
	for {
		var page struct {
			Transactions []Title `json:"transactions"`
			Next         string  `json:"next_position"`
		}
		if err := s.call(ctx, http.MethodGet, "all?"+q.Encode(), nil, &page); err != nil {
			return nil, err
		}
		found = append(found, page.Transactions...)
		if page.Next == "" || page.Next == q.Get("position") {
			return found, nil
		}
		q.Set("position", page.Next)
	}
}

// Read implements Source.
func (s *Server) Read(ctx context.Context, gid string) (Snapshot, error) {
	var shot Snapshot
	err := s.call(ctx, http.MethodGet, "query?"+url.Values{"gid": {gid}}.Encode(), nil, &shot)
	switch {
	case err != nil:
		return shot, fmt.Errorf("query %s: %w", gid, err)
	case len(shot.Transaction) == 0 || string(shot.Transaction) == "null":
		return shot, fmt.Errorf("query %s: the server does not know it any more", gid)
	}
	if string(shot.Branches) == "null" || len(shot.Branches) == 0 {
		shot.Branches = json.RawMessage("[]")
	}
	return shot, nil
}

// Stop implements Source: the server calls nothing any more, and keeps its rows.
func (s *Server) Stop(ctx context.Context, gid string) error {
	var done struct{}
	err := s.call(ctx, http.MethodPost, "forceStop", map[string]string{"gid": gid}, &done)
	if a, ok := errors.AsType[*answerError](err); ok && a.status == http.StatusConflict {
		return ErrEnded
	}
	if err != nil {
		return fmt.Errorf("stop it: %w", err)
	}
	return nil
}

// errAnswer is wrapped by what is wrong with an answer, rather than with the way to it.
var errAnswer = errors.New("answer")

type answerError struct {
	status int
	text   string
}

// Error says what was answered.
func (e *answerError) Error() string { return fmt.Sprintf("answered %d %s", e.status, e.text) }

// Unwrap tells it from an error of the network.
func (e *answerError) Unwrap() error { return errAnswer }

// answerMax bounds one answer.
const answerMax = 64 << 20

func (s *Server) call(ctx context.Context, method, path string, in map[string]string, out any) error {
	var body io.Reader
	if in != nil {
		text, err := json.Marshal(in)
		if err != nil {
			return err
		}
		body = bytes.NewReader(text)
	}
	r, err := http.NewRequestWithContext(ctx, method, s.Base+"/api/dtmsvr/"+path, body)
	if err != nil {
		return err
	}
	r.Header.Set("Content-Type", "application/json")
	res, err := s.Client.Do(r)
	if err != nil {
		return err
	}
	defer res.Body.Close()
	text, err := io.ReadAll(io.LimitReader(res.Body, answerMax))
	if err != nil {
		return err
	}
	if res.StatusCode != http.StatusOK {
		return &answerError{res.StatusCode, string(bytes.TrimSpace(text[:min(len(text), 300)]))}
	}
	if err := json.Unmarshal(text, out); err != nil {
		return fmt.Errorf("%w: %w; is it a server of DTM?", errAnswer, err)
	}
	return nil
}
