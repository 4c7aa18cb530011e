// Package main compares the functions that no process test reached with the list that says why. It reads what
// `go tool cover -func` prints on standard input and the list named as its argument, prints both sides of every
// difference, and fails unless each function that was not reached has its reason and each reason its function. It
// measures nothing itself. Start at compare.
package main

import (
	"bufio"
	"fmt"
	"io"
	"maps"
	"os"
	"path"
	"slices"
	"strings"
)

func main() {
	if err := run(os.Args[1:], os.Stdin, os.Stdout); err != nil {
		fmt.Fprintln(os.Stderr, "reached:", err)
		os.Exit(1)
	}
}

func run(args []string, profile io.Reader, out io.Writer) error {
	if len(args) != 1 {
		return fmt.Errorf("want one argument, the file with the reasons; go tool cover -func on standard input")
	}
	missed, total, err := readProfile(profile)
	if err != nil {
		return err
	}
	f, err := os.Open(args[0])
	if err != nil {
		return err
	}
	defer f.Close()
	reasons, err := readReasons(f)
	if err != nil {
		return fmt.Errorf("%s: %w", args[0], err)
	}
	return compare(missed, reasons, total, args[0], out)
}

// readProfile returns the functions without a single statement run, as package.Function; total counts all.
func readProfile(r io.Reader) (missed map[string]bool, total int, err error) {
	missed = map[string]bool{}
	in := bufio.NewScanner(r)
	for in.Scan() {
		// txmesh/txn/advance.go:6:	advance	100.0%
		f := strings.Fields(in.Text())
		if len(f) != 3 || f[0] == "total:" {
			continue
		}
		file, _, _ := strings.Cut(f[0], ":")
		total++
		if f[2] == "0.0%" {
			missed[strings.TrimPrefix(path.Dir(file), "txmesh/")+" "+path.Base(file)+" "+f[1]] = true
		}
	}
	if total == 0 {
		return nil, 0, fmt.Errorf("no function on standard input: did the processes write to GOCOVERDIR?")
	}
	return missed, total, in.Err()
}

// readReasons reads lines of `package file function: reason`; # begins a comment.
func readReasons(r io.Reader) (map[string]string, error) {
	reasons := map[string]string{}
	in := bufio.NewScanner(r)
	for in.Scan() {
		line := strings.TrimSpace(in.Text())
		if line == "" || line[0] == '#' {
			continue
		}
		name, reason, ok := strings.Cut(line, ": ")
		if !ok || reason == "" {
			return nil, fmt.Errorf("%q: want `package file function: reason`", line)
		}
		reasons[name] = reason
	}
	return reasons, in.Err()
}

func compare(missed map[string]bool, reasons map[string]string, total int, list string, out io.Writer) error {
	fmt.Fprintf(out, "%d of %d functions were reached by no process test:\n", len(missed), total)
	bad := 0
	for _, name := range slices.Sorted(maps.Keys(missed)) {
		reason, known := reasons[name]
		if !known {
			bad++
			reason = "NOT EXPLAINED"
		}
		fmt.Fprintf(out, "  %s: %s\n", name, reason)
	}
	for _, name := range slices.Sorted(maps.Keys(reasons)) {
		if !missed[name] {
			bad++
			fmt.Fprintf(out, "  %s: REACHED, or gone: take it off the list\n", name)
		}
	}
	if bad > 0 {
		return fmt.Errorf("%d differences to %s: test the function by a process, or write down why not", bad, list)
	}
	return nil
}
