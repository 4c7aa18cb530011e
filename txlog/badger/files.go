package badger

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"

	"golang.org/x/sys/unix"

	"txmesh/txlog"
)

// fallocate gives the file blocks for its first n bytes, so that a later write into them, also through a mapping,
// cannot meet a full disk.
func fallocate(f *os.File, mode uint32, n int64) error {
	for {
		err := unix.Fallocate(int(f.Fd()), mode, 0, n)
		switch {
		case errors.Is(err, unix.EINTR):
			continue
		case err != nil:
			return &os.PathError{Op: "fallocate", Path: f.Name(), Err: err}
		}
		return nil
	}
}

// writeDurably makes a small file, whole or not at all.
func writeDurably(path, text string) error {
	f, err := os.OpenFile(path+".new", os.O_WRONLY|os.O_CREATE|os.O_TRUNC, 0o600)
	if err != nil {
		return fmt.Errorf("write %s: %w", path, full(err))
	}
	_, err = f.WriteString(text + "\n")
	if err = errors.Join(err, f.Sync(), f.Close()); err != nil {
		return fmt.Errorf("write %s: %w", path, full(err))
	}
	if err := os.Rename(path+".new", path); err != nil {
		return err
	}
	return syncDir(filepath.Dir(path))
}

// settleFile makes what any process has written to a file durable, and lets the next reader see the disk and not the
// page cache: after a sync that failed, the cache holds what the disk does not, as if it were clean.
func settleFile(path string) error {
	f, err := os.Open(path)
	if err != nil {
		return err
	}
	err = f.Sync()
	if err == nil {
		err = unix.Fadvise(int(f.Fd()), 0, 0, unix.FADV_DONTNEED)
	}
	if err := errors.Join(err, f.Close()); err != nil {
		return fmt.Errorf("sync %s: %w", path, err)
	}
	return nil
}

func syncDir(dir string) error {
	d, err := os.Open(dir)
	if err != nil {
		return fmt.Errorf("sync directory: %w", err)
	}
	if err := errors.Join(d.Sync(), d.Close()); err != nil {
		return fmt.Errorf("sync directory %s: %w", dir, err)
	}
	return nil
}

// full adds ErrFull to an error that says that the disk, or the quota, is full.
func full(err error) error {
	if errors.Is(err, unix.ENOSPC) || errors.Is(err, unix.EDQUOT) {
		return fmt.Errorf("%w: %w", txlog.ErrFull, err)
	}
	return err
}

// diskBytes asks the file system below dir how large it is.
func diskBytes(dir string) (uint64, error) {
	var st unix.Statfs_t
	if err := unix.Statfs(dir, &st); err != nil {
		return 0, fmt.Errorf("ask for the size of the disk of %s: %w", dir, err)
	}
	return st.Blocks * uint64(st.Bsize), nil
}

// FreeBytes asks the file system how much an unprivileged process may still write below dir.
func FreeBytes(dir string) (uint64, error) {
	var st unix.Statfs_t
	if err := unix.Statfs(dir, &st); err != nil {
		return 0, fmt.Errorf("ask for free space of %s: %w", dir, err)
	}
	return st.Bavail * uint64(st.Bsize), nil
}
