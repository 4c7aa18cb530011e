package sql

import (
	"cmp"
	"context"
	"database/sql"
	"fmt"
	"maps"
	"slices"
	"strings"

	"txmesh/txlog"
	"txmesh/txn"
)

// live is what is known of a transaction while it goes on.
type live struct {
	owner   string
	digest  txlog.Digest
	next    int64 // sequence of the next entry
	size    int64 // of the encoded entries
	stored  bool  // it has a row in txmesh_transactions
	written txlog.Summary
}

func (l *live) clone() *live {
	c := *l
	c.digest = l.digest.Clone()
	return &c
}

// plan is what a group adds up to. Nothing outside of it changes until it is written.
type plan struct {
	live    map[txn.ID]*live
	order   []txn.ID // of live, as they came
	entries [][]any
	rows    map[[2]string][]byte // by table and key; nil: remove
}

// plan returns nil if it would have to know what it can only look up. With known it has been looked up.
func (s *Store) plan(g *group, known map[txn.ID]*live) *plan {
	p := &plan{live: map[txn.ID]*live{}, rows: map[[2]string][]byte{}}
	for _, r := range g.reqs {
		for _, e := range r.entries {
			l := p.live[e.Tx]
			if l == nil {
				if l = s.start(e, known); l == nil {
					return nil
				}
				p.live[e.Tx] = l
				p.order = append(p.order, e.Tx)
			}
			l.digest.Apply(e.Entry)
			p.entries = append(p.entries, []any{[]byte(e.Tx), l.next, e.body})
			l.next++
			l.size += int64(len(e.body))
		}
		for _, row := range r.rows {
			p.rows[[2]string{row.table, row.key}] = row.value
		}
	}
	return p
}

// start returns a copy of what is known before the first entry of a transaction in a group. One that begins is taken for
// new until the database says that its row is there.
func (s *Store) start(e entry, known map[txn.ID]*live) *live {
	if l := s.live[e.Tx]; l != nil {
		return l.clone()
	}
	if l := known[e.Tx]; l != nil {
		return l.clone()
	}
	if _, begins := e.Record.(txn.Began); begins || known != nil {
		return &live{owner: s.owner.ID}
	}
	return nil
}

// statements writes the plan down: entries, then what lists and searches see of their transactions, then rows of tables.
func (p *plan) statements(e *Engine) []statement {
	var fresh, changed [][]any
	for _, id := range p.order {
		l := p.live[id]
		switch {
		case !l.stored:
			fresh = append(fresh, l.row())
		case l.written != l.digest.Summary || l.digest.Summary.Phase.Done():
			changed = append(changed, l.row())
		}
	}
	out := e.d.insert(transactionsTable(false), fresh)
	out = append(out, e.d.insert(transactionsTable(true), changed)...)
	out = append(out, e.d.insert(entriesTable(), p.entries)...)
	var put, removed [][]any
	for _, k := range slices.SortedFunc(maps.Keys(p.rows), compareKeys) { // in one order, so that two groups do not wait for each other
		row := []any{[]byte(k[0]), []byte(k[1]), p.rows[k]}
		if p.rows[k] == nil {
			removed = append(removed, row[:2])
		} else {
			put = append(put, row)
		}
	}
	out = append(out, e.d.insert(rowsTable(), put)...)
	for some := range slices.Chunk(removed, inMax) {
		query := "DELETE FROM txmesh_rows WHERE (tab, k) IN (" + marks(2) + strings.Repeat(", "+marks(2), len(some)-1) + ")"
		out = append(out, statement{e.d.bind(query), slices.Concat(some...)})
	}
	return out
}

func compareKeys(a, b [2]string) int {
	return cmp.Or(cmp.Compare(a[0], b[0]), cmp.Compare(a[1], b[1]))
}

// inMax is how many keys stand in one statement.
const inMax = 128

// row is that of transactionsTable.
func (l *live) row() []any {
	s := l.digest.Summary
	var key any
	if l.digest.Key != "" {
		key = []byte(l.digest.Key)
	}
	done := int64(0)
	if s.Phase.Done() {
		done = 1
	}
	return []any{[]byte(s.ID), []byte(l.owner), done, nanos(s.Finished), nanos(s.Begun), int64(s.Phase), []byte(s.Mode), []byte(s.Name), key,
		int64(s.Branches), l.size, []byte(s.Reason)}
}

// lookUp reads what the database has of the group's transactions that are not live here. Their rows are locked, so that
// nobody forgets them meanwhile.
func (s *Store) lookUp(ctx context.Context, tx *sql.Conn, g *group) (map[txn.ID]*live, error) {
	want := map[txn.ID]bool{}
	for _, r := range g.reqs {
		for _, e := range r.entries {
			if s.live[e.Tx] == nil {
				want[e.Tx] = true
			}
		}
	}
	known := map[txn.ID]*live{}
	for ids := range slices.Chunk(slices.Sorted(maps.Keys(want)), inMax) {
		var mine []txn.ID
		query := "SELECT id, owner FROM txmesh_transactions WHERE id IN " + marks(len(ids)) + " FOR UPDATE"
		err := s.e.query(ctx, tx, query, idArgs(ids), func(rows *sql.Rows) error {
			var id, owner []byte
			if err := rows.Scan(&id, &owner); err != nil {
				return err
			}
			known[txn.ID(id)] = &live{owner: string(owner), stored: true}
			if string(owner) == s.owner.ID {
				mine = append(mine, txn.ID(id))
			}
			return nil
		})
		if err != nil {
			return nil, fmt.Errorf("look up %d transactions: %w", len(ids), err)
		}
		entries, err := s.e.entries(ctx, tx, mine)
		if err != nil {
			return nil, err
		}
		for _, e := range entries {
			known[e.Tx].add(e)
		}
	}
	return known, nil
}

// add folds an entry that is stored. The row is written anew with the next: what it holds is not looked at.
func (l *live) add(e entry) {
	l.digest.Apply(e.Entry)
	l.next++
	l.size += int64(len(e.body))
}

// entries reads those of some transactions, together and in order.
func (e *Engine) entries(ctx context.Context, tx execer, ids []txn.ID) ([]entry, error) {
	if len(ids) == 0 {
		return nil, nil
	}
	var out []entry
	query := "SELECT tx, body FROM txmesh_entries WHERE tx IN " + marks(len(ids)) + " ORDER BY tx, seq"
	err := e.query(ctx, tx, query, idArgs(ids), func(rows *sql.Rows) error {
		var id, body []byte
		if err := rows.Scan(&id, &body); err != nil {
			return err
		}
		x, err := txlog.Decode(txn.ID(id), body)
		out = append(out, entry{x, body})
		return err
	})
	if err != nil {
		return nil, fmt.Errorf("read entries of %d transactions: %w", len(ids), err)
	}
	return out, nil
}

func idArgs(ids []txn.ID) []any {
	out := make([]any, len(ids))
	for i, id := range ids {
		out[i] = []byte(id)
	}
	return out
}
