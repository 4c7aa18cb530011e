//go:build power

package power

import (
	"context"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"testing"
	"unsafe"

	"golang.org/x/sys/unix"
)

// Disk is an ext4 file system in a file, mounted at Mount.
type Disk struct {
	Mount string
	image string
}

// NewDisk makes and mounts a disk that ends with the test. Without root the test fails: whoever asks for the build
// tag power wants to see it run.
func NewDisk(t *testing.T, bytes int64) *Disk {
	t.Helper()
	if os.Geteuid() != 0 {
		t.Fatal("these tests mount loop devices: run them as root (make test-net)")
	}
	for _, tool := range []string{"mkfs.ext4", "mount", "umount"} {
		if _, err := exec.LookPath(tool); err != nil {
			t.Fatalf("%v; install e2fsprogs and mount", err)
		}
	}
	dir := t.TempDir()
	d := &Disk{image: filepath.Join(dir, "image"), Mount: filepath.Join(dir, "mount")}
	if err := os.Mkdir(d.Mount, 0o755); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(d.image, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	if err := os.Truncate(d.image, bytes); err != nil {
		t.Fatal(err)
	}
	run(t, "mkfs.ext4", "-q", "-F", "-m", "0", d.image)
	d.on(t)
	t.Cleanup(func() { // a test that failed may have left it off, or open
		_ = exec.CommandContext(context.WithoutCancel(t.Context()), "umount", "-l", d.Mount).Run()
	})
	return d
}

func run(t *testing.T, name string, args ...string) {
	t.Helper()
	if out, err := exec.CommandContext(t.Context(), name, args...).CombinedOutput(); err != nil {
		t.Fatalf("%s %v: %v: %s", name, args, err, out)
	}
}

func (d *Disk) on(t *testing.T)  { t.Helper(); run(t, "mount", "-o", "loop", d.image, d.Mount) }
func (d *Disk) off(t *testing.T) { t.Helper(); run(t, "umount", d.Mount) }

// cut is a power cut as the disk sees it: nothing that is not on it by now reaches it any more, not even the log of
// the file system.
func (d *Disk) cut() error {
	const (
		shutdown   = 0x8004587d // EXT4_IOC_SHUTDOWN
		noLogFlush = 2
	)
	f, err := os.Open(d.Mount)
	if err != nil {
		return err
	}
	defer func() { _ = f.Close() }() // it was only read
	flag := uint32(noLogFlush)
	if _, _, errno := unix.Syscall(unix.SYS_IOCTL, f.Fd(), shutdown, uintptr(unsafe.Pointer(&flag))); errno != 0 {
		return fmt.Errorf("shut %s down: %w", d.Mount, errno)
	}
	return nil
}

// fill takes all that is left.
func (d *Disk) fill(t *testing.T) {
	t.Helper()
	f, err := os.Create(filepath.Join(d.Mount, "filler"))
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = f.Close() }() // what could be written is
	block := make([]byte, 1<<20)
	for len(block) > 0 {
		if _, err := f.Write(block); err != nil {
			block = block[:len(block)/2]
		}
	}
	_ = f.Sync() // a full disk may refuse that too
}
