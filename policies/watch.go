package policies

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"github.com/fsnotify/fsnotify"
)

// Watcher keeps the newest good Set of some files. A file that is at fault changes nothing but is reported.
type Watcher struct {
	paths   []string
	options WatchOptions
	notify  *fsnotify.Watcher
	current atomic.Pointer[Set]
	prints  []Source // what current, or the last report, was made from; owned by the loop
	stop    chan struct{}
	once    sync.Once
	done    sync.WaitGroup
}

// WatchOptions are the callbacks of a Watcher. Both are called from its one goroutine and must not call Close.
type WatchOptions struct {
	// Changed is told of every new set, after Current returns it.
	Changed func(*Set)
	// Failed is told why the last good set stays: Findings, or an error of the file system.
	Failed func(error)
	// Settle is how long files must be quiet before they are read; 0: 100 ms.
	Settle time.Duration
}

// Watch loads the paths as Load does and then follows them until Close. The first load must succeed.
func Watch(options WatchOptions, paths ...string) (*Watcher, error) {
	if options.Settle <= 0 {
		options.Settle = 100 * time.Millisecond
	}
	w := &Watcher{paths: slices.Clone(paths), options: options, stop: make(chan struct{})}
	var err error
	if w.notify, err = fsnotify.NewWatcher(); err != nil {
		return nil, fmt.Errorf("watch policies: %w", err)
	}
	// Watching comes before reading: a change in between is then seen as an event.
	if err := w.follow(); err != nil {
		return nil, errors.Join(err, w.notify.Close())
	}
	if err := w.load(); err != nil {
		return nil, errors.Join(err, w.notify.Close())
	}
	w.done.Add(1)
	go w.loop()
	return w, nil
}

// Current returns the newest good set. It never blocks.
func (w *Watcher) Current() *Set { return w.current.Load() }

// Close ends the watching and waits for a callback that runs. Current keeps its answer.
func (w *Watcher) Close() error {
	w.once.Do(func() { close(w.stop) })
	w.done.Wait()
	return w.notify.Close()
}

// follow watches the directories, never the files: editors and Kubernetes replace files by renaming, and a watch on
// the file would go away with the old one. The targets of symlinks are watched too.
func (w *Watcher) follow() error {
	for _, p := range w.paths {
		for _, dir := range directories(p) {
			if slices.Contains(w.notify.WatchList(), dir) {
				continue
			}
			if err := w.notify.Add(dir); err != nil {
				return fmt.Errorf("watch %s: %w", dir, err)
			}
		}
	}
	return nil
}

func directories(path string) []string {
	dir := path
	if info, err := os.Stat(path); err != nil || !info.IsDir() {
		dir = filepath.Dir(path)
	}
	dirs := []string{dir}
	if real, err := filepath.EvalSymlinks(path); err == nil && real != path {
		if info, err := os.Stat(real); err == nil && !info.IsDir() {
			real = filepath.Dir(real)
		}
		if !slices.Contains(dirs, real) {
			dirs = append(dirs, real)
		}
	}
	return dirs
}

func (w *Watcher) loop() {
	defer w.done.Done()
	quiet := time.NewTimer(w.options.Settle)
	quiet.Stop()
	var due time.Time // a directory that is never quiet is read all the same, by then
	wait := func() {
		now := time.Now()
		if due.IsZero() {
			due = now.Add(10 * w.options.Settle)
		}
		quiet.Reset(max(0, min(w.options.Settle, due.Sub(now))))
	}
	for {
		select {
		case <-w.stop:
			return
		case _, ok := <-w.notify.Events:
			if !ok {
				return
			}
			wait()
		case err, ok := <-w.notify.Errors:
			if !ok {
				return
			}
			// An overflow has swallowed events: read everything again.
			w.fail(fmt.Errorf("watch policies: %w", err))
			wait()
		case <-quiet.C:
			due = time.Time{}
			w.reload()
		}
	}
}

// reload reads all files again; the new set is in force when Current returns it.
func (w *Watcher) reload() {
	if err := w.follow(); err != nil {
		w.fail(err)
	}
	before := w.current.Load()
	if err := w.load(); err != nil {
		w.fail(err)
		return
	}
	if s := w.current.Load(); s != before && w.options.Changed != nil {
		w.options.Changed(s)
	}
}

func (w *Watcher) fail(err error) {
	if w.options.Failed != nil {
		w.options.Failed(err)
	}
}

// load compiles the files, unless they are what they were.
func (w *Watcher) load() error {
	sources, err := Read(w.paths...)
	if err != nil {
		w.prints = nil
		return err
	}
	if w.prints != nil && slices.EqualFunc(sources, w.prints, equalSources) {
		return nil
	}
	w.prints = sources
	s, err := Compile(sources...)
	if err != nil {
		return err
	}
	w.current.Store(s)
	return nil
}

func equalSources(a, b Source) bool { return a.Name == b.Name && string(a.Data) == string(b.Data) }
