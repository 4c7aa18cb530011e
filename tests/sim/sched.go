package sim

import (
	"fmt"
	"iter"
	"math/rand/v2"
	"strings"
	"time"
)

// event is something that happens at a moment.
type event struct {
	at  time.Time
	seq uint64
	do  func()
}

func (e event) before(o event) bool {
	if e.at.Equal(o.at) {
		return e.seq < o.seq
	}
	return e.at.Before(o.at)
}

// queue is a heap of events, the next one first.
type queue []event

func (q *queue) push(e event) {
	h := append(*q, e)
	i := len(h) - 1
	for i > 0 {
		up := (i - 1) / 2
		if !h[i].before(h[up]) {
			break
		}
		h[i], h[up] = h[up], h[i]
		i = up
	}
	*q = h
}

func (q *queue) pop() event {
	h := *q
	first, last := h[0], len(h)-1
	h[0], h[last] = h[last], event{}
	h = h[:last]
	for i := 0; ; {
		least := i
		for c := 2*i + 1; c <= 2*i+2 && c < last; c++ {
			if h[c].before(h[least]) {
				least = c
			}
		}
		if least == i {
			break
		}
		h[i], h[least] = h[least], h[i]
		i = least
	}
	*q = h
	return first
}

// clock is the one scheduler of a world: virtual time, one source of chance, and who runs now.
type clock struct {
	now     time.Time
	rng     *rand.Rand
	queue   queue
	seq     uint64
	cur     *actor // the coroutine that runs; nil: the scheduler itself
	steps   int
	threads *threads
	trace   *strings.Builder // nil: nobody reads it
}

func (c *clock) after(d time.Duration, do func()) {
	c.seq++
	c.queue.push(event{c.now.Add(d), c.seq, do})
}

// step lets the next event happen.
func (c *clock) step() bool {
	if len(c.queue) == 0 {
		return false
	}
	e := c.queue.pop()
	c.now = e.at
	c.steps++
	e.do()
	return true
}

// between is a duration from [low, high).
func (c *clock) between(low, high time.Duration) time.Duration {
	return low + time.Duration(c.rng.Int64N(int64(high-low)))
}

func (c *clock) logf(format string, args ...any) {
	if c.trace != nil {
		fmt.Fprintf(c.trace, "%9.3fs  ", c.now.Sub(epoch).Seconds())
		fmt.Fprintf(c.trace, format, args...)
		c.trace.WriteByte('\n')
	}
}

// epoch is when every world begins.
var epoch = time.Date(2026, 1, 1, 0, 0, 0, 0, time.UTC)

// process is what dies as a whole: a sidecar, an application, a client. Its coroutines die with it.
type process struct {
	name   string
	up     bool
	lives  int       // how often it was started
	frozen time.Time // until when it is stopped, with all that it has in hand
	actors []*actor
}

// actor is a coroutine: it runs until it parks, and goes on when it is woken.
type actor struct {
	c     *clock
	proc  *process
	at    int // index in proc.actors
	token uint64
	run   func(a *actor)
	on    *thread // nil: not begun
	done  bool
	dead  bool // its process died: it only unwinds
}

// killed unwinds the coroutines of a process that died.
type killed struct{}

// thread is what actors run on, one after another: a stack that has grown once is worth keeping.
type thread struct {
	a     *actor // nil: idle
	next  func() (struct{}, bool)
	stop  func()
	yield func(struct{}) bool
}

// threads are those that are idle.
type threads struct{ idle []*thread }

func (p *threads) get() *thread {
	if last := len(p.idle) - 1; last >= 0 {
		t := p.idle[last]
		p.idle = p.idle[:last]
		return t
	}
	t := &thread{}
	var body iter.Seq[struct{}] = func(yield func(struct{}) bool) {
		t.yield = yield
		for {
			t.act()
			if !yield(struct{}{}) {
				return
			}
		}
	}
	t.next, t.stop = iter.Pull(body)
	return t
}

// act runs one actor to its end.
func (t *thread) act() {
	a := t.a
	defer func() {
		a.done = true
		if r := recover(); r != nil {
			if _, dead := r.(killed); !dead {
				panic(r)
			}
		}
	}()
	a.run(a)
}

