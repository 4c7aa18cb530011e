package takeover

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"time"
)

// Step is how far the takeover of a transaction has come.
type Step string

// The steps, in their order.
const (
	StepRead    Step = "read"
	StepStopped Step = "stopped"
	StepTaken   Step = "taken"
)

// Entry is one line of the file.
type Entry struct {
	At       time.Time `json:"at"`
	Step     Step      `json:"step"`
	GID      string    `json:"gid"`
	Snapshot `json:",omitzero"`
}

// head is the first line: whose transactions these are.
type head struct {
	Version int    `json:"version"`
	From    string `json:"from"`
	To      string `json:"to"`
}

// Journal is the file. It is used by one goroutine.
type Journal struct {
	file  *os.File
	last  map[string]Entry
	order []string // gids, as they first came
}

// OpenJournal opens the file or makes it, and reads how far each transaction has come. from and to must be those of the
// first run.
func OpenJournal(path, from, to string) (*Journal, error) {
	j := &Journal{last: map[string]Entry{}}
	text, err := os.ReadFile(path)
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return nil, err
	}
	whole := bytes.LastIndexByte(text, '\n') + 1 // a crash may have cut the last line: its step was not taken
	want := head{1, from, to}
	for n, line := range bytes.Split(text[:whole], []byte("\n")) {
		if err := j.read(n, line, want); err != nil {
			return nil, fmt.Errorf("%s line %d: %w", path, n+1, err)
		}
	}
	if j.file, err = os.OpenFile(path, os.O_CREATE|os.O_RDWR|os.O_APPEND, 0o600); err != nil {
		return nil, err
	}
	err = j.file.Truncate(int64(whole))
	if err == nil && whole == 0 {
		err = errors.Join(j.write(want), syncDir(filepath.Dir(path)))
	}
	if err != nil {
		return nil, errors.Join(err, j.file.Close())
	}
	return j, nil
}

func (j *Journal) read(n int, line []byte, want head) error {
	if n == 0 && len(line) > 0 {
		var h head
		if err := json.Unmarshal(line, &h); err != nil {
			return err
		}
		if h != want {
			return fmt.Errorf("it is of a takeover from %s to %s (version %d): name another file with --journal", h.From, h.To, h.Version)
		}
		return nil
	}
	if len(line) == 0 {
		return nil
	}
	var e Entry
	if err := json.Unmarshal(line, &e); err != nil {
		return err
	}
	j.note(e)
	return nil
}

func (j *Journal) note(e Entry) {
	if _, known := j.last[e.GID]; !known {
		j.order = append(j.order, e.GID)
	}
	j.last[e.GID] = e
}

// Append returns when the entry is durable.
func (j *Journal) Append(e Entry) error {
	e.At = time.Now().UTC()
	if err := j.write(e); err != nil {
		return fmt.Errorf("write %s: %w", j.file.Name(), err)
	}
	j.note(e)
	return nil
}

func (j *Journal) write(v any) error {
	line, err := json.Marshal(v)
	if err != nil {
		return err
	}
	if _, err := j.file.Write(append(line, '\n')); err != nil {
		return err
	}
	return j.file.Sync()
}

// Last is how far a transaction has come; the zero Entry: it is not in the file.
func (j *Journal) Last(gid string) Entry { return j.last[gid] }

// at lists the transactions that have come so far and no farther.
func (j *Journal) at(s Step) []string {
	return slices.DeleteFunc(slices.Clone(j.order), func(gid string) bool { return j.last[gid].Step != s })
}

// Close closes the file.
func (j *Journal) Close() error { return j.file.Close() }

// syncDir makes the name of a new file durable.
func syncDir(dir string) error {
	d, err := os.Open(dir)
	if err != nil {
		return err
	}
	return errors.Join(d.Sync(), d.Close())
}
