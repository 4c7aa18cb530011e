package badger

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"sync"

	"txmesh/txlog"
)

// space guards against a full disk. It holds a file of reserved blocks beside the store. While there is less than
// the gate free, no new transaction is accepted; when there is less than the floor, the reserve is given back, so
// that the open ones can end.
type space struct {
	dir     string
	free    func(dir string) (uint64, error)
	reserve int64

	mu   sync.Mutex // guards held
	held bool       // the reserve is there
}

const reserveName = "RESERVE"

func (s *space) path() string { return filepath.Join(s.dir, reserveName) }

// take gets the reserve unless it is held. It returns ErrFull when the disk has no room for it beside the wanted bytes.
func (s *space) take(want uint64) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.held || s.reserve == 0 {
		return nil
	}
	if err := s.atLeast(want + uint64(s.reserve)); err != nil {
		return err
	}
	f, err := os.OpenFile(s.path(), os.O_RDWR|os.O_CREATE, 0o600)
	if err != nil {
		return fmt.Errorf("make reserve: %w", full(err))
	}
	err = fallocate(f, 0, s.reserve)
	if err != nil {
		err = errors.Join(full(err), os.Remove(f.Name()))
	}
	s.held = err == nil
	return errors.Join(err, f.Close())
}

// giveUp returns the blocks of the reserve to the disk.
func (s *space) giveUp() error {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.held = false
	if err := os.Remove(s.path()); err != nil && !errors.Is(err, os.ErrNotExist) {
		return fmt.Errorf("give up reserve: %w", err)
	}
	return nil
}

// atLeast returns ErrFull, with the figures and the remedy, when less than want bytes are free.
func (s *space) atLeast(want uint64) error {
	free, err := s.free(s.dir)
	if err != nil {
		return err
	}
	if free < want {
		return fmt.Errorf("store %s: %d bytes free, %d needed; free space on its disk or give it a larger one: %w",
			s.dir, free, want, txlog.ErrFull)
	}
	return nil
}
