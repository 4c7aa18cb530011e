package etcd

import (
	"context"
	"fmt"
	"slices"

	clientv3 "go.etcd.io/etcd/client/v3"

	"txmesh/txlog"
	"txmesh/txn"
)

// List implements txlog.Journal. It reads all unfinished transactions, and of the finished ones what the page needs,
// both as they were at one moment.
func (s *store) List(ctx context.Context, q txlog.Query) ([]txlog.Summary, txlog.Cursor, error) {
	found, err := s.list(ctx, q)
	if err != nil {
		return nil, "", fmt.Errorf("list transactions: %w", err)
	}
	if len(found) <= q.Max() {
		return found, "", nil
	}
	found = found[:q.Max()]
	return found, txlog.After(found[len(found)-1]), nil
}

// list returns the transactions of a page, and at least one more if there is one.
func (s *store) list(ctx context.Context, q txlog.Query) ([]txlog.Summary, error) {
	from, started, err := q.From.Position()
	if err != nil {
		return nil, err
	}
	at, err := s.revision(ctx)
	if err != nil {
		return nil, err
	}
	p := page{query: q, from: from, started: started}
	k := s.engine.keys
	for kv, err := range s.engine.rows(ctx, s.usable, k.unfinishedAll(), at, false) {
		if err == nil {
			err = p.add(string(kv.Key), kv.Value)
		}
		if err != nil {
			return nil, err
		}
	}
	open := len(p.found)
	if len(q.Phases) > 0 && !slices.ContainsFunc(q.Phases, txn.Phase.Done) {
		return sorted(p.found), nil // of all that is kept, the finished are by far the most
	}
	begin, end := k.listedAll(), clientv3.GetPrefixRangeEnd(k.listedAll())
	if !q.Begun.Before.IsZero() {
		begin = max(begin, k.listedFrom(q.Begun.Before))
	}
	if started {
		begin = max(begin, k.listedFrom(from.Begun))
	}
	if !q.Begun.After.IsZero() {
		end = min(end, clientv3.GetPrefixRangeEnd(k.listedFrom(q.Begun.After)))
	}
	for kv, err := range s.engine.between(ctx, s.usable, begin, end, at, false) {
		if err == nil {
			err = p.add(string(kv.Key), kv.Value)
		}
		if err != nil {
			return nil, err
		}
		if len(p.found)-open > q.Max() {
			break
		}
	}
	return sorted(p.found), nil
}

func sorted(found []txlog.Summary) []txlog.Summary {
	slices.SortFunc(found, func(a, b txlog.Summary) int {
		if txlog.Newer(a, b) {
			return -1
		}
		return 1
	})
	return found
}

// page collects what a query selects behind its cursor.
type page struct {
	query   txlog.Query
	from    txlog.Summary
	started bool
	found   []txlog.Summary
}

func (p *page) add(key string, value []byte) error {
	sum, err := decodeSummary(key, value)
	if err == nil && p.query.Selects(sum) && (!p.started || txlog.Newer(p.from, sum)) {
		p.found = append(p.found, sum)
	}
	return err
}

// revision is the present moment of the store.
func (s *store) revision(ctx context.Context) (int64, error) {
	if err := s.usable(); err != nil {
		return 0, err
	}
	var at int64
	err := s.engine.retry(ctx, func(ctx context.Context, c *clientv3.Client) error {
		r, err := c.Get(ctx, s.engine.keys.trimmed(), clientv3.WithCountOnly())
		if err == nil {
			at = r.Header.Revision
		}
		return err
	})
	return at, err
}
