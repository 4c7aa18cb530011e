//go:build power

package power

import (
	"bytes"
	"encoding/binary"
	"errors"
	"os"
	"path/filepath"
	"sync"
	"testing"

	"golang.org/x/sys/unix"

	"txmesh/txlog/txlogtest"
)

const (
	probeBlock  = 4 << 10
	probeBlocks = 4096
	probeRounds = 10
)

// probed is one write of a block and its sync, as the kernel answered them.
type probed struct {
	number      uint64
	begun, end  int64 // of the sync
	write, sync error
}

// tally counts the syncs by when they were answered.
type tally struct{ before, yes, no, lies, after int }

// What a sync says around a cut, without any store: one that was answered before the cut keeps its block, one that
// is begun after it fails. One that is under way may say yes and keep nothing, which is no hole of the store: it
// takes a writer that outlives its disk to hear it. How often is logged.
func TestOnlyASyncUnderWayDuringTheCutMayLie(t *testing.T) {
	d := NewDisk(t, 256<<20)
	var n tally
	for range probeRounds {
		paths := []string{filepath.Join(d.Mount, "a"), filepath.Join(d.Mount, "b"), filepath.Join(d.Mount, "c")}
		logs, cut := probe(t, d, paths)
		d.off(t)
		d.on(t)
		for i, log := range logs {
			file, err := os.ReadFile(paths[i])
			if err != nil {
				t.Fatal(err)
			}
			for _, p := range log {
				n.add(t, p, cut, holds(file, p.number))
			}
		}
	}
	t.Logf("%d cuts; answered before: %d; under way: %d with an error, %d with success, of which %d kept nothing; begun after: %d",
		probeRounds, n.before, n.no, n.yes, n.lies, n.after)
	if n.before == 0 || n.after == 0 {
		t.Errorf("%d syncs before and %d after: nothing was tested", n.before, n.after)
	}
}

func (n *tally) add(t *testing.T, p probed, cut cutSpan, kept bool) {
	t.Helper()
	switch {
	case p.end < cut.begin:
		n.before++
		if p.write != nil || p.sync != nil || !kept {
			t.Errorf("before the cut: write of block %d: %v, sync: %v, kept: %t", p.number, p.write, p.sync, kept)
		}
	case p.begun > cut.end:
		n.after++
		if p.sync == nil {
			t.Errorf("block %d was synced after the cut without an error", p.number)
		}
	case p.sync != nil:
		n.no++
	default:
		n.yes++
		if p.write == nil && !kept {
			n.lies++
		}
	}
}

type cutSpan struct{ begin, end int64 }

// probe writes into each file until its disk is gone, some steps longer.
func probe(t *testing.T, d *Disk, paths []string) ([][]probed, cutSpan) {
	t.Helper()
	logs := make([][]probed, len(paths))
	var ready, done sync.WaitGroup
	for i, path := range paths {
		ready.Add(1)
		done.Go(func() { logs[i] = probeFile(t, path, &ready) })
	}
	ready.Wait()
	cut := cutSpan{begin: txlogtest.Monotonic()}
	err := d.cut()
	cut.end = txlogtest.Monotonic()
	done.Wait()
	if err != nil {
		t.Fatal(err)
	}
	return logs, cut
}

// probeFile writes blocks into allocated space, as the store does, and syncs each. It is ready after 50.
func probeFile(t *testing.T, path string, ready *sync.WaitGroup) (log []probed) {
	isReady := sync.OnceFunc(ready.Done)
	defer isReady()
	_ = os.Remove(path) // of the round before
	f, err := os.Create(path)
	if err == nil {
		defer func() { _ = f.Close() }() // the disk may be gone
		err = errors.Join(unix.Fallocate(int(f.Fd()), 0, 0, probeBlock*probeBlocks), f.Sync())
	}
	if err != nil {
		t.Error(err)
		return nil
	}
	failed := 0
	for n := uint64(0); n < probeBlocks && failed < 5; n++ {
		p := probed{number: n}
		_, p.write = f.WriteAt(probeBytes(n), int64(n)*probeBlock)
		p.begun = txlogtest.Monotonic()
		p.sync = unix.Fdatasync(int(f.Fd()))
		p.end = txlogtest.Monotonic()
		if log = append(log, p); p.sync != nil {
			failed++
		}
		if n == 50 {
			isReady()
		}
	}
	return log
}

func probeBytes(n uint64) []byte {
	return bytes.Repeat(binary.BigEndian.AppendUint64(nil, n+1), probeBlock/8)
}

func holds(file []byte, n uint64) bool {
	from := int(n) * probeBlock
	return len(file) >= from+probeBlock && bytes.Equal(file[from:from+probeBlock], probeBytes(n))
}
