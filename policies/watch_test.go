package policies

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"
)

// watched follows paths and hands its callbacks to channels.
type watched struct {
	*Watcher
	changed chan *Set
	failed  chan error
}

func watch(t *testing.T, paths ...string) *watched {
	t.Helper()
	w := &watched{changed: make(chan *Set, 64), failed: make(chan error, 64)}
	options := WatchOptions{
		Settle:  5 * time.Millisecond,
		Changed: func(s *Set) { w.changed <- s },
		Failed:  func(err error) { w.failed <- err },
	}
	var err error
	if w.Watcher, err = Watch(options, paths...); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := w.Close(); err != nil {
			t.Error(err)
		}
	})
	return w
}

// rule waits until the set in force has the one rule of this name.
func (w *watched) rule(t *testing.T, name string) {
	t.Helper()
	deadline := time.After(20 * time.Second)
	for {
		select {
		case s := <-w.changed:
			if calls := s.Calls(); len(calls) == 1 && calls[0].Name == name {
				if w.Current() != s {
					t.Fatalf("Changed is told of a set that is not in force")
				}
				return
			}
		case <-deadline:
			t.Fatalf("the rule %s never came into force; now %v", name, w.Current().Calls())
		}
	}
}

// failure waits for a report that contains the text.
func (w *watched) failure(t *testing.T, text string) error {
	t.Helper()
	deadline := time.After(20 * time.Second)
	for {
		select {
		case err := <-w.failed:
			if strings.Contains(err.Error(), text) {
				return err
			}
		case <-deadline:
			t.Fatalf("no report with %q", text)
		}
	}
}

func ruleNamed(name string) string {
	return policyOf(fmt.Sprintf("  - {name: %s, match: {service: s}, irreversible: {reason: x}}\n", name))
}

func put(t *testing.T, path, text string) {
	t.Helper()
	if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
}

func TestBadFileKeepsTheLastGoodSet(t *testing.T) {
	dir := t.TempDir()
	file := filepath.Join(dir, "p.yaml")
	put(t, file, ruleNamed("one"))
	w := watch(t, dir)
	if n := w.Current().Calls()[0].Name; n != "one" {
		t.Fatalf("first rule = %s", n)
	}
	put(t, file, ruleNamed("two"))
	w.rule(t, "two")
	put(t, file, strings.Replace(ruleNamed("three"), "match", "mach", 1)+"extra: 1\n")
	err := w.failure(t, "mach")
	if fs, ok := errors.AsType[Findings](err); !ok || len(fs) != 3 {
		t.Errorf("report = %v, want all three findings", err)
	}
	if n := w.Current().Calls()[0].Name; n != "two" {
		t.Errorf("rule in force = %s, want two", n)
	}
	put(t, file, ruleNamed("two"))
	w.rule(t, "two")
}

func TestWatcherFollowsRenames(t *testing.T) {
	dir := t.TempDir()
	file := filepath.Join(dir, "p.yaml")
	put(t, file, ruleNamed("one"))
	w := watch(t, file)
	for _, name := range []string{"two", "three"} { // twice: the first rename must not end the watch
		fresh := filepath.Join(dir, ".p.yaml.swp")
		put(t, fresh, ruleNamed(name))
		if err := os.Rename(fresh, file); err != nil {
			t.Fatal(err)
		}
		w.rule(t, name)
	}
	if err := os.Remove(file); err != nil {
		t.Fatal(err)
	}
	if err := w.failure(t, "no such file"); !errors.As(err, new(Findings)) {
		t.Errorf("report = %v, want findings", err)
	}
	if n := w.Current().Calls()[0].Name; n != "three" {
		t.Errorf("rule in force = %s, want three", n)
	}
	put(t, file, ruleNamed("three"))
	w.rule(t, "three")
}

// Kubernetes mounts a ConfigMap as p.yaml -> ..data/p.yaml with ..data -> ..stamp, and swaps ..data.
func TestWatcherFollowsConfigMapSwaps(t *testing.T) {
	dir := t.TempDir()
	stamp := func(name, rule string) {
		if err := os.Mkdir(filepath.Join(dir, name), 0o700); err != nil {
			t.Fatal(err)
		}
		put(t, filepath.Join(dir, name, "p.yaml"), ruleNamed(rule))
		next := filepath.Join(dir, "..data_tmp")
		if err := os.Symlink(name, next); err != nil {
			t.Fatal(err)
		}
		if err := os.Rename(next, filepath.Join(dir, "..data")); err != nil {
			t.Fatal(err)
		}
	}
	stamp("..2026_1", "one")
	if err := os.Symlink("..data/p.yaml", filepath.Join(dir, "p.yaml")); err != nil {
		t.Fatal(err)
	}
	whole, single := watch(t, dir), watch(t, filepath.Join(dir, "p.yaml"))
	for i, name := range []string{"two", "three"} {
		stamp(fmt.Sprintf("..2026_%d", i+2), name)
		if err := os.RemoveAll(filepath.Join(dir, fmt.Sprintf("..2026_%d", i+1))); err != nil {
			t.Fatal(err)
		}
		whole.rule(t, name)
		single.rule(t, name)
	}
}

func TestFilesComeAndGo(t *testing.T) {
	dir := t.TempDir()
	w := watch(t, dir)
	if n := len(w.Current().Calls()); n != 0 {
		t.Fatalf("an empty directory has %d rules", n)
	}
	put(t, filepath.Join(dir, "a.yaml"), ruleNamed("one"))
	w.rule(t, "one")
	if err := os.Rename(filepath.Join(dir, "a.yaml"), filepath.Join(dir, "a.off")); err != nil {
		t.Fatal(err)
	}
	put(t, filepath.Join(dir, "b.yaml"), ruleNamed("other"))
	w.rule(t, "other")
}

func TestWatchRefusesABadStart(t *testing.T) {
	dir := t.TempDir()
	put(t, filepath.Join(dir, "p.yaml"), "a: [")
	if _, err := Watch(WatchOptions{}, dir); err == nil || !strings.Contains(err.Error(), "TXM0002") {
		t.Errorf("error = %v", err)
	}
	if _, err := Watch(WatchOptions{}, filepath.Join(dir, "no", "where")); err == nil {
		t.Error("a path that is not there is watched")
	}
}

func TestCloseTwiceIsOnce(t *testing.T) {
	w, err := Watch(WatchOptions{}, t.TempDir())
	if err != nil {
		t.Fatal(err)
	}
	if err := errors.Join(w.Close(), w.Close()); err != nil {
		t.Error(err)
	}
}
