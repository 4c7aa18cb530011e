package badger

import (
	"crypto/rand"
	"errors"
	"fmt"
	"hash/maphash"
	"io/fs"
	"log/slog"
	"os"
	"path/filepath"
	"strings"

	"github.com/dgraph-io/badger/v4"
	"github.com/dgraph-io/badger/v4/options"
	"golang.org/x/sys/unix"

	"txmesh/txlog"
	"txmesh/txn"
)

// Files of ours in the directory, beside Badger's and the value log.
const (
	lockName  = "txmesh.lock"
	ownerName = "OWNER"
)

// Open opens the store, or makes it. It must be closed. One process at a time can have it open.
func Open(o Options) (*Store, error) {
	o = o.withDefaults()
	s, err := prepare(o)
	if err != nil {
		return nil, fmt.Errorf("open store %s: %w", o.Dir, err)
	}
	if err := s.start(); err != nil {
		return nil, fmt.Errorf("open store %s: %w", o.Dir, errors.Join(err, s.lock.Close()))
	}
	go s.commitLoop()
	return s, nil
}

// prepare makes the directory ours.
func prepare(o Options) (*Store, error) {
	if err := checkOptions(o); err != nil {
		return nil, err
	}
	if err := os.MkdirAll(o.Dir, 0o700); err != nil {
		return nil, fmt.Errorf("make directory: %w", err)
	}
	st, err := os.Stat(o.Dir)
	if err != nil {
		return nil, err
	}
	if st.Mode().Perm()&0o077 != 0 {
		if err := os.Chmod(o.Dir, 0o700); err != nil {
			o.Log.Warn("store directory is open to other users", "dir", o.Dir, "mode", st.Mode().String(), "err", err)
		}
	}
	lock, err := os.OpenFile(filepath.Join(o.Dir, lockName), os.O_RDWR|os.O_CREATE, 0o600)
	if err != nil {
		return nil, fmt.Errorf("make lock: %w", full(err))
	}
	if err := unix.Flock(int(lock.Fd()), unix.LOCK_EX|unix.LOCK_NB); err != nil {
		return nil, errors.Join(fmt.Errorf("another process has it open (%w); a store belongs to one sidecar: end the other or name another directory",
			err), lock.Close())
	}
	disk, err := diskBytes(o.Dir)
	if err != nil {
		return nil, errors.Join(err, lock.Close())
	}
	o = o.fit(disk)
	return &Store{
		opts: o, lock: lock,
		space:      &space{dir: o.Dir, free: o.FreeBytes, reserve: o.ReserveBytes},
		unfinished: map[txn.ID]*open{},
		swapSeed:   maphash.MakeSeed(),
		wake:       make(chan struct{}, 1),
		done:       make(chan struct{}),
		stop:       make(chan struct{}),
	}, nil
}

func checkOptions(o Options) error {
	var errs []error
	if o.Dir == "" {
		errs = append(errs, errors.New("no directory named"))
	}
	if o.MemtableBytes < 1<<20 || o.MemtableBytes > 256<<20 {
		errs = append(errs, fmt.Errorf("memtable of %d bytes: want 1 MiB to 256 MiB", o.MemtableBytes))
	}
	if o.SegmentBytes < 1<<20 || o.SegmentBytes > 1<<30 {
		errs = append(errs, fmt.Errorf("segment of %d bytes: want 1 MiB to 1 GiB", o.SegmentBytes))
	}
	if o.InlineBytes < 256 || int64(o.InlineBytes) > o.MemtableBytes/64 {
		errs = append(errs, fmt.Errorf("inline bytes %d: want 256 to a 64th of the memtable", o.InlineBytes))
	}
	if least := o.reserveMin(); o.ReserveBytes > 0 && o.ReserveBytes < least {
		errs = append(errs, fmt.Errorf("reserve of %d bytes: want at least %d with these sizes of memtable and segment, or a negative number for none",
			o.ReserveBytes, least))
	}
	if o.Owner != "" && !isOwner(o.Owner) {
		errs = append(errs, fmt.Errorf("owner %q: want 13 characters of Crockford's base32", o.Owner))
	}
	return errors.Join(errs...)
}

