//go:build linux

package fleet

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"time"

	"txmesh/tests/netns"
)

// storm performs faults.
type storm struct {
	w     *world
	began time.Time

	mu     sync.Mutex    // guards below
	active map[int]Fault // of the wire, by number
	struck []struckFault // those that have ended
	errs   []error
}

// struckFault is a fault and what was seen of it.
type struckFault struct {
	Fault
	began, end time.Time // in fact
	packets    netns.Counts
	note       string
}

// rage performs the faults, each in its time, until the context ends, which ends them all, and all is well then.
func (s *storm) rage(ctx context.Context, all []Fault) {
	var done sync.WaitGroup
	for i, f := range all {
		done.Go(func() {
			select {
			case <-time.After(time.Until(s.began.Add(f.At))):
				s.strike(ctx, i, f)
			case <-ctx.Done():
			}
		})
	}
	done.Wait()
}

func (s *storm) strike(ctx context.Context, i int, f Fault) {
	before := s.packets(f)
	done := struckFault{Fault: f, began: time.Now()}
	var err error
	if len(f.To) > 0 {
		s.wire(i, f)
		pause(ctx, f.Lasts)
		s.wire(i, Fault{})
	} else {
		done.note, err = s.hurt(ctx, s.w.units[f.From[0]], f)
	}
	done.end, done.packets = time.Now(), minus(s.packets(f), before)
	s.mu.Lock()
	defer s.mu.Unlock()
	s.struck = append(s.struck, done)
	if err != nil {
		s.errs = append(s.errs, fmt.Errorf("%v: %w", f, err))
	}
}

func pause(ctx context.Context, d time.Duration) {
	select {
	case <-time.After(d):
	case <-ctx.Done():
	}
}

// wire adds a fault of the wire, or takes it away, which the zero Fault means, and applies what there is then.
func (s *storm) wire(i int, f Fault) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.active[i] = f; len(f.To) == 0 {
		delete(s.active, i)
	}
	worst := map[[2]string]netns.Fault{}
	for _, f := range s.active {
		f.each(func(from, to string) { worst[[2]string{from, to}] = f.over(worst[[2]string{from, to}]) })
	}
	s.w.net.Heal()
	for pair, f := range worst {
		s.w.net.Send([]*netns.Host{s.w.hosts[pair[0]]}, []*netns.Host{s.w.hosts[pair[1]]}, f)
	}
}

// each calls back with every direction that a fault strikes.
func (f Fault) each(do func(from, to string)) {
	for _, a := range f.From {
		for _, b := range f.To {
			do(a, b)
			if !f.OneWay {
				do(b, a)
			}
		}
	}
}

// over is a fault on a wire that has one already.
func (f Fault) over(w netns.Fault) netns.Fault {
	return netns.Fault{Cut: w.Cut || f.Kind == Cut, Loss: max(w.Loss, f.Loss), Delay: w.Delay + f.Delay, Jitter: max(w.Jitter, f.Jitter)}
}

func (s *storm) packets(f Fault) (sum netns.Counts) {
	f.each(func(from, to string) {
		c := s.w.net.Counts(s.w.hosts[from], s.w.hosts[to])
		sum.Passed, sum.Late, sum.Cut, sum.Lost, sum.Full = sum.Passed+c.Passed, sum.Late+c.Late, sum.Cut+c.Cut, sum.Lost+c.Lost, sum.Full+c.Full
	})
	return sum
}

func minus(a, b netns.Counts) netns.Counts {
	return netns.Counts{Passed: a.Passed - b.Passed, Late: a.Late - b.Late, Cut: a.Cut - b.Cut, Lost: a.Lost - b.Lost, Full: a.Full - b.Full}
}

// hurt strikes a process or its disk, and mends it. It notes how long the mending took.
func (s *storm) hurt(ctx context.Context, u *unit, f Fault) (note string, err error) {
	u.mu.Lock()
	defer u.mu.Unlock()
	if !u.process.Running() {
		return "", fmt.Errorf("%s has ended by itself: %w\n%s", u.name, u.process.Err(), u.process.Tail())
	}
	switch f.Kind {
	case Stop:
		u.process.Pause()
		pause(ctx, f.Lasts)
		u.process.Continue()
		return "", nil
	case Kill:
		u.process.Kill()
		pause(ctx, f.Lasts)
	case Fill:
		fillErr := u.disk.Fill(0)
		pause(ctx, f.Lasts)
		if err := errors.Join(fillErr, u.disk.Drain()); err != nil {
			return "", err
		}
		if u.mayFail { // what a write has failed for may be ending just now
			pause(context.WithoutCancel(ctx), time.Second)
		}
		if u.process.Running() {
			return "it went on", nil
		}
		if !u.mayFail {
			return "", fmt.Errorf("%s has ended: %w\n%s", u.name, u.process.Err(), u.process.Tail())
		}
		note = "it ended, "
	case Cut, Lose, Slow, NumKinds:
		panic("fleet: no fault of a process: " + f.Kind.String())
	}
	began := time.Now()
	err = u.process.Start(&struct{}{})
	return note + fmt.Sprintf("ready after %v", time.Since(began).Round(time.Millisecond)), err
}
