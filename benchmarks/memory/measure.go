package main

import (
	"bufio"
	"context"
	"fmt"
	"io"
	"net/http"
	"os"
	"strings"
)

// resident is what /proc says of the sidecar, in KiB: RSS is anon (its own) and file (of the program, shared and read
// again from disk when memory is short).
type resident struct{ rss, anon, file int }

func (b *bench) resident() (resident, error) {
	text, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", b.process.PID()))
	if err != nil {
		return resident{}, err
	}
	var r resident
	for line := range strings.Lines(string(text)) {
		for name, to := range map[string]*int{"VmRSS:": &r.rss, "RssAnon:": &r.anon, "RssFile:": &r.file} {
			if value, ok := strings.CutPrefix(line, name); ok {
				if _, err := fmt.Sscan(value, to); err != nil {
					return r, fmt.Errorf("read %q: %w", line, err)
				}
			}
		}
	}
	return r, nil
}

func (b *bench) row(what string) (resident, error) {
	r, err := b.resident()
	if err == nil {
		fmt.Printf("%-44s %8.1f %8.1f %8.1f\n", what, mib(r.rss), mib(r.anon), mib(r.file))
	}
	return r, err
}

func mib(kib int) float64 { return float64(kib) / 1024 }

// live is what the sidecar's heap and stacks take, in bytes, as its own metrics say.
func (b *bench) live() (heap, stacks float64, err error) {
	r, err := http.NewRequestWithContext(context.Background(), http.MethodGet, "http://"+b.API+"/metrics", nil)
	if err != nil {
		return 0, 0, err
	}
	res, err := http.DefaultClient.Do(r)
	if err != nil {
		return 0, 0, err
	}
	text, err := io.ReadAll(res.Body)
	_ = res.Body.Close() // it has been read
	if err != nil {
		return 0, 0, err
	}
	for lines := bufio.NewScanner(strings.NewReader(string(text))); lines.Scan(); {
		for name, to := range map[string]*float64{"go_memstats_heap_alloc_bytes ": &heap, "go_memstats_stack_inuse_bytes ": &stacks} {
			if value, ok := strings.CutPrefix(lines.Text(), name); ok {
				if _, err := fmt.Sscan(value, to); err != nil {
					return 0, 0, fmt.Errorf("read %q: %w", lines.Text(), err)
				}
			}
		}
	}
	return heap, stacks, nil
}
