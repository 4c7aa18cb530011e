package badger

import (
	"encoding/binary"
	"errors"
	"fmt"
	"hash/crc32"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync/atomic"

	"golang.org/x/sys/unix"

	"txmesh/txlog"
)

// values is the value log: large values lie in numbered segments, appended by the committer alone. It stands in
// for Badger's own, which writes the pointer and the value to two files that no order binds: a power cut
// between their syncs, or during its garbage collection, leaves a durable pointer to a value that is not there.
// Here a pointer is committed only after its value is durable, and a segment is removed only after the last
// pointer into it is gone durably. The files are written by pwrite into allocated blocks, so that a full or
// failing disk is an error and not a signal.
type values struct {
	dir     string
	bytes   int64 // of one segment
	active  *os.File
	segment uint32
	offset  int64
	newest  atomic.Uint32 // segment, for those who are not the committer
	opened  int           // segments begun since the store was opened
}

// pointer says where a value lies. The checksum lets a reader notice a segment that is not what it was.
type pointer struct {
	segment, offset, length, sum uint32
}

const (
	pointerBytes  = 16
	segmentSuffix = ".val"
)

func (p pointer) encode() []byte {
	b := make([]byte, 0, pointerBytes)
	b = binary.BigEndian.AppendUint32(b, p.segment)
	b = binary.BigEndian.AppendUint32(b, p.offset)
	b = binary.BigEndian.AppendUint32(b, p.length)
	return binary.BigEndian.AppendUint32(b, p.sum)
}

func decodePointer(b []byte) (pointer, error) {
	if len(b) != pointerBytes {
		return pointer{}, fmt.Errorf("value pointer of %d bytes, want %d: %w", len(b), pointerBytes, txlog.ErrCorrupt)
	}
	return pointer{
		segment: binary.BigEndian.Uint32(b), offset: binary.BigEndian.Uint32(b[4:]),
		length: binary.BigEndian.Uint32(b[8:]), sum: binary.BigEndian.Uint32(b[12:]),
	}, nil
}

func castagnoli(b []byte) uint32 { return crc32.Checksum(b, crc32.MakeTable(crc32.Castagnoli)) }

// openValues finds where to go on. The last segment of the former process is left as it is: what lies behind its
// last pointer belongs to nobody.
func openValues(dir string, segmentBytes int64) (*values, error) {
	v := &values{dir: filepath.Join(dir, "values"), bytes: segmentBytes}
	if err := os.MkdirAll(v.dir, 0o700); err != nil {
		return nil, fmt.Errorf("make value log: %w", err)
	}
	segments, err := v.segments()
	if err != nil {
		return nil, err
	}
	if n := len(segments); n > 0 {
		v.segment = segments[n-1]
	}
	v.newest.Store(v.segment + 1)
	return v, nil
}

func (v *values) path(segment uint32) string {
	return filepath.Join(v.dir, fmt.Sprintf("%08d%s", segment, segmentSuffix))
}

// segments returns the numbers of the files, in order.
func (v *values) segments() ([]uint32, error) {
	files, err := os.ReadDir(v.dir)
	if err != nil {
		return nil, fmt.Errorf("list value log: %w", err)
	}
	var out []uint32
	for _, f := range files {
		name, ok := strings.CutSuffix(f.Name(), segmentSuffix)
		n, err := strconv.ParseUint(name, 10, 32)
		if !ok || err != nil {
			return nil, fmt.Errorf("value log %s: file %q does not belong there; move it away", v.dir, f.Name())
		}
		out = append(out, uint32(n))
	}
	slices.Sort(out)
	return out, nil
}

// add appends the values and returns their pointers; they are durable on return. Nothing refers to what a failed
// call has written.
func (v *values) add(vals [][]byte) ([]pointer, error) {
	ps := make([]pointer, 0, len(vals))
	for _, val := range vals {
		if v.active == nil || v.offset+int64(len(val)) > v.bytes {
			if err := v.rotate(); err != nil {
				return nil, err
			}
		}
		if _, err := v.active.WriteAt(val, v.offset); err != nil {
			return nil, fmt.Errorf("write value: %w", full(err))
		}
		ps = append(ps, pointer{segment: v.segment, offset: uint32(v.offset), length: uint32(len(val)), sum: castagnoli(val)})
		v.offset += int64(len(val))
	}
	return ps, v.sync()
}

