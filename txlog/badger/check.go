package badger

import (
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"

	"github.com/dgraph-io/badger/v4"
	"github.com/dgraph-io/badger/v4/pb"
	"github.com/dgraph-io/badger/v4/table"
	"github.com/dgraph-io/badger/v4/y"
	"google.golang.org/protobuf/proto"

	"txmesh/txlog"
)

// checkTables looks at what Badger would not survive, or would pass over: without a manifest it begins a new one and
// removes all tables, a table with a damaged end makes it panic, and one with a damaged index is left out. It reads
// the index of each table, a hundredth of its bytes; blocks are checked when they are read.
func (s *Store) checkTables() error {
	dir := s.opts.Dir
	f, err := os.Open(filepath.Join(dir, badger.ManifestFilename))
	if errors.Is(err, fs.ErrNotExist) {
		return checkNew(dir)
	}
	if err != nil {
		return fmt.Errorf("open manifest: %w", err)
	}
	defer func() { _ = f.Close() }() // it was only read
	m, _, err := badger.ReplayManifestFile(f, 0, s.opts.Tuned())
	if err != nil {
		return fmt.Errorf("read manifest: %w: %w; %s", err, txlog.ErrCorrupt, remedyCorrupt)
	}
	for id := range m.Tables {
		path := table.NewFilename(id, dir)
		if err := checkTable(path); err != nil {
			return fmt.Errorf("table %s, named by the manifest: %w: %w; %s", filepath.Base(path), err, txlog.ErrCorrupt, remedyCorrupt)
		}
	}
	return nil
}

// checkNew makes sure that a directory without a manifest is a new one.
func checkNew(dir string) error {
	if _, err := os.Stat(filepath.Join(dir, ownerName)); err == nil {
		return fmt.Errorf("the %s is gone, but %s shows that there was a store: %w; %s",
			badger.ManifestFilename, ownerName, txlog.ErrCorrupt, remedyCorrupt)
	}
	return nil
}

// checkTable verifies the index at the end of a table: index, length, checksum, length.
func checkTable(path string) error {
	f, err := os.Open(path)
	if err != nil {
		return err
	}
	defer func() { _ = f.Close() }() // it was only read
	end, err := f.Seek(0, io.SeekEnd)
	if err != nil {
		return err
	}
	sum, end, err := readBack(f, end)
	if err != nil {
		return fmt.Errorf("checksum of the index: %w", err)
	}
	index, end, err := readBack(f, end)
	if err != nil {
		return fmt.Errorf("index: %w", err)
	}
	var want pb.Checksum
	if err := proto.Unmarshal(sum, &want); err != nil {
		return fmt.Errorf("checksum of the index at byte %d: %w", end, err)
	}
	if err := y.VerifyChecksum(index, &want); err != nil {
		return fmt.Errorf("index at byte %d: wrong checksum", end)
	}
	return nil
}

// readBack reads what a length that ends at a byte stands behind, and returns where that begins.
func readBack(f *os.File, end int64) ([]byte, int64, error) {
	var length [4]byte
	if end < 4 {
		return nil, 0, fmt.Errorf("cut off at byte %d", end)
	}
	if _, err := f.ReadAt(length[:], end-4); err != nil {
		return nil, 0, err
	}
	n := int64(binary.BigEndian.Uint32(length[:]))
	if n > end-4 {
		return nil, 0, fmt.Errorf("length %d at byte %d is more than what is before it", n, end-4)
	}
	b := make([]byte, n)
	if _, err := f.ReadAt(b, end-4-n); err != nil {
		return nil, 0, err
	}
	return b, end - 4 - n, nil
}
