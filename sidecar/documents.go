package sidecar

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"sync"
	"time"

	"txmesh/interceptor"
	"txmesh/policies"
	"txmesh/sidecar/outbound"
	"txmesh/sidecar/peer"
	"txmesh/txlog"
	"txmesh/txn"
)

// documents keeps policy documents beside the journal, under their hash, for as long as a transaction needs them.
type documents struct {
	rows txlog.Table

	writing sync.Mutex           // held while rows are written, so that trim and Keep do not cross
	mu      sync.Mutex           // guards durable
	durable map[string]time.Time // hashes that are in rows, and when each was last put in force or asked for
}

type keptDocument struct {
	Name string `json:"name"`
	Data []byte `json:"data"`
}

// unusedMin is how long a document outlives its last known use: a request that found it in force a moment ago may
// still be about to enlist.
const unusedMin = time.Hour

func newDocuments(rows txlog.Table) *documents {
	return &documents{rows: rows, durable: map[string]time.Time{}}
}

// Get returns a document, or an error that wraps both outbound.ErrDocument and peer.ErrDocument.
func (d *documents) Get(ctx context.Context, hash string) (policies.Source, error) {
	d.isDurable(hash)
	value, err := d.rows.Get(ctx, hash)
	if errors.Is(err, txlog.ErrNotFound) {
		return policies.Source{}, fmt.Errorf("policy document %s: %w: %w", hash, outbound.ErrDocument, peer.ErrDocument)
	}
	if err != nil {
		return policies.Source{}, fmt.Errorf("policy document %s: %w", hash, err)
	}
	var k keptDocument
	if err := json.Unmarshal(value, &k); err != nil {
		return policies.Source{}, fmt.Errorf("policy document %s: %w", hash, err)
	}
	return policies.Source(k), nil
}

// Keep returns when the document is durable.
func (d *documents) Keep(ctx context.Context, hash string, doc policies.Source) error {
	if d.isDurable(hash) {
		return nil
	}
	d.writing.Lock()
	defer d.writing.Unlock()
	value, err := json.Marshal(keptDocument(doc))
	if err != nil {
		panic("sidecar: policy document that is not JSON: " + err.Error())
	}
	if err := d.rows.Put(ctx, []txlog.Row{{Key: hash, Value: value}}, true); err != nil {
		return fmt.Errorf("keep policy document %s: %w", hash, err)
	}
	d.mu.Lock()
	defer d.mu.Unlock()
	d.durable[hash] = time.Now()
	return nil
}

// isDurable reports whether a document is known to be in rows, and keeps it there for a while.
func (d *documents) isDurable(hash string) bool {
	d.mu.Lock()
	defer d.mu.Unlock()
	_, there := d.durable[hash]
	if there {
		d.durable[hash] = time.Now()
	}
	return there
}

// keepAll makes the documents of a set durable, before the set comes into force.
func (d *documents) keepAll(ctx context.Context, set *policies.Set) error {
	for _, hash := range hashes(set) {
		doc, ok := set.Document(hash)
		if !ok {
			return fmt.Errorf("policy document %s is not in its own set", hash)
		}
		if err := d.Keep(ctx, hash, doc); err != nil {
			return err
		}
	}
	return nil
}

func hashes(set *policies.Set) []string {
	seen := map[string]bool{}
	var out []string
	add := func(hash string) {
		if hash != "" && !seen[hash] {
			seen[hash] = true
			out = append(out, hash)
		}
	}
	for _, s := range set.Starts() {
		add(s.Document)
		if s.Own != nil {
			add(s.Own.Document)
		}
	}
	for _, c := range set.Calls() {
		add(c.Document)
	}
	return out
}

// trim forgets documents that are neither in force nor needed by a transaction that has not ended. It forgets none
// while open cannot tell all of those.
func (d *documents) trim(ctx context.Context, now time.Time, inForce *policies.Set, open func() ([]txn.State, error)) (int, error) {
	states, err := open()
	if err != nil {
		return 0, fmt.Errorf("list open transactions: %w", err)
	}
	needed := map[string]bool{}
	for _, h := range hashes(inForce) {
		needed[h] = true
	}
	for _, s := range states {
		for i := range s.Branches {
			if n, err := interceptor.DecodeNote(s.Branches[i].Note); err == nil {
				needed[n.Document] = true
			}
		}
	}
	d.writing.Lock()
	defer d.writing.Unlock()
	var rows []txlog.Row
	for row, err := range d.rows.Scan(ctx, "") {
		if err != nil {
			return 0, fmt.Errorf("read policy documents: %w", err)
		}
		if !needed[row.Key] && d.idle(row.Key, now) {
			rows = append(rows, txlog.Row{Key: row.Key})
		}
	}
	if len(rows) == 0 {
		return 0, nil
	}
	if err := d.rows.Put(ctx, rows, false); err != nil {
		return 0, fmt.Errorf("forget policy documents: %w", err)
	}
	return len(rows), nil
}

// idle reports whether a document was not used for long, and forgets that it is durable if so. One from before the
// start of this process counts as used when it is met first.
func (d *documents) idle(hash string, now time.Time) bool {
	d.mu.Lock()
	defer d.mu.Unlock()
	used, known := d.durable[hash]
	if !known {
		d.durable[hash] = now
		return false
	}
	if now.Sub(used) < unusedMin {
		return false
	}
	delete(d.durable, hash)
	return true
}
