// Package state has more of it than it may.
package state

import (
	"errors"
	"regexp"
	"sync"
	"time"
)

// Values by another name.
var (
	ErrGone = errors.New("gone")
	word    = regexp.MustCompile(`\w+`)
	epoch   = time.Date(2026, 1, 1, 0, 0, 0, 0, time.UTC)
	version = "unknown"
	options = sync.OnceValue(func() int { return 1 })
	table   = []string{"a", "b"}
	_       = word
)

var (
	mu      sync.Mutex               // want `package variable mu has no fixed value: make it a field`
	count   = 0                      // want `package variable count is written to: make it a field`
	cache   = map[string]int{}       // want `package variable cache is written to: make it a field`
	order   = []string{"a"}          // want `package variable order is written to: make it a field`
	point   = struct{ x int }{1}     // want `package variable point is written to: make it a field`
	shared  = struct{ x int }{1}     // want `package variable shared is written to: make it a field`
	Default = []string{"a"}          // want `package variable Default can be written by every importer: make it a function that returns it`
	Limit   = 10                     // want `package variable Limit can be written by every importer: make it a constant`
	pool    = newPool()              // want `package variable pool holds the result of a call: make it a field or a function`
	once    *sync.Once               // want `package variable once has no fixed value: make it a field`
	hook    = func() {}              // want `package variable hook has no fixed value: make it a field`
	handle  = &struct{ x int }{x: 1} // want `package variable handle has no fixed value: make it a field`
)

func init() {} // want `no init function: what a type needs is a field or an argument`

func newPool() *sync.Pool { return nil }

func use() {
	count++
	delete(cache, "a")
	order[0] = "b"
	point.x = 2
	change(&shared)
}

func change(*struct{ x int }) {}

// local shadows: its table is its own.
func local() []string {
	table := []string{"x"}
	table[0] = version
	return table
}

type t struct{}

// init of a type is a method like any other.
func (t) init() {}
