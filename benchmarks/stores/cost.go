package main

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"runtime"
	"strconv"
	"strings"
	"time"
)

// cost is what processes have used so far.
type cost struct {
	sidecars, store time.Duration // processor time
	written         int64         // bytes to the disk, by sidecars and store
	count           int64         // of the store's own unit
}

func (c cost) minus(o cost) cost {
	return cost{c.sidecars - o.sidecars, c.store - o.store, c.written - o.written, c.count - o.count}
}

// cost sums up the children of this process and theirs: what is no sidecar is the store.
func (s *store) cost(all []*sidecar) (c cost, err error) {
	sidecars := map[int]bool{}
	for _, one := range all {
		sidecars[one.process.PID()] = true
	}
	tree, err := children()
	if err != nil {
		return c, err
	}
	for todo := tree[os.Getpid()]; len(todo) > 0; todo = todo[1:] {
		pid := todo[0]
		todo = append(todo, tree[pid]...)
		u, err := used(pid)
		switch {
		case errors.Is(err, fs.ErrNotExist):
			continue // it has ended, and its parent has what it used
		case err != nil:
			return c, err
		case sidecars[pid]:
			c.sidecars += u.cpu
		default:
			c.store += u.cpu
		}
		c.written += u.written
	}
	c.count, err = s.count()
	return c, err
}

// children returns the processes of this machine by their parents.
func children() (map[int][]int, error) {
	stats, err := filepath.Glob("/proc/[0-9]*/stat")
	if err != nil {
		return nil, err
	}
	out := map[int][]int{}
	for _, path := range stats {
		f, err := stat(path)
		if err != nil {
			continue // it has ended
		}
		pid, err := strconv.Atoi(filepath.Base(filepath.Dir(path)))
		if err != nil {
			return nil, err
		}
		out[int(f[1])] = append(out[int(f[1])], pid)
	}
	return out, nil
}

// stat returns the numbers behind the name of a process: its parent is the second, the state, a letter, is 0.
func stat(path string) ([]int64, error) {
	text, err := os.ReadFile(path)
	if err != nil {
		return nil, err
	}
	var out []int64
	for i, f := range strings.Fields(string(text[strings.LastIndexByte(string(text), ')')+1:])) {
		n, err := strconv.ParseInt(f, 10, 64)
		if err != nil && i > 0 && i < 15 {
			return nil, fmt.Errorf("%s: %w", path, err)
		}
		out = append(out, n)
	}
	return out, nil
}

type usage struct {
	cpu     time.Duration
	written int64
}

// used is what a process and its children that have ended have used.
func used(pid int) (u usage, err error) {
	f, err := stat(fmt.Sprintf("/proc/%d/stat", pid))
	if err != nil {
		return u, err
	}
	for _, ticks := range f[11:15] { // utime, stime, and those of the children, in hundredths of a second
		u.cpu += time.Duration(ticks) * 10 * time.Millisecond
	}
	text, err := os.ReadFile(fmt.Sprintf("/proc/%d/io", pid))
	if err != nil {
		return u, err
	}
	_, rest, _ := strings.Cut(string(text), "\nwrite_bytes: ")
	number, _, _ := strings.Cut(rest, "\n")
	u.written, err = strconv.ParseInt(number, 10, 64)
	return u, err
}

func loadAverage() (float64, error) {
	text, err := os.ReadFile("/proc/loadavg")
	if err != nil {
		return 0, err
	}
	first, _, _ := strings.Cut(string(text), " ")
	return strconv.ParseFloat(first, 64)
}

func machine() (string, error) {
	text, err := os.ReadFile("/proc/cpuinfo")
	_, rest, _ := strings.Cut(string(text), "model name\t: ")
	model, _, _ := strings.Cut(rest, "\n")
	return fmt.Sprintf("%s, %d cores of %s", runtime.Version(), runtime.NumCPU(), model), err
}
