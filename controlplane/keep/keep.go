// Package keep writes small files that several processes may write at once, so that each is seen whole or not at all.
// It never removes what it wrote. Start at Once.
package keep

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
)

// Once writes a file that only its owner may read, unless there is one; then that one stays, and it returns false.
func Once(path string, data []byte) (made bool, err error) {
	if _, err := os.Stat(path); err == nil {
		return false, nil // perhaps in a directory that cannot be written to
	}
	name, err := draft(path, data, 0o600)
	if err != nil {
		return false, fmt.Errorf("make %s: %w", path, err)
	}
	defer func() { _ = os.Remove(name) }() // the link keeps what it holds
	if err := os.Link(name, path); errors.Is(err, fs.ErrExist) {
		return false, nil
	} else if err != nil {
		return false, fmt.Errorf("make %s: %w", path, err)
	}
	return true, nil
}

// Replace writes a file that everybody may read in place of the one there is.
func Replace(path string, data []byte) error {
	name, err := draft(path, data, 0o644)
	if err == nil {
		err = os.Rename(name, path)
	}
	if err != nil {
		return fmt.Errorf("write %s: %w", path, err)
	}
	return nil
}

// draft writes to a name that nobody else has.
func draft(path string, data []byte, mode fs.FileMode) (name string, err error) {
	f, err := os.CreateTemp(filepath.Dir(path), ".new-*")
	if err != nil {
		return "", err
	}
	_, err = f.Write(data)
	if err := errors.Join(err, f.Chmod(mode), f.Sync(), f.Close()); err != nil {
		return "", errors.Join(err, os.Remove(f.Name()))
	}
	return f.Name(), nil
}
