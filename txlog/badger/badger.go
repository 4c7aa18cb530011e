// Package badger is the embedded store: a txlog.Store in a directory, on Badger. It decides what is durable when,
// what is forgotten, and when the disk is too full to go on; it never looks into a record beyond what a list shows,
// and it never waits for the network. Start at Open; commit.go is its heart.
//
// One goroutine, the committer, writes. What arrives while it commits goes into its next batch, and a batch is
// synced once. So the guarantee is simple: when an append or put with sync is acknowledged, it and everything
// acknowledged or submitted before it is durable. Badger itself promises less than that across the change of a
// memtable (memlog.go) and for values outside its tree (values.go); those files say how the store closes the gaps.
//
// Rows, by the first byte of their key, numbers big endian:
//
//	o                                  the owner's id
//	n                                  counters: the unfinished and their entries, the bytes of the finished
//	e len(id) id sequence              an entry, or those of one step (pack.go), or a pointer into the value log
//	u id                               the transaction is unfinished
//	l ^begun ^id                       a finished transaction as a list shows it, newest first
//	f finished id                      what Trim needs of a finished transaction, oldest first
//	k key                              the newest transaction begun with this Spec.Key
//	t len(name) name key               a row of a table: the value, or a pointer into the value log
//	v segment offset                   the row that refers to this value of the value log
//	z                                  padding, see Store.beginLog
//
// Open reads the rows u and the entries of those transactions, Find one row, List the rows l from its cursor on
// beside what is unfinished in memory, Trim the rows f from the oldest on: nothing reads all that is kept. The
// files are described in docs/reference/store.md.
package badger

import (
	"errors"
	"fmt"
	"hash/maphash"
	"log/slog"
	"os"
	"sync"

	"github.com/dgraph-io/badger/v4"

	"txmesh/txlog"
	"txmesh/txn"
)

// Options configures a store. Only Dir must be set.
type Options struct {
	Dir   string       // made with mode 0700 if it is not there
	Log   *slog.Logger // nil: silent
	Owner string       // the id of a new store; empty: random. An existing store keeps its own

	RetainBytes  int64 // Trim forgets the oldest finished transactions beyond it; 0: 1 GiB
	ReserveBytes int64 // kept for open transactions to end; 0: 48 MiB, less on a disk below 144 MiB; negative: none
	GateBytes    int64 // new transactions are refused below it; 0: 32 MiB, less on a disk below 128 MiB

	MemtableBytes int64 // 0: 4 MiB
	SegmentBytes  int64 // of the value log; 0: 4 MiB
	InlineBytes   int   // larger values go to the value log; 0: 4 KiB

	FreeBytes func(dir string) (uint64, error) // nil: the function FreeBytes

	levelBytes int64 // of the level that new tables are merged into: levelBytesMax, less on a disk below 1 GiB
}

// The bounds of levelBytes. Whatever is in the tree has been written once for each level, so a first level with room
// saves one; and a compaction may write all of it anew, beside what is there.
const (
	levelBytesMin = 8 << 20
	levelBytesMax = 32 << 20
)

func (o Options) withDefaults() Options {
	if o.Log == nil {
		o.Log = slog.New(slog.DiscardHandler)
	}
	if o.FreeBytes == nil {
		o.FreeBytes = FreeBytes
	}
	o.RetainBytes = orElse(o.RetainBytes, 1<<30)
	o.MemtableBytes = orElse(o.MemtableBytes, 4<<20)
	o.SegmentBytes = orElse(o.SegmentBytes, 4<<20)
	o.InlineBytes = int(orElse(int64(o.InlineBytes), 4<<10))
	o.levelBytes = orElse(o.levelBytes, levelBytesMax)
	return o
}

// fit sets the reserve and the gate that are not given. On a small disk the usual ones would leave nothing, and no
// transaction would ever be accepted; so they take a third and a quarter of it, but the reserve never less than a
// change of log needs.
func (o Options) fit(diskBytes uint64) Options {
	disk := int64(min(diskBytes, 1<<40))
	o.ReserveBytes = max(0, orElse(o.ReserveBytes, max(o.reserveMin(), min(48<<20, disk/3))))
	o.GateBytes = orElse(o.GateBytes, min(32<<20, disk/4))
	o.levelBytes = max(levelBytesMin, min(levelBytesMax, disk/32))
	return o
}

func orElse(n, otherwise int64) int64 {
	if n == 0 {
		return otherwise
	}
	return n
}