// reserveMin is what one change of log and segment needs, with an empty tree.
func (o Options) reserveMin() int64 { return 2*o.MemtableBytes + o.logBytes() + o.SegmentBytes }

// start opens what lies in the directory. The lock is held.
func (s *Store) start() error {
	if err := removeEmpty(s.opts.Dir); err != nil {
		return err
	}
	if err := s.settleFormer(); err != nil {
		return err
	}
	if err := s.checkTables(); err != nil {
		return err
	}
	if err := s.roomToOpen(); err != nil {
		return err
	}
	log := &logger{log: s.opts.Log, fail: s.fail}
	db, err := badger.Open(s.opts.Tuned().WithLogger(log))
	if err != nil {
		return explain(err)
	}
	s.db = db
	if err := s.load(log); err != nil {
		if s.mem != nil {
			err = errors.Join(err, s.mem.close())
		}
		return errors.Join(err, db.Close())
	}
	return nil
}

func (s *Store) load(log *logger) error {
	if err := log.skipped(); err != nil {
		return err
	}
	var err error
	if s.mem, err = openMemlog(s.opts.Dir, s.opts.logBytes()); err != nil {
		return err
	}
	if err := s.allocateDiscard(); err != nil {
		return err
	}
	if s.values, err = openValues(s.opts.Dir, s.opts.SegmentBytes); err != nil {
		return err
	}
	if err := s.loadOwner(); err != nil {
		return err
	}
	if err := s.loadUnfinished(); err != nil {
		return err
	}
	if err := s.space.take(s.gate()); !errors.Is(err, txlog.ErrFull) {
		return err
	}
	return nil // Accepts tells
}

// Tuned returns Badger's options for a small sidecar: two small memtables, no caches, no compression, two
// compactors, which is the least, and everything in the tree, since large values are ours (values.go).
func (o Options) Tuned() badger.Options {
	o = o.withDefaults()
	return badger.DefaultOptions(o.Dir).
		WithSyncWrites(false).
		WithMetricsEnabled(false).
		WithDetectConflicts(false).
		WithNumGoroutines(1).
		WithMemTableSize(o.MemtableBytes).
		WithNumMemtables(2).
		WithBaseTableSize(2 << 20).
		WithBaseLevelSize(o.levelBytes).
		WithNumLevelZeroTables(3).
		WithNumLevelZeroTablesStall(8).
		WithNumCompactors(2).
		WithCompression(options.None).
		WithBlockCacheSize(0).
		WithIndexCacheSize(0).
		WithChecksumVerificationMode(options.OnBlockRead).
		WithValueThreshold(o.batchBytes()).
		WithValueLogFileSize(1 << 20)
}

// batchBytes is Badger's own bound of a transaction: 15 % of the memtable.
func (o Options) batchBytes() int64 { return 15 * o.MemtableBytes / 100 }

// logBytes is how far a memtable's log can grow: it is full at the memtable's size, and one batch more fits, with
// the heads and checksums of its rows.
func (o Options) logBytes() int64 { return o.MemtableBytes + o.MemtableBytes/4 + 64<<10 }

// roomToOpen makes sure that what opening writes through mappings has room: the tables of logs left by a crash,
// new logs, and Badger's small files.
func (s *Store) roomToOpen() error {
	if st, err := os.Stat(s.space.path()); err == nil {
		s.space.held = st.Size() == s.opts.ReserveBytes
		if !s.space.held {
			if err := s.space.giveUp(); err != nil {
				return err
			}
		}
	}
	fids, err := memFids(s.opts.Dir)
	if err != nil {
		return err
	}
	want := uint64(int64(len(fids)+1)*s.opts.MemtableBytes + 2*s.opts.logBytes() + 4<<20)
	if err := s.space.atLeast(want); err == nil || !errors.Is(err, txlog.ErrFull) {
		return err
	}
	if err := s.space.giveUp(); err != nil {
		return err
	}
	return s.space.atLeast(want)
}

