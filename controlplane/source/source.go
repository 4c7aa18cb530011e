// Package source brings the policies that a control plane hands out, from a directory of YAML. Whatever brings them
// yields whole sets that compile; a change that does not is reported, and the last good set stays. It never distributes
// and never merges two sources. Start at Directory.Run.
package source

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"fmt"
	"maps"
	"slices"
	"sync"
	"time"

	"txmesh/policies"
)

// suffixes tell documents of one name and several kinds apart: no name has a dot.
func suffixes() map[string]string {
	return map[string]string{"TransactionGrant": ".grant", "AccessPolicy": ".access", "TrafficPolicy": ".traffic"}
}

// Set is one good set of policies.
type Set struct {
	Version   string            // hash of the content: equal sets have equal versions, whichever replica read them
	Documents map[string]string // name -> YAML; a name is namespace/name, and namespace/name.grant, .access or .traffic of other kinds
}

// Update is what a source has to say: a new good set, or why the last one stays.
type Update struct {
	Set     *Set
	Problem error
}

// NewSet returns the documents of a compiled set, under the names that they travel by.
func NewSet(s *policies.Set) *Set {
	out := &Set{Documents: map[string]string{}}
	for _, d := range s.Documents() {
		out.Documents[d.Namespace+"/"+d.Name+suffixes()[d.Kind]] = string(d.Text)
	}
	h := sha256.New()
	for _, name := range slices.Sorted(maps.Keys(out.Documents)) {
		fmt.Fprintf(h, "%d %s %d %s", len(name), name, len(out.Documents[name]), out.Documents[name])
	}
	out.Version = hex.EncodeToString(h.Sum(nil))
	return out
}

// Directory is policy files, or directories with *.yaml files, which are watched.
type Directory struct {
	Paths []string
	// Again is how long to wait after files that could not be read at all; 0: one second.
	Again time.Duration
}

// Run tells of the set and of each change until ctx ends. Calls of update never overlap.
func (d Directory) Run(ctx context.Context, update func(Update)) error {
	again := d.Again
	if again <= 0 {
		again = time.Second
	}
	for told := ""; ; {
		w, err := d.watch(update)
		if err == nil {
			<-ctx.Done()
			return w.Close()
		}
		if err.Error() != told {
			told = err.Error()
			update(Update{Problem: err})
		}
		select {
		case <-ctx.Done():
			return nil
		case <-time.After(again):
		}
	}
}

// watch tells of the first set; what the watcher finds meanwhile waits until that is done.
func (d Directory) watch(update func(Update)) (*policies.Watcher, error) {
	var mu sync.Mutex // makes updates follow each other
	one := func(u Update) {
		mu.Lock()
		defer mu.Unlock()
		update(u)
	}
	mu.Lock()
	defer mu.Unlock()
	w, err := policies.Watch(policies.WatchOptions{
		Changed: func(s *policies.Set) { one(Update{Set: NewSet(s)}) },
		Failed:  func(err error) { one(Update{Problem: err}) },
	}, d.Paths...)
	if err != nil {
		return nil, err
	}
	update(Update{Set: NewSet(w.Current())})
	return w, nil
}
