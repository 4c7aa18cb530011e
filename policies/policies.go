// Package policies turns policy documents into plans: which requests open a transaction, which calls are its
// branches, what their answers mean and how each is undone, confirmed, held or queried. Documents are parsed with
// their positions, checked (all findings at once) and compiled into a Set that never changes. The package makes no
// call, keeps no state of a transaction and never decides what happens next; that is package txn. Start at Compile,
// then Set.Call and Call.Render.
package policies

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
)

// Source is the text of one file, or of one document, with the name that findings show.
type Source struct {
	Name string
	Data []byte
}

// Set is a compiled collection of policy documents. It never changes and is safe for many goroutines.
type Set struct {
	starts  index[*Start]
	calls   index[*Call]
	docs    map[string]Source
	written []Document
	access  map[string]*Access // by namespace/name, and namespace/* for the others of it

	traffic      map[string]*Traffic // by namespace/name
	trafficHosts map[string]*Traffic // by host

	accessRules int
	warnings    Findings
}

// Load reads and compiles files; a directory stands for its *.yaml and *.yml files, and its descriptor sets *.binpb, not
// those below it. The error is Findings when documents are at fault.
func Load(paths ...string) (*Set, error) {
	sources, err := Read(paths...)
	if err != nil {
		return nil, err
	}
	return Compile(sources...)
}

// Read returns the sources that Load would compile, in the order of their names within a directory.
func Read(paths ...string) ([]Source, error) {
	var sources []Source
	var broken Findings
	for _, p := range paths {
		files, err := expand(p)
		if err != nil {
			broken = append(broken, unreadable(p, err))
			continue
		}
		for _, f := range files {
			data, err := os.ReadFile(f)
			if err != nil {
				broken = append(broken, unreadable(f, err))
				continue
			}
			sources = append(sources, Source{Name: f, Data: data})
		}
	}
	if len(broken) > 0 {
		return nil, broken
	}
	return sources, nil
}

func unreadable(path string, err error) Finding {
	if pe, ok := errors.AsType[*fs.PathError](err); ok {
		err = pe.Err
	}
	return Finding{Code: codeUnreadable, File: path, Line: 1, Column: 1, Text: fmt.Sprintf("read %s: %v", path, err)}
}

func expand(path string) ([]string, error) {
	info, err := os.Stat(path)
	if err != nil {
		return nil, err
	}
	if !info.IsDir() {
		return []string{path}, nil
	}
	entries, err := os.ReadDir(path)
	if err != nil {
		return nil, err
	}
	var files []string
	for _, e := range entries {
		name := e.Name()
		if !isPolicyFile(name) {
			continue
		}
		full := filepath.Join(path, name)
		if info, err := os.Stat(full); err == nil && info.IsDir() {
			continue
		}
		files = append(files, full)
	}
	slices.Sort(files)
	return files, nil
}

// isPolicyFile skips the temporary files of editors and Kubernetes' own ..data entries.
func isPolicyFile(name string) bool {
	if strings.HasPrefix(name, ".") {
		return false
	}
	return strings.HasSuffix(name, ".yaml") || strings.HasSuffix(name, ".yml") || strings.HasSuffix(name, setSuffix)
}

// Compile checks and compiles documents. The error is Findings with every fault of every source, in the order of
// file, line and column; a Set is returned only when there is none.
func Compile(sources ...Source) (*Set, error) {
	c := newCompiler()
	docs := c.readAll(sources)
	s := c.link(docs)
	if c.broken() {
		return nil, c.sorted(Error)
	}
	s.warnings = c.sorted(Warning)
	return s, nil
}

// Warnings are findings that do not stop the set from being used.
func (s *Set) Warnings() []Finding { return slices.Clone(s.warnings) }

// Document returns the canonical source of one policy document by its hash. It compiles to the same rules as the
// original, whatever that looked like.
func (s *Set) Document(hash string) (Source, bool) {
	d, ok := s.docs[hash]
	return d, ok
}

// Target is what a request is matched by.
type Target struct {
	Service string // namespace/name; empty: not known
	Host    string // with or without a port
	Method  string
	Path    string // raw, still encoded, without the query
	GRPC    bool   // by its content type
}

// Start returns the rule by which an inbound request opens a transaction, nil when there is none. The most specific
// match wins, then the oldest document, then the first name. It does not allocate.
func (s *Set) Start(t Target) *Start { return s.starts.find(t) }

// Call returns the rule by which an outbound request is a branch, nil when there is none. Precedence as in Start.
func (s *Set) Call(t Target) *Call { return s.calls.find(t) }

// Names reports whether any rule names this service or host. The transaction's context is taken off calls to others.
func (s *Set) Names(service, host string) bool {
	return s.starts.names(service, host) || s.calls.names(service, host)
}

// NamesPort reports whether a call rule names a host that a connection to this port may mean: with the port, or without
// one and the port is that of http.
func (s *Set) NamesPort(port uint16) bool { return s.calls.onPort(port) }

// Starts and Calls list the rules in the order in which they were read.
func (s *Set) Starts() []*Start { return slices.Clone(s.starts.all) }

// Calls lists the call rules in the order in which they were read.
func (s *Set) Calls() []*Call { return slices.Clone(s.calls.all) }
