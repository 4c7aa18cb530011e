package main

import (
	"context"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"
)

func shell(t *testing.T, script string) *process {
	t.Helper()
	p := &process{name: "the child", path: "/bin/sh", args: []string{"-c", script}, log: filepath.Join(t.TempDir(), "log")}
	t.Cleanup(p.kill)
	return p
}

func TestProcessIsReadyWithItsFirstLine(t *testing.T) {
	p := shell(t, `echo '{"port": 7}'; echo said; echo cried >&2; kill -STOP $$`)
	var ready struct{ Port int }
	if err := p.start(t.Context(), &ready); err != nil {
		t.Fatal(err)
	}
	if ready.Port != 7 || !p.running() {
		t.Errorf("ready = %+v, running %v, want port 7 and running", ready, p.running())
	}
	p.kill()
	if p.running() || p.err == nil {
		t.Errorf("after kill: running %v, error %v", p.running(), p.err)
	}
}

func TestProcessStartsAgain(t *testing.T) {
	p := shell(t, `echo '{}'; echo said; exec sleep 1000`)
	for run := range 2 {
		if err := p.start(t.Context(), &struct{}{}); err != nil {
			t.Fatal(err)
		}
		if err := poll(t.Context(), 10*time.Second, func() (bool, error) { return strings.Count(p.tail(), "said") > run, nil }); err != nil {
			t.Fatalf("%v: %s", err, p.tail())
		}
		p.stop(10 * time.Second)
	}
	text, err := os.ReadFile(p.log)
	if got, want := string(text), "said\nsaid\n"; err != nil || got != want {
		t.Errorf("log of two runs = %q, %v, want %q", got, err, want)
	}
}

func TestProcessIsKilledWhenItDoesNotStop(t *testing.T) {
	p := shell(t, `echo '{}'; kill -STOP $$`)
	if err := p.start(t.Context(), &struct{}{}); err != nil {
		t.Fatal(err)
	}
	p.stop(time.Millisecond)
	if p.running() {
		t.Error("it runs after stop")
	}
	p.stop(time.Millisecond) // does nothing
}

func TestProcessEndsThoughItsOutputIsHeldOpen(t *testing.T) {
	p := shell(t, `sleep 5 & echo '{}'; wait`)
	if err := p.start(t.Context(), &struct{}{}); err != nil {
		t.Fatal(err)
	}
	p.kill()
	if p.running() {
		t.Error("it runs after kill")
	}
}

func TestProcessThatDoesNotStart(t *testing.T) {
	for _, tt := range []struct {
		name, script, want string
	}{
		{"ends at once", `echo the port is taken >&2; exit 3`, "start the child: it ended before it was ready\nthe end of its log, LOG:\n  | the port is taken"},
		{"says something else", `echo hello; exec sleep 1000`, "start the child: first line \"hello\" is not what was expected: " +
			"invalid character 'h' looking for beginning of value\nits log is empty: LOG"},
		{"says nothing", `exec sleep 1000`, "start the child: it did not say that it is ready: context deadline exceeded\nits log is empty: LOG"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			p := shell(t, tt.script)
			ctx, cancel := context.WithCancel(t.Context())
			defer cancel()
			if tt.name == "says nothing" {
				ctx, cancel = context.WithTimeout(ctx, 10*time.Millisecond)
				defer cancel()
			}
			err := p.start(ctx, &struct{}{})
			if err == nil || strings.ReplaceAll(err.Error(), p.log, "LOG") != tt.want {
				t.Errorf("start = %v, want %s", err, tt.want)
			}
			if p.running() {
				t.Error("it runs")
			}
		})
	}
	p := shell(t, "")
	p.path = filepath.Join(t.TempDir(), "nothing")
	if err := p.start(t.Context(), &struct{}{}); err == nil || p.running() {
		t.Errorf("start of a program that is not there = %v, running %v", err, p.running())
	}
}

func TestTailIsTheEnd(t *testing.T) {
	p := &process{log: filepath.Join(t.TempDir(), "log")}
	if err := os.WriteFile(p.log, []byte(strings.Repeat("early\n", 20)+strings.Repeat("late\n", 12)), 0o600); err != nil {
		t.Fatal(err)
	}
	if got := p.tail(); strings.Contains(got, "early") || strings.Count(got, "late") != 12 {
		t.Errorf("tail = %s, want the last 12 lines", got)
	}
}