// rotate makes the active segment durable and begins the next one.
func (v *values) rotate() error {
	if v.active != nil {
		if err := v.sync(); err != nil {
			return err
		}
		_ = v.active.Truncate(v.offset) // gives back what was allocated; the store works without it
		if err := v.active.Close(); err != nil {
			return fmt.Errorf("close segment %d: %w", v.segment, err)
		}
		v.active = nil
	}
	f, err := os.OpenFile(v.path(v.segment+1), os.O_RDWR|os.O_CREATE|os.O_EXCL, 0o600)
	if err != nil {
		return fmt.Errorf("make segment: %w", full(err))
	}
	if err := v.allocate(f); err != nil {
		return errors.Join(err, f.Close(), os.Remove(f.Name()))
	}
	v.active, v.segment, v.offset = f, v.segment+1, 0
	v.opened++
	return nil
}

func (v *values) allocate(f *os.File) error {
	if err := fallocate(f, 0, v.bytes); err != nil {
		return fmt.Errorf("allocate %d bytes for a segment: %w", v.bytes, full(err))
	}
	return syncDir(v.dir)
}

func (v *values) sync() error {
	if v.active == nil {
		return nil
	}
	if err := unix.Fdatasync(int(v.active.Fd())); err != nil {
		return fmt.Errorf("sync segment %d: %w", v.segment, err)
	}
	return nil
}

// read returns a copy of a value. It is safe beside add and remove; errors.Is(err, fs.ErrNotExist) tells that the
// segment has been removed.
func (v *values) read(p pointer) ([]byte, error) {
	f, err := os.Open(v.path(p.segment))
	if err != nil {
		return nil, fmt.Errorf("open segment %d: %w", p.segment, err)
	}
	defer func() { _ = f.Close() }() // it was only read
	b := make([]byte, p.length)
	if _, err := f.ReadAt(b, int64(p.offset)); err != nil {
		return nil, fmt.Errorf("%s at byte %d: %w: %w", f.Name(), p.offset, err, txlog.ErrCorrupt)
	}
	if sum := castagnoli(b); sum != p.sum {
		return nil, fmt.Errorf("%s at byte %d: checksum %08x, want %08x: %w", f.Name(), p.offset, sum, p.sum, txlog.ErrCorrupt)
	}
	return b, nil
}

// current returns the segment from which on values may lie to which no row refers yet.
func (v *values) current() uint32 { return v.newest.Load() }

// settle says that the rows of all values added so far are written, or never will be.
func (v *values) settle() {
	if v.active != nil {
		v.newest.Store(v.segment)
	}
}

// longer reports whether a segment has blocks behind a byte: a crash leaves it allocated to its full size.
func (v *values) longer(segment uint32, end int64) (bool, error) {
	st, err := os.Stat(v.path(segment))
	if err != nil {
		return false, fmt.Errorf("look at segment %d: %w", segment, err)
	}
	return st.Size() > end, nil
}

// shrink cuts a segment off behind its last value, to which durable pointers lead.
func (v *values) shrink(segment uint32, end int64) error {
	if err := os.Truncate(v.path(segment), end); err != nil {
		return fmt.Errorf("shrink segment %d: %w", segment, err)
	}
	return nil
}

// remove deletes a segment into which no durable pointer leads.
func (v *values) remove(segment uint32) error {
	if err := os.Remove(v.path(segment)); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return fmt.Errorf("remove segment %d: %w", segment, err)
	}
	return nil
}

func (v *values) close() error {
	if v.active == nil {
		return nil
	}
	err := v.sync()
	_ = v.active.Truncate(v.offset) // gives back what was allocated; the store works without it
	return errors.Join(err, v.active.Close())
}
