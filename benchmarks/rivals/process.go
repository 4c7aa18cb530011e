package main

import (
	"bytes"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"time"
)

// process is a program with all that it starts, which share a process group.
type process struct {
	name   string
	cmd    *exec.Cmd
	stderr *tail
	exited chan struct{} // closed when the program itself has ended
}

// launch starts a program. It goes when this one goes, however that comes about.
func launch(name, path string, args ...string) (*process, error) {
	p := &process{name: name, cmd: exec.Command(path, args...), stderr: &tail{}, exited: make(chan struct{})} //nolint:noctx // stop ends it
	p.cmd.Stderr = p.stderr
	p.cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true, Pdeathsig: syscall.SIGTERM}
	return p, nil
}

func (p *process) start() error {
	if err := p.cmd.Start(); err != nil {
		return fmt.Errorf("start %s: %w", p.name, err)
	}
	go func() {
		_ = p.cmd.Wait() // how it ended is told by ended
		close(p.exited)
	}()
	return nil
}

// ended tells with what words the program ended; nil: it runs.
func (p *process) ended() error {
	select {
	case <-p.exited:
		return fmt.Errorf("%s ended: %v: %s", p.name, p.cmd.ProcessState, p.stderr.text())
	default:
		return nil
	}
}

// stop ends the whole group and waits until it is gone.
func (p *process) stop() {
	if p == nil || p.cmd.Process == nil {
		return
	}
	_ = syscall.Kill(-p.cmd.Process.Pid, syscall.SIGKILL) // it may be gone already
	<-p.exited
	for begun := time.Now(); time.Since(begun) < time.Second; time.Sleep(time.Millisecond) {
		if members, err := p.members(); err != nil || len(members) == 0 {
			return
		}
	}
}

// tail keeps the last that a program wrote.
type tail struct {
	mu   sync.Mutex // guards last
	last []byte
}

const tailBytes = 2000

func (t *tail) Write(b []byte) (int, error) {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.last = append(t.last, b...)
	if n := len(t.last) - tailBytes; n > 0 {
		t.last = append(t.last[:0], t.last[n:]...)
	}
	return len(b), nil
}

func (t *tail) text() string {
	t.mu.Lock()
	defer t.mu.Unlock()
	return strings.TrimSpace(string(t.last))
}

// ticksPerSecond is USER_HZ, which Linux has had at 100 on all machines that Go runs on.
const ticksPerSecond = 100

// stat is what /proc says of one process.
type stat struct {
	pid, group int
	state      byte
	cpu        time.Duration // user and system, of all its threads
}

func parseStat(line []byte) (stat, error) {
	end := bytes.LastIndexByte(line, ')') // the name before it may have anything in it
	f := strings.Fields(string(line[end+1:]))
	pid, _, _ := strings.Cut(string(line), " ")
	if end < 0 || len(f) < 13 {
		return stat{}, fmt.Errorf("/proc: not a line of stat: %q", line)
	}
	var errs []error
	number := func(s string) int {
		n, err := strconv.Atoi(s)
		errs = append(errs, err)
		return n
	}
	s := stat{pid: number(pid), group: number(f[2]), state: f[0][0],
		cpu: time.Duration(number(f[11])+number(f[12])) * time.Second / ticksPerSecond}
	return s, errors.Join(errs...)
}

// members are the living processes of the group.
func (p *process) members() ([]stat, error) {
	files, err := filepath.Glob("/proc/[0-9]*/stat")
	if err != nil {
		return nil, err
	}
	var all []stat
	for _, f := range files {
		line, err := os.ReadFile(f)
		if err != nil {
			continue // it has just ended
		}
		s, err := parseStat(line)
		if err != nil {
			return nil, err
		}
		if s.group == p.cmd.Process.Pid && s.state != 'Z' {
			all = append(all, s)
		}
	}
	return all, nil
}

// cpu is the processor time of the group so far.
func (p *process) cpu() (time.Duration, error) {
	members, err := p.members()
	var sum time.Duration
	for _, m := range members {
		sum += m.cpu
	}
	return sum, err
}

// memory is of all processes of a group, in bytes. What they share is counted for each.
type memory struct {
	RSS  int64 `json:"rss"`  // resident now
	Peak int64 `json:"peak"` // the most that was resident
	Anon int64 `json:"anon"` // resident now, files excluded
}

func (p *process) memory() (memory, error) {
	var m memory
	members, err := p.members()
	if err != nil {
		return m, err
	}
	for _, s := range members {
		text, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", s.pid))
		if err != nil {
			return m, err
		}
		for field, to := range map[string]*int64{"VmRSS": &m.RSS, "VmHWM": &m.Peak, "RssAnon": &m.Anon} {
			kb, err := statusKB(text, field)
			if err != nil {
				return m, err
			}
			*to += kb << 10
		}
	}
	return m, nil
}

func statusKB(text []byte, field string) (int64, error) {
	for line := range strings.Lines(string(text)) {
		if rest, ok := strings.CutPrefix(line, field+":"); ok {
			return strconv.ParseInt(strings.Fields(rest)[0], 10, 64)
		}
	}
	return 0, fmt.Errorf("/proc: no %s in the status of a process", field)
}
