package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"syscall"
	"time"

	"txmesh/benchmarks/load"
)

// cell is one row of conditions.
type cell struct {
	Protocol protocol `json:"protocol"`
	Body     int      `json:"body"`
	Conns    int      `json:"connections"`
	Open     bool     `json:"open"` // an open loop
}

func (c cell) String() string {
	loop := "closed loop"
	if c.Open {
		loop = "open loop"
	}
	return fmt.Sprintf("%s, %s, %d KiB, %d connections", loop, c.Protocol, c.Body>>10, c.Conns)
}

// sample is what one turn of one proxy gave.
type sample struct {
	cell
	Rival      string           `json:"rival"`
	Round      int              `json:"round"`
	Rate       float64          `json:"rate,omitempty"` // asked for, of an open loop
	Throughput float64          `json:"throughput"`
	P50        float64          `json:"p50_us"`
	P90        float64          `json:"p90_us"`
	P99        float64          `json:"p99_us"`
	P999       float64          `json:"p99.9_us"`
	LateP99    float64          `json:"late_p99_us,omitempty"` // of the driver
	CPU        float64          `json:"cpu_us"`                // of the proxy, for each right answer
	OriginCPU  float64          `json:"origin_cpu_us"`
	DriverCPU  float64          `json:"driver_cpu_us"`
	Memory     memory           `json:"memory"`
	Sent       int64            `json:"sent"`
	OK         int64            `json:"ok"`
	Errors     map[string]int64 `json:"errors,omitempty"`
	Load       string           `json:"load_average"`
	latency    *load.Histogram
}

// running is a proxy between the driver and a server.
type running struct {
	*instance
	rival  rival
	origin *process
}

const (
	// readyMax is how long a proxy may take until it answers.
	readyMax = 5 * time.Second
	grace    = 5 * time.Second
)

// with starts server and proxy, waits until they answer, and ends them after f.
func (b *bench) with(ctx context.Context, r rival, p protocol, f func(*running) error) (err error) {
	dir, err := os.MkdirTemp(b.dir, "turn-")
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, os.RemoveAll(dir)) }()
	at, err := newPlace(p, "127.0.0.1:0", dir, b.workers)
	if err != nil {
		return err
	}
	args := []string{"-address", at.Address}
	if p == grpc {
		args = append(args, "-grpc")
	}
	origin, err := at.run("origin", b.program("origin"), args...)
	if err != nil {
		return err
	}
	defer origin.stop()
	if err := ready(ctx, origin, p, untaggedPath); err != nil {
		return fmt.Errorf("the server itself: %w", err)
	}
	if at, err = newPlace(p, at.Address, dir, b.workers); err != nil {
		return err
	}
	i, err := r.start(ctx, at)
	if err != nil {
		return err
	}
	defer i.stop()
	if err := ready(ctx, i, p, r.path); err != nil {
		return err
	}
	return f(&running{i, r, origin.process})
}

// ready waits until a call comes back, and is a branch if it should be.
func ready(ctx context.Context, i *instance, p protocol, path string) error {
	dial := i.dial(p, path, 100)
	for begun := time.Now(); ; {
		err := once(ctx, dial)
		if err == nil && i.calls != nil {
			n, err := i.calls.enlisted(0)
			if err == nil && n == 0 {
				err = errors.New("the call passed without becoming a branch")
			}
			return err
		}
		if err == nil || ctx.Err() != nil {
			return errors.Join(err, ctx.Err())
		}
		if i.process != nil && i.process.ended() != nil {
			return i.process.ended()
		}
		if time.Since(begun) > readyMax {
			return err
		}
		time.Sleep(2 * time.Millisecond)
	}
}

func once(ctx context.Context, dial func(context.Context, int) (load.Caller, error)) error {
	ctx, cancel := context.WithTimeout(ctx, readyMax)
	defer cancel()
	c, err := dial(ctx, 0)
	if err != nil {
		return err
	}
	defer func() { _ = c.Close() }() // the call tells what there is
	if err := c.Prepare(); err != nil {
		return err
	}
	return c.Call()
}

// turn measures one proxy under the conditions of a cell.
func (b *bench) turn(ctx context.Context, c cell, r rival, round int, rate float64) (s sample, err error) {
	s = sample{cell: c, Rival: r.name, Round: round, Rate: rate}
	err = b.with(ctx, r, c.Protocol, func(p *running) error {
		var costs meter
		startProfile, profileTaken := b.profiled(ctx, c, p, round)
		res, err := load.Run(ctx, load.Options{Dial: p.dial(c.Protocol, r.path, c.Body), Conns: c.Conns, Rate: rate,
			Warm: b.plan.warm, For: b.plan.window, Grace: grace, Window: func(begins bool) {
				costs.read(p)
				if begins {
					startProfile()
				}
			}})
		if err := errors.Join(err, costs.err); err != nil {
			return err
		}
		if p.process != nil && p.process.ended() != nil {
			return p.process.ended()
		}
		s.fill(res, &costs)
		return profileTaken()
	})
	return s, err
}

func (s *sample) fill(r *load.Result, m *meter) {
	us := func(d time.Duration) float64 { return float64(d) / float64(time.Microsecond) }
	each := func(d time.Duration) float64 { return us(d) / float64(max(r.OK, 1)) }
	s.Throughput, s.Sent, s.OK, s.Errors = r.Throughput(), r.Sent, r.OK, r.Errors
	s.P50, s.P90, s.P99, s.P999 = us(r.Latency.At(0.5)), us(r.Latency.At(0.9)), us(r.Latency.At(0.99)), us(r.Latency.At(0.999))
	s.LateP99 = us(r.Late.At(0.99))
	s.CPU, s.OriginCPU, s.DriverCPU = each(m.took(0)), each(m.took(1)), each(m.took(2))
	s.Memory, s.Load, s.latency = m.memory, loadAverage(), r.Latency
}

// meter reads what proxy, server and driver have used, when the counted time begins and when it ends.
type meter struct {
	reads  [][3]time.Duration
	memory memory
	err    error
}

func (m *meter) read(p *running) {
	var now [3]time.Duration
	var errs [5]error
	if p.process != nil {
		now[0], errs[0] = p.process.cpu()
		m.memory, errs[1] = p.process.memory()
	}
	now[1], errs[2] = p.origin.cpu()
	var own syscall.Rusage
	errs[3] = syscall.Getrusage(syscall.RUSAGE_SELF, &own)
	now[2] = time.Duration(own.Utime.Nano() + own.Stime.Nano())
	m.reads, m.err = append(m.reads, now), errors.Join(append(errs[:4], m.err)...)
}

func (m *meter) took(who int) time.Duration { return m.reads[len(m.reads)-1][who] - m.reads[0][who] }

// journalDisk names the file system that the journals are on.
func journalDisk(dir string) string {
	var fs syscall.Statfs_t
	if err := syscall.Statfs(filepath.Clean(dir), &fs); err != nil {
		return "unknown"
	}
	switch fs.Type {
	case 0xef53:
		return "ext4"
	case 0x01021994:
		return "tmpfs: in memory, so that a sync costs nothing"
	case 0x58465342:
		return "xfs"
	case 0x9123683e:
		return "btrfs"
	case 0x794c7630:
		return "overlayfs"
	}
	return fmt.Sprintf("a file system of type %#x", fs.Type)
}
