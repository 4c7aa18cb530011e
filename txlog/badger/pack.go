package badger

import (
	"bytes"
	"encoding/binary"
	"fmt"

	"txmesh/txlog"
	"txmesh/txn"
)

// The entries of a transaction that one append has share a row: a row costs the tree and the log far more than the bytes
// of a small record, and under load an append often has the answer of one call and the call after it. Such a row begins with packedVersion, which no version of txlog.Encode will be, and holds each
// entry behind its length. A release that knows no packed rows takes it for one that a later release wrote.
const packedVersion = 0xff

// encoded is one row of a request: the entries of one transaction, in order.
type encoded struct {
	tx      txn.ID
	entries []txlog.Entry
	body    []byte
}

// pack makes the rows of an append. Entries share a row as long as it stays in the tree. Only the order within each
// transaction is kept: nothing reads across them.
func (s *Store) pack(es []txlog.Entry) ([]encoded, error) {
	rows := make([]encoded, 0, len(es))
	last := make(map[txn.ID]int, len(es)) // row of each transaction
	var scratch bytes.Buffer
	for i, e := range es {
		scratch.Reset()
		if err := txlog.EncodeTo(&scratch, e); err != nil {
			return nil, err
		}
		b := scratch.Bytes()
		if n, found := last[e.Tx]; found && len(rows[n].body)+len(b)+2*binary.MaxVarintLen32+1 <= s.opts.InlineBytes {
			rows[n].add(b)
			rows[n].entries = append(rows[n].entries, e)
			continue
		}
		last[e.Tx] = len(rows)
		rows = append(rows, encoded{tx: e.Tx, entries: es[i : i+1 : i+1], body: bytes.Clone(b)})
	}
	return rows, nil
}

// add puts one more entry into the row.
func (r *encoded) add(body []byte) {
	if len(r.entries) == 1 {
		first := r.body
		r.body = append(make([]byte, 0, 2*(len(first)+len(body))), packedVersion)
		r.append(first)
	}
	r.append(body)
}

func (r *encoded) append(body []byte) {
	r.body = append(binary.AppendUvarint(r.body, uint64(len(body))), body...)
}

// unpack is the inverse of pack for one row.
func unpack(tx txn.ID, row []byte) ([]txlog.Entry, error) {
	if len(row) == 0 || row[0] != packedVersion {
		e, err := txlog.Decode(tx, row)
		return []txlog.Entry{e}, err
	}
	var es []txlog.Entry
	for rest := row[1:]; len(rest) > 0; {
		n, head := binary.Uvarint(rest)
		if head <= 0 || n > uint64(len(rest)-head) {
			return nil, fmt.Errorf("packed row of %q: entry %d of it is cut short: %w", tx, len(es), txlog.ErrCorrupt)
		}
		e, err := txlog.Decode(tx, rest[head:head+int(n)])
		if err != nil {
			return nil, err
		}
		es, rest = append(es, e), rest[head+int(n):]
	}
	if len(es) == 0 {
		return nil, fmt.Errorf("packed row of %q is empty: %w", tx, txlog.ErrCorrupt)
	}
	return es, nil
}
