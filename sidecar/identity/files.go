package identity

import (
	"context"
	"errors"
	"fmt"
	"path/filepath"
	"time"

	"github.com/fsnotify/fsnotify"
)

// settleTime lets whoever writes several files finish.
const settleTime = 100 * time.Millisecond

// rereadEvery finds changes that no event told of, as on network file systems.
const rereadEvery = time.Minute

// Files gets certificates from files that others write, such as cert-manager's in a mounted secret.
type Files struct {
	Cert  string // PEM chain, the leaf first
	Key   string // PEM
	Roots string // PEM
}

// Run reads the files whenever they change, until ctx ends. Files that do not fit together are read again with the
// next change; what was in force stays.
func (f Files) Run(ctx context.Context, i *Identity) {
	changed, err := f.watch(ctx)
	if err != nil {
		i.opt.Log.Warn("certificate files are not watched, and read every minute instead", "error", err)
	}
	for {
		if err := f.read(i); err != nil {
			i.opt.Log.Warn("certificate not read", "file", f.Cert, "error", err)
		}
		if !waitForChange(ctx, changed) || !rest(ctx, settleTime) {
			return
		}
	}
}

func (f Files) read(i *Identity) error {
	var data [3][]byte
	for k, path := range []string{f.Cert, f.Key, f.Roots} {
		var err error
		if data[k], err = readFile(path, joinBodyMax); err != nil {
			return i.unfit(err)
		}
	}
	got := secrets{data[0], data[1], data[2]}
	if err := got.take(i); err != nil {
		return fmt.Errorf("%s, %s and %s: %w", f.Cert, f.Key, f.Roots, err)
	}
	return nil
}

// watch follows the directories: mounted secrets change by a link that is replaced. The channel holds one change.
func (f Files) watch(ctx context.Context) (<-chan struct{}, error) {
	w, err := fsnotify.NewWatcher()
	if err != nil {
		return nil, err
	}
	for _, path := range []string{f.Cert, f.Key, f.Roots} {
		dir := filepath.Dir(path)
		if err := w.Add(dir); err != nil {
			return nil, errors.Join(fmt.Errorf("watch %s: %w", dir, err), w.Close())
		}
	}
	changed := make(chan struct{}, 1)
	go func() {
		defer func() { _ = w.Close() }() // nothing is written by it
		for {
			select {
			case <-ctx.Done():
				return
			case <-w.Events:
			case <-w.Errors: //nolint:errcheck // an overflow has swallowed events
			}
			select {
			case changed <- struct{}{}:
			default:
			}
		}
	}()
	return changed, nil
}

func waitForChange(ctx context.Context, changed <-chan struct{}) bool {
	reread := time.NewTimer(rereadEvery)
	defer reread.Stop()
	select {
	case <-changed:
		return true
	case <-reread.C:
		return true
	case <-ctx.Done():
		return false
	}
}