// settleFormer makes durable what a killed process has left in the page cache: from now on it is read and acted on.
// What the disk refused to a process that stopped is not read at all.
// Badger keeps the logs until their tables are written, without a sync. And it removes the tables that the manifest
// does not name: a process killed between writing down a compaction and syncing that leaves a manifest which, after
// a power cut, would be the older one again, and name what was removed.
func (s *Store) settleFormer() error {
	fids, err := memFids(s.opts.Dir)
	if err != nil {
		return err
	}
	for _, fid := range fids {
		if err := settleFile(memPath(s.opts.Dir, fid)); err != nil {
			return err
		}
	}
	if err := syncDir(s.opts.Dir); err != nil { // the names of tables before the manifest that names them
		return err
	}
	err = settleFile(filepath.Join(s.opts.Dir, badger.ManifestFilename))
	if errors.Is(err, fs.ErrNotExist) { // a new store has none
		return nil
	}
	return err
}

// allocateDiscard gives blocks to Badger's statistics file, which it maps sparse and writes while compacting.
func (s *Store) allocateDiscard() error {
	f, err := os.OpenFile(filepath.Join(s.opts.Dir, "DISCARD"), os.O_RDWR, 0)
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err != nil {
		return err
	}
	return errors.Join(full(fallocate(f, 0, 1<<20)), f.Close())
}

// crockford is the alphabet of owner ids.
const crockford = "0123456789ABCDEFGHJKMNPQRSTVWXYZ"

func newOwner() string {
	var b [13]byte
	_, _ = rand.Read(b[:]) // never fails
	for i := range b {
		b[i] = crockford[b[i]%32]
	}
	return string(b[:])
}

func isOwner(s string) bool {
	return len(s) == 13 && strings.Trim(s, crockford) == ""
}

// logger passes Badger's words on and remembers those that must not be passed over.
type logger struct {
	log    *slog.Logger
	fail   func(error)
	missed []string // written while Badger opens, which is over when it is read
}

func (l *logger) Errorf(format string, args ...any) {
	text := strings.TrimSpace(fmt.Sprintf(format, args...))
	if strings.HasPrefix(text, "Ignoring table") {
		l.missed = append(l.missed, strings.TrimPrefix(text, "Ignoring table "))
	}
	l.log.Error("badger", "says", text)
	// Badger tries again for ever, and the committer would hang behind it.
	if strings.HasPrefix(text, "error flushing memtable") {
		l.fail(errors.New(text))
	}
}

func (l *logger) Warningf(format string, args ...any) {
	l.log.Warn("badger", "says", strings.TrimSpace(fmt.Sprintf(format, args...)))
}

func (l *logger) Infof(string, ...any)  {}
func (l *logger) Debugf(string, ...any) {}

const remedyCorrupt = "see docs/reference/store.md, Recovery: keep a copy of the directory, then restore a backup or start with an empty one"

// skipped is an error when Badger has left out a table whose checksum is wrong, which it takes lightly.
func (l *logger) skipped() error {
	if len(l.missed) == 0 {
		return nil
	}
	return fmt.Errorf("tables %s have wrong checksums, their transactions would be lost: %w; %s",
		strings.Join(l.missed, ", "), txlog.ErrCorrupt, remedyCorrupt)
}

// explain adds the way out to an error of Badger's Open.
func explain(err error) error {
	if errors.Is(err, fs.ErrPermission) {
		return fmt.Errorf("%w; give the directory to the user that the sidecar runs as", err)
	}
	return fmt.Errorf("%w: %w; %s", err, txlog.ErrCorrupt, remedyCorrupt)
}
