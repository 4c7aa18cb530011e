// Package takeover brings the transactions of a server of DTM to a sidecar: each is read, written into a file, stopped
// there and begun here, in this order, so that a crash between any two steps can be gone on from. What rows mean is
// decided by the sidecar; nothing is ever written to tables of the server. Start at Migration.
package takeover

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"slices"
	"time"
)

// Title is a transaction in a list.
type Title struct {
	GID     string    `json:"gid"`
	Type    string    `json:"trans_type"`
	Status  string    `json:"status"`
	Created time.Time `json:"create_time"`
}

// Finished reports whether nothing is left to do there.
func (t Title) Finished() bool { return t.Status == succeed || t.Status == failed }

// The words of DTM that this package must know.
const (
	prepared  = "prepared"
	submitted = "submitted"
	aborting  = "aborting"
	succeed   = "succeed"
	failed    = "failed"
)

// Snapshot is what a server answers to query.
type Snapshot struct {
	Transaction json.RawMessage `json:"transaction"`
	Branches    json.RawMessage `json:"branches"`
}

func (s Snapshot) title() (Title, error) {
	var t Title
	if err := json.Unmarshal(s.Transaction, &t); err != nil {
		return t, fmt.Errorf("read transaction: %w", err)
	}
	return t, nil
}

// Verdict is what a sidecar says of a takeover.
type Verdict struct {
	Outcome string `json:"outcome"`
	Done    int    `json:"done"`
	Left    int    `json:"left"`
	Next    string `json:"next"`
	Differs string `json:"differs"`
}

// ErrRefused is wrapped by a Target's reason why a transaction must stay where it is.
var ErrRefused = errors.New("refused")

// ErrEnded says that a transaction had ended before it could be stopped.
var ErrEnded = errors.New("it has ended by itself")

// Source is where the transactions are.
type Source interface {
	// List returns the unfinished ones, and those finished ones that were created since then.
	List(ctx context.Context, since time.Time) ([]Title, error)
	Read(ctx context.Context, gid string) (Snapshot, error)
	// Stop returns when the source will do no more for the transaction, or ErrEnded.
	Stop(ctx context.Context, gid string) error
	// Serves reports whether clients may still talk to the source.
	Serves() bool
}

// Target is where they go.
type Target interface {
	// TakeOver begins the transaction, or says in a dry run what that would do. A repeat has no effect.
	TakeOver(ctx context.Context, s Snapshot, dryRun bool) (Verdict, error)
}

// Migration takes transactions over, one after another.
type Migration struct {
	Source Source
	Target Target
	Since  time.Time // finished ones created before are left out
	// ClientsStopped is the operator's word that nobody submits or aborts at the source any more.
	ClientsStopped bool
}

// Item is one transaction with what becomes of it.
type Item struct {
	Title
	Verdict
	Why     string // it stays where it is, or is nowhere if Stopped; empty: it goes
	Stopped bool   // the source does no more for it
}

// Plan says what Apply would do, and changes nothing.
func (m *Migration) Plan(ctx context.Context) ([]Item, error) {
	titles, err := m.Source.List(ctx, m.Since)
	if err != nil {
		return nil, err
	}
	var items []Item
	for _, t := range ordered(titles) {
		s, err := m.Source.Read(ctx, t.GID)
		if err != nil {
			return nil, err
		}
		i, err := m.weigh(ctx, s, titles)
		if err != nil {
			return nil, fmt.Errorf("transaction %s: %w", t.GID, err)
		}
		items = append(items, i)
	}
	return items, nil
}

// ordered puts the unfinished ones first, the oldest before the others.
func ordered(titles []Title) []Title {
	titles = slices.Clone(titles)
	slices.SortStableFunc(titles, func(a, b Title) int {
		switch {
		case a.Finished() == b.Finished():
			return a.Created.Compare(b.Created)
		case a.Finished():
			return 1
		default:
			return -1
		}
	})
	return titles
}

// weigh finds what could be done with one transaction as it stands.
func (m *Migration) weigh(ctx context.Context, s Snapshot, all []Title) (Item, error) {
	t, err := s.title()
	if err != nil {
		return Item{}, err
	}
	i := Item{Title: t}
	if i.Why = m.unsafe(s, t, all); i.Why != "" {
		return i, nil
	}
	i.Verdict, err = m.Target.TakeOver(ctx, s, true)
	if errors.Is(err, ErrRefused) {
		i.Why, err = err.Error(), nil
	}
	return i, err
}

// unsafe says why a transaction must stay, whatever the target thinks of it.
func (m *Migration) unsafe(s Snapshot, t Title, all []Title) string {
	if m.Source.Serves() && !m.ClientsStopped && t.Status == prepared && (t.Type == "tcc" || t.Type == "xa") {
		return "its client may still submit it there: wait, or stop the clients and say --clients-stopped"
	}
	if rows, err := s.rows(); err == nil && len(rows) == 0 && m.Source.Serves() {
		if other := shadow(t.GID, all); other != "" {
			return fmt.Sprintf("it shows no branches, and DTM hides them in a file store if another gid begins alike: %s", other)
		}
	}
	return ""
}

// shadow returns a gid that is this one and digits, or the other way round: a file store of DTM then shows the branches of
// neither.
func shadow(gid string, all []Title) string {
	for _, o := range all {
		short, long := gid, o.GID
		if len(short) > len(long) {
			short, long = long, short
		}
		if len(long) > len(short) && long[:len(short)] == short && digits(long[len(short):]) {
			return o.GID
		}
	}
	return ""
}

func digits(s string) bool {
	for _, c := range s {
		if c < '0' || c > '9' {
			return false
		}
	}
	return true
}

// row is what must be known of a row.
type row struct {
	Op     string `json:"op"`
	Status string `json:"status"`
}

func (s Snapshot) rows() ([]row, error) {
	var rows []row
	if err := json.Unmarshal(s.Branches, &rows); err != nil {
		return nil, fmt.Errorf("read branches: %w", err)
	}
	return rows, nil
}