func (p *threads) put(t *thread) {
	t.a = nil
	p.idle = append(p.idle, t)
}

// close ends the idle ones.
func (p *threads) close() {
	for _, t := range p.idle {
		t.stop()
	}
	p.idle = nil
}

// spawn starts a coroutine of a process, now.
func (c *clock) spawn(p *process, run func(a *actor)) *actor {
	a := &actor{c: c, proc: p, at: len(p.actors), run: run}
	p.actors = append(p.actors, a)
	c.wakeAfter(a, 0)
	return a
}

// wakeAfter wakes a parked actor, unless something else does so before.
func (c *clock) wakeAfter(a *actor, d time.Duration) {
	token := a.token
	c.after(d, func() { c.wake(a, token) })
}

// wake lets an actor go on that still waits for this, as soon as its process is not stopped.
func (c *clock) wake(a *actor, token uint64) {
	switch {
	case a.done || a.token != token:
	case a.proc.frozen.After(c.now):
		c.after(a.proc.frozen.Sub(c.now), func() { c.wake(a, token) })
	default:
		c.resume(a)
	}
}

func (c *clock) resume(a *actor) {
	a.token++
	c.turn(a)
	if a.done {
		a.proc.forget(a)
	}
}

// turn lets an actor run until it parks or ends.
func (c *clock) turn(a *actor) {
	if a.on == nil {
		a.on = c.threads.get()
		a.on.a = a
	}
	before := c.cur
	c.cur = a
	a.on.next()
	c.cur = before
	if a.done {
		c.threads.put(a.on)
		a.on = nil
	}
}

func (p *process) forget(a *actor) {
	last := len(p.actors) - 1
	if a.at > last || p.actors[a.at] != a {
		return // its process died meanwhile
	}
	p.actors[a.at] = p.actors[last]
	p.actors[a.at].at = a.at
	p.actors = p.actors[:last]
}

// park gives the turn away until somebody wakes this actor.
func (a *actor) park() {
	if !a.dead {
		a.on.yield(struct{}{})
	}
	if a.dead {
		panic(killed{})
	}
}

// sleep parks for a time.
func (a *actor) sleep(d time.Duration) {
	a.c.wakeAfter(a, d)
	a.park()
}

// kill ends a process. When the running actor belongs to it, kill does not return.
func (c *clock) kill(p *process) {
	if !p.up {
		return
	}
	p.up = false
	actors := p.actors
	p.actors = nil
	suicide := false
	for _, a := range actors {
		if a == c.cur {
			suicide = true
			continue
		}
		if a.dead = true; a.on != nil {
			c.turn(a)
		}
		a.done = true
	}
	if suicide {
		panic(killed{})
	}
}

// start brings a process up.
func (p *process) start() {
	p.up, p.frozen = true, time.Time{}
	p.lives++
}

// in does something after a time if the process still lives the life it lives now.
func (c *clock) in(p *process, d time.Duration, do func()) {
	life := p.lives
	var due func()
	due = func() {
		switch {
		case !p.up || p.lives != life:
		case p.frozen.After(c.now):
			c.after(p.frozen.Sub(c.now), due)
		default:
			do()
		}
	}
	c.after(d, due)
}

// signal is something that happens once and that actors wait for.
type signal struct {
	fired   bool
	waiters []waiter
}

type waiter struct {
	a     *actor
	token uint64
}

// fire wakes all who wait.
func (c *clock) fire(s *signal) {
	if s.fired {
		return
	}
	s.fired = true
	for _, w := range s.waiters {
		c.after(0, func() { c.wake(w.a, w.token) })
	}
	s.waiters = nil
}

// wait parks until the signal, at most for the time given (0: for ever), and reports whether it came.
func (a *actor) wait(s *signal, most time.Duration) bool {
	if s.fired {
		return true
	}
	s.waiters = append(s.waiters, waiter{a, a.token})
	if most > 0 {
		a.c.wakeAfter(a, most)
	}
	a.park()
	return s.fired
}
