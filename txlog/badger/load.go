package badger

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"

	"github.com/dgraph-io/badger/v4"
	"github.com/fxamacker/cbor/v2"

	"txmesh/txlog"
	"txmesh/txn"
)

// loadOwner reads the owner's id, or makes it durably. The file beside the database tells a store that has lost
// its rows from a new one.
func (s *Store) loadOwner() error {
	path := filepath.Join(s.opts.Dir, ownerName)
	file, err := os.ReadFile(path)
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return fmt.Errorf("read owner: %w", err)
	}
	known := strings.TrimSpace(string(file))
	err = s.db.View(func(tx *badger.Txn) error {
		b, err := valueOf(tx, []byte{prefixOwner})
		s.owner = string(b)
		return err
	})
	switch {
	case errors.Is(err, badger.ErrKeyNotFound) && known == "" && len(s.db.Tables()) == 0:
		return s.makeOwner(path)
	case err != nil && !errors.Is(err, badger.ErrKeyNotFound):
		return fmt.Errorf("read owner: %w", err)
	case known == "" && isOwner(s.owner): // a crash came between the row and the file
		return writeDurably(path, s.owner)
	case !isOwner(s.owner) || known != s.owner:
		return fmt.Errorf("owner %q in the database, %q in %s, so rows are missing: %w; %s",
			s.owner, known, ownerName, txlog.ErrCorrupt, remedyCorrupt)
	}
	return nil
}

func (s *Store) makeOwner(path string) error {
	if s.owner = s.opts.Owner; s.owner == "" {
		s.owner = newOwner()
	}
	err := s.db.Update(func(tx *badger.Txn) error { return tx.Set([]byte{prefixOwner}, []byte(s.owner)) })
	if err == nil {
		err = s.db.Sync()
	}
	if err != nil {
		return fmt.Errorf("write owner: %w", err)
	}
	return writeDurably(path, s.owner)
}

// loadUnfinished rebuilds what is in memory. The count in the row n shows a hole in the index.
func (s *Store) loadUnfinished() error {
	ids, err := s.readIndex()
	if err != nil {
		return err
	}
	if int64(len(ids)) != s.stats.Unfinished {
		return fmt.Errorf("%d unfinished transactions found, %d counted: %w; %s",
			len(ids), s.stats.Unfinished, txlog.ErrCorrupt, remedyCorrupt)
	}
	var entries int64
	for _, id := range ids {
		o := &open{}
		err := s.db.View(func(tx *badger.Txn) error {
			return s.replay(tx, id, func(es []txlog.Entry, encoded int) { o.add(es, encoded) })
		})
		if err == nil && o.next == 0 {
			err = fmt.Errorf("its entries are gone: %w", txlog.ErrCorrupt)
		}
		if errors.Is(err, fs.ErrNotExist) {
			err = fmt.Errorf("%w: %w", err, txlog.ErrCorrupt)
		}
		if err != nil {
			return fmt.Errorf("unfinished transaction %s: %w; %s", id, err, remedyCorrupt)
		}
		s.unfinished[id] = o
		entries += int64(o.next)
	}
	if entries != s.stats.OpenEntries {
		return fmt.Errorf("%d entries of unfinished transactions found, %d counted, so some are gone: %w; %s",
			entries, s.stats.OpenEntries, txlog.ErrCorrupt, remedyCorrupt)
	}
	return nil
}

func (s *Store) readIndex() ([]txn.ID, error) {
	var ids []txn.ID
	err := s.db.View(func(tx *badger.Txn) error {
		b, err := valueOf(tx, []byte{prefixStats})
		if err == nil {
			err = cbor.Unmarshal(b, &s.stats)
		}
		if err != nil && !errors.Is(err, badger.ErrKeyNotFound) {
			return fmt.Errorf("row %q: %w: %w; %s", prefixStats, err, txlog.ErrCorrupt, remedyCorrupt)
		}
		return keys(tx, []byte{prefixUnfinished}, func(key []byte) error {
			ids = append(ids, txn.ID(key[1:]))
			return nil
		})
	})
	return ids, err
}

// add takes one more row of the transaction.
func (o *open) add(es []txlog.Entry, encoded int) {
	for _, e := range es {
		o.digest.Apply(e)
	}
	o.next++
	o.bytes += int64(encoded)
}

// replay reads the entries of one transaction row by row. A row in a damaged block reads as if it were not there;
// the callers compare with what else they know.
func (s *Store) replay(tx *badger.Txn, id txn.ID, visit func(es []txlog.Entry, encoded int)) error {
	for seq := uint32(0); ; seq++ {
		b, err := s.resolve(tx, entryKey(id, seq))
		if errors.Is(err, badger.ErrKeyNotFound) {
			return nil
		}
		if err != nil {
			return fmt.Errorf("row %d: %w", seq, err)
		}
		es, err := unpack(id, b)
		if err != nil {
			return fmt.Errorf("row %d: %w", seq, err)
		}
		visit(es, len(b))
	}
}

// valueOf returns a copy of a row as it is stored.
func valueOf(tx *badger.Txn, key []byte) ([]byte, error) {
	item, err := tx.Get(key)
	if err != nil {
		return nil, err
	}
	return item.ValueCopy(nil)
}

// resolve returns a copy of a row's value, from the value log if it is there.
func (s *Store) resolve(tx *badger.Txn, key []byte) ([]byte, error) {
	item, err := tx.Get(key)
	if err != nil {
		return nil, err
	}
	return s.itemValue(item)
}

func (s *Store) itemValue(item *badger.Item) ([]byte, error) {
	b, err := item.ValueCopy(nil)
	if err != nil {
		return nil, err
	}
	if item.UserMeta() != metaPointer {
		if b == nil {
			b = []byte{}
		}
		return b, nil
	}
	p, err := decodePointer(b)
	if err != nil {
		return nil, err
	}
	return s.values.read(p)
}

// keys visits the keys with a prefix, in order. The key is valid during the visit only.
func keys(tx *badger.Txn, prefix []byte, visit func(key []byte) error) error {
	it := tx.NewIterator(badger.IteratorOptions{Prefix: prefix})
	defer it.Close()
	for it.Rewind(); it.Valid(); it.Next() {
		if err := visit(it.Item().Key()); err != nil {
			return err
		}
	}
	return nil
}
