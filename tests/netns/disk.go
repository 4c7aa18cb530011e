//go:build linux

package netns

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"

	"golang.org/x/sys/unix"
)

// Disk is a file system in memory, of a size of its own, that one host sees. It stays while the host does.
type Disk struct {
	host *Host
	Path string
}

// NewDisk mounts a disk over a folder of the host, which is made if need be.
func (h *Host) NewDisk(path string, bytes int) (*Disk, error) {
	return &Disk{h, path}, h.Do(func() error {
		if err := os.MkdirAll(path, 0o700); err != nil {
			return err
		}
		if err := unix.Mount("tmpfs", path, "tmpfs", 0, fmt.Sprintf("size=%d,mode=0700", bytes)); err != nil {
			return fmt.Errorf("mount a disk of %d bytes over %s: %w", bytes, path, err)
		}
		return nil
	})
}

func (d *Disk) ballast() string { return filepath.Join(d.Path, ".ballast") }

// Fill takes all space but so many bytes. It takes more when it is called again.
func (d *Disk) Fill(left int64) error {
	return d.host.Do(func() error {
		fd, err := unix.Open(d.ballast(), unix.O_CREAT|unix.O_WRONLY|unix.O_CLOEXEC, 0o600)
		if err != nil {
			return fmt.Errorf("fill %s: %w", d.Path, err)
		}
		for {
			// Whoever else writes may be faster: then there is less to take, down to nothing.
			if err = d.take(fd, left); !errors.Is(err, unix.ENOSPC) {
				break
			}
		}
		return errors.Join(err, unix.Close(fd))
	})
}

// take makes the ballast larger by what is free.
func (d *Disk) take(fd int, left int64) error {
	var s unix.Stat_t
	if err := unix.Fstat(fd, &s); err != nil {
		return fmt.Errorf("size of %s: %w", d.ballast(), err)
	}
	free, err := d.free()
	if err != nil || free <= left {
		return err
	}
	return unix.Fallocate(fd, 0, 0, s.Size+free-left)
}

// Drain gives the space back.
func (d *Disk) Drain() error {
	return d.host.Do(func() error { return os.Remove(d.ballast()) })
}

// Free is how many bytes can still be written.
func (d *Disk) Free() (free int64, err error) {
	err = d.host.Do(func() error {
		free, err = d.free()
		return err
	})
	return free, err
}

func (d *Disk) free() (int64, error) {
	var s unix.Statfs_t
	if err := unix.Statfs(d.Path, &s); err != nil {
		return 0, fmt.Errorf("ask %s for its space: %w", d.Path, err)
	}
	return int64(s.Bavail) * s.Bsize, nil
}
