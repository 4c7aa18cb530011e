package main

import (
	"bytes"
	"encoding/json"
	"fmt"
	"os"
	"path/filepath"
	"sync"
)

// ledger is a file of lines that only grows. Lines submitted while a sync runs share the next one. Only one
// process may have the file.
type ledger struct {
	f      *os.File
	broken chan error // gets the one error after which nothing is durable any more

	mu        sync.Mutex // guards the fields below
	changed   *sync.Cond // synced or syncing has changed
	pending   []byte     // submitted, not yet written
	submitted int        // lines, counted from the opening
	synced    int
	syncing   bool // somebody writes and syncs; stays true for ever once that failed
}

// openLedger opens or makes the file and returns its whole lines. A torn last line, which a crash leaves of an
// append that nobody was told about, is cut off.
func openLedger(path string) (*ledger, [][]byte, error) {
	f, err := os.OpenFile(path, os.O_WRONLY|os.O_CREATE|os.O_APPEND, 0o600)
	if err != nil {
		return nil, nil, fmt.Errorf("open the ledger: %w", err)
	}
	lines, whole, err := readLines(path)
	if err == nil {
		err = f.Truncate(whole)
	}
	if err == nil {
		err = syncDir(filepath.Dir(path))
	}
	if err != nil {
		return nil, nil, fmt.Errorf("open the ledger %s: %w", path, err)
	}
	l := &ledger{f: f, broken: make(chan error, 1)}
	l.changed = sync.NewCond(&l.mu)
	return l, lines, nil
}

func readLines(path string) (lines [][]byte, whole int64, err error) {
	data, err := os.ReadFile(path)
	if err != nil {
		return nil, 0, err
	}
	for n := 1; len(data) > 0; n++ {
		line, rest, ended := bytes.Cut(data, []byte("\n"))
		if !ended || !json.Valid(line) {
			if len(rest) > 0 {
				return nil, 0, fmt.Errorf("line %d is not JSON and not the last: restore the file from a copy", n)
			}
			return lines, whole, nil
		}
		lines, whole, data = append(lines, line), whole+int64(len(line))+1, rest
	}
	return lines, whole, nil
}

// syncDir makes the name of a new file survive a power cut.
func syncDir(path string) error {
	d, err := os.Open(path)
	if err != nil {
		return err
	}
	defer d.Close()
	return d.Sync()
}

// submit queues one line, in the order of the calls, and returns its number for wait.
func (l *ledger) submit(line []byte) int {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.pending = append(append(l.pending, line...), '\n')
	l.submitted++
	return l.submitted
}

// wait returns when line n and all before it are on disk. The first to wait writes and syncs for everybody who
// has submitted by then. It never returns once a sync has failed.
func (l *ledger) wait(n int) {
	l.mu.Lock()
	defer l.mu.Unlock()
	for l.synced < n {
		if l.syncing {
			l.changed.Wait()
			continue
		}
		lines, upTo := l.pending, l.submitted
		l.pending, l.syncing = nil, true
		l.mu.Unlock()
		err := l.write(lines)
		l.mu.Lock()
		if err != nil {
			l.broken <- err
			continue
		}
		l.synced, l.syncing = upTo, false
		l.changed.Broadcast()
	}
}

func (l *ledger) write(lines []byte) error {
	if _, err := l.f.Write(lines); err != nil {
		return fmt.Errorf("append to the ledger: %w", err)
	}
	if err := l.f.Sync(); err != nil {
		return fmt.Errorf("sync the ledger: %w", err)
	}
	return nil
}