// Store is a txlog.Store in a directory. All methods are safe for many goroutines.
type Store struct {
	opts  Options
	owner string
	db    *badger.DB
	lock  *os.File
	space *space

	trimming  sync.Mutex // held by Trim
	forgotten int64      // bytes since the last compaction; guarded by trimming

	readers sync.WaitGroup // who is inside db beside the committer; Close waits

	swapping [64]sync.Mutex // each held by a Swap of one of the rows that fall to it
	swapSeed maphash.Seed

	mu         sync.Mutex // guards the fields below, which the committer writes
	unfinished map[txn.ID]*open
	stats      stats
	queue      []*request
	broken     error // why nothing is accepted any more
	closed     bool

	wake chan struct{} // holds one token when the queue may have work
	done chan struct{} // closed when the committer has ended
	stop chan struct{} // closed when broken is set: nobody waits for a committer that may hang in a failing disk

	// The committer's own.
	mem    *memlog
	values *values
	filled int64 // at most so much is in the active memtable
	dirty  bool  // a write since the last sync
}

var _ txlog.Store = (*Store)(nil)

// open is an unfinished transaction.
type open struct {
	digest txlog.Digest
	next   uint32 // sequence of the next row of entries
	bytes  int64  // of its entries
}

// stats is the row n.
type stats struct {
	Unfinished    int64 `cbor:"1,keyasint"`
	FinishedBytes int64 `cbor:"2,keyasint"`
	OpenEntries   int64 `cbor:"3,keyasint"` // of the unfinished: a damaged block reads as if its rows were not there
}

// Owner names who appends: the id was made with the store and is kept in it.
func (s *Store) Owner() txlog.Owner { return txlog.Owner{ID: s.owner, Epoch: 1} }

// Accepts implements txlog.Journal. It asks the file system each time.
func (s *Store) Accepts() error {
	if err := s.usable(); err != nil {
		return err
	}
	want := s.gate()
	if err := s.space.atLeast(want); err != nil {
		return fmt.Errorf("refuse new transactions: %w", err)
	}
	if err := s.space.take(want); err != nil {
		return fmt.Errorf("refuse new transactions, the reserve is in use: %w", err)
	}
	return nil
}

// usable returns why the store is not, if it is not.
func (s *Store) usable() error {
	s.mu.Lock()
	defer s.mu.Unlock()
	switch {
	case s.closed:
		return txlog.ErrClosed
	case s.broken != nil:
		return s.broken
	}
	return nil
}

// fail makes the store refuse everything from now on. What has been written may be found or not.
func (s *Store) fail(cause error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.broken == nil {
		close(s.stop)
		s.broken = fmt.Errorf("store %s stopped after a failed write, restart it when the disk is well: %w", s.opts.Dir, cause)
		s.opts.Log.Error("store stopped", "dir", s.opts.Dir, "err", cause)
	}
}

// Check reads every table and verifies its checksums. It is for tools: it takes as long as the disk needs.
func (s *Store) Check() error {
	leave, err := s.enter()
	if err != nil {
		return err
	}
	defer leave()
	if err := s.db.VerifyChecksum(); err != nil {
		return fmt.Errorf("check store %s: %w: %w; %s", s.opts.Dir, err, txlog.ErrCorrupt, remedyCorrupt)
	}
	return nil
}

// Close ends the committer after what was submitted, syncs, and gives the directory free. On a disk too full to
// write a table it leaves the log to the next Open and says so. A store that has stopped is only left: Badger would
// try for ever to write to its disk.
func (s *Store) Close() error {
	s.mu.Lock()
	already := s.closed
	s.closed = true
	s.mu.Unlock()
	if already {
		return nil
	}
	s.signal()
	select {
	case <-s.done:
	case <-s.stop:
	}
	if err := s.usableByCommitter(); err != nil {
		return errors.Join(err, s.lock.Close())
	}
	s.readers.Wait()
	return s.shut()
}

// shut closes what Open opened. The committer has ended, so its fields are ours.
func (s *Store) shut() error {
	errs := []error{s.values.close(), s.mem.close(), s.db.Sync()}
	if err := s.flushable(); err != nil {
		errs = append(errs, fmt.Errorf("close store, its log stays for the next start: %w", err))
	} else {
		errs = append(errs, s.db.Close())
	}
	errs = append(errs, s.lock.Close())
	if err := errors.Join(errs...); err != nil {
		return fmt.Errorf("close store %s: %w", s.opts.Dir, err)
	}
	return nil
}
