package badger

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync/atomic"
	"time"

	"golang.org/x/sys/unix"
)

// memlog watches the write-ahead logs of Badger's memtables, NNNNN.mem, for what Badger leaves to its user when
// SyncWrites is off. Badger writes to the newest; when that is full, the next write begins another, and db.Sync
// syncs that one only:
//
//  1. an append without sync goes to log 7, which is now full;
//  2. an append with sync begins log 8 and goes there; db.Sync makes log 8 durable, and log 8 only;
//  3. the power fails before the table of log 7 is written: the first append is lost, although the second,
//     which was acknowledged after it, is found.
//
// So the committer syncs before a write that may begin a log (Store.settleLog), and asks after each write whether
// one was begun. Second, Badger maps its logs as sparse files: on a full disk a store into the mapping
// ends the process with SIGBUS. So the file of the next log is made ahead, with all the blocks that Badger can
// touch, but of length zero: Badger takes that for a new file. The length tells that it was begun.
type memlog struct {
	dir   string
	bytes int64        // that a log can grow to
	fid   atomic.Int64 // of the active log; the committer writes it
	file  *os.File     // the active log
	next  *os.File
}

const memSuffix = ".mem"

func memPath(dir string, fid int) string {
	return filepath.Join(dir, fmt.Sprintf("%05d%s", fid, memSuffix))
}

// openMemlog takes over from a freshly opened database: its newest log is the active one.
func openMemlog(dir string, bytes int64) (*memlog, error) {
	fids, err := memFids(dir)
	if err != nil {
		return nil, err
	}
	if len(fids) == 0 {
		return nil, fmt.Errorf("%s holds no *%s file after opening: another layout than that of badger v4", dir, memSuffix)
	}
	m := &memlog{dir: dir, bytes: bytes}
	m.fid.Store(int64(slices.Max(fids)))
	if m.file, err = os.OpenFile(memPath(dir, m.active()), os.O_RDWR, 0); err != nil {
		return nil, fmt.Errorf("open log: %w", err)
	}
	if err := fallocate(m.file, 0, bytes); err != nil {
		return nil, errors.Join(fmt.Errorf("allocate log: %w", full(err)), m.file.Close())
	}
	if err := m.prepare(); err != nil {
		return nil, errors.Join(err, m.file.Close())
	}
	return m, nil
}

func memFids(dir string) ([]int, error) {
	files, err := os.ReadDir(dir)
	if err != nil {
		return nil, fmt.Errorf("list store: %w", err)
	}
	var fids []int
	for _, f := range files {
		name, ok := strings.CutSuffix(f.Name(), memSuffix)
		if !ok {
			continue
		}
		fid, err := strconv.Atoi(name)
		if err != nil {
			return nil, fmt.Errorf("store %s: file %q does not belong there; move it away", dir, f.Name())
		}
		fids = append(fids, fid)
	}
	return fids, nil
}

// sync makes durable what has been written to the active log. db.Sync would also sync Badger's value log, which is
// never written here, at the price of a second flush of the disk: 60 of 190 microseconds.
func (m *memlog) sync() error {
	if err := unix.Fdatasync(int(m.file.Fd())); err != nil {
		return fmt.Errorf("sync log %d: %w", m.active(), err)
	}
	return nil
}

// prepare makes the file of the next log. Its name is durable before Badger writes to it.
func (m *memlog) prepare() error {
	f, err := os.OpenFile(memPath(m.dir, m.active()+1), os.O_RDWR|os.O_CREATE, 0o600)
	if err != nil {
		return fmt.Errorf("make next log: %w", full(err))
	}
	if err := fallocate(f, unix.FALLOC_FL_KEEP_SIZE, m.bytes); err != nil {
		return errors.Join(fmt.Errorf("allocate next log: %w", full(err)), f.Close(), os.Remove(f.Name()))
	}
	if err := syncDir(m.dir); err != nil {
		return errors.Join(err, f.Close())
	}
	m.next = f
	return nil
}

// ready reports whether the next log has its blocks. After a full disk it tries again to get them.
func (m *memlog) ready() error {
	if m.next != nil {
		return nil
	}
	return m.prepare()
}

// rotated looks whether the last write began the next log. The former one should be durable by then; this is rare,
// so it makes sure, should Badger one day leave a log earlier than the committer expects. That the next but one cannot be made is not an error here; ready
// tells before it matters.
func (m *memlog) rotated() (bool, error) {
	if m.next == nil {
		return false, nil
	}
	st, err := m.next.Stat()
	if err != nil {
		return false, fmt.Errorf("look at next log: %w", err)
	}
	if st.Size() == 0 {
		return false, nil
	}
	// The log may be gone already, its table being durable; then this syncs a file without a name.
	if err := m.sync(); err != nil {
		return true, err
	}
	if err := m.file.Close(); err != nil {
		return true, fmt.Errorf("close former log %d: %w", m.active(), err)
	}
	m.file, m.next = m.next, nil
	m.fid.Add(1)
	_ = m.prepare() // ready tries again
	return true, nil
}

// active returns the number of the log that is written to. It is safe for many goroutines.
func (m *memlog) active() int { return int(m.fid.Load()) }

// writtenMax is how long a table may take; on a disk that fails Badger tries for ever.
const writtenMax = 10 * time.Second

// written waits until the table of a log that was left has been written, which removes the log.
func (m *memlog) written(ctx context.Context, fid int) error {
	ctx, cancel := context.WithTimeout(ctx, writtenMax)
	defer cancel()
	poll := time.NewTicker(10 * time.Millisecond)
	defer poll.Stop()
	for {
		if _, err := os.Stat(memPath(m.dir, fid)); errors.Is(err, fs.ErrNotExist) {
			return nil
		}
		select {
		case <-poll.C:
		case <-ctx.Done():
			return fmt.Errorf("wait for the table of log %d: %w", fid, ctx.Err())
		}
	}
}

// close removes the file made ahead, which Badger would not open.
func (m *memlog) close() error {
	err := m.file.Close()
	if m.next != nil {
		err = errors.Join(err, m.next.Close(), os.Remove(m.next.Name()))
	}
	return err
}

// removeEmpty removes files of length zero, before Badger sees them: logs made ahead, and what a crash between
// truncation and removal leaves. Badger opens none of them and they hold nothing.
func removeEmpty(dir string) error {
	files, err := os.ReadDir(dir)
	if err != nil {
		return fmt.Errorf("list store: %w", err)
	}
	for _, f := range files {
		name := f.Name()
		if !strings.HasSuffix(name, memSuffix) && !strings.HasSuffix(name, ".vlog") {
			continue
		}
		st, err := f.Info()
		if err != nil {
			return fmt.Errorf("list store: %w", err)
		}
		if st.Size() > 0 {
			continue
		}
		if err := os.Remove(filepath.Join(dir, name)); err != nil {
			return fmt.Errorf("remove empty file: %w", err)
		}
	}
	return nil
}
