package sim

import "time"

// link is the way between two processes.
type link struct {
	near  bool // one machine: nothing is lost, unless somebody dies
	good  bool // little is lost
	twice bool // what crosses it may arrive twice
}

// exchange is one request and its answer.
type exchange struct {
	signal
	res  any
	err  error
	at   int // index in the callee's open exchanges; -1: not there
	from *process
}

func (w *world) lag() time.Duration { return w.between(time.Millisecond, 20*time.Millisecond) }

// carry brings a request to a process and the answer back, unless one of them is lost or comes too late. serve runs
// in a coroutine of the callee, twice where the network repeats.
func (w *world) carry(a *actor, l link, to *server, timeout time.Duration, serve func(b *actor) any) (any, error) {
	x := &exchange{at: -1, from: a.proc}
	bad := 0.03
	if l.good {
		bad = 0.005
	}
	lost := !l.near && w.chance(bad)
	mute := !l.near && w.chance(bad)
	lag := w.lag()
	if !l.near && w.chance(bad) {
		lag = w.between(time.Second, w.latest)
	}
	if lost || w.apart(a.proc, &to.process) {
		if w.chance(0.5) {
			w.end(x, lag, nil, errReset)
		}
	} else {
		w.after(lag, func() { w.arrive(x, to, mute, serve) })
	}
	if l.twice && !l.near && w.chance(0.05) {
		again := w.between(time.Millisecond, w.latest)
		if w.chance(0.5) {
			again = lag + w.between(0, 3*time.Millisecond) // hard on its heels
		}
		w.after(again, func() {
			if to.open() {
				w.spawn(&to.process, func(b *actor) { serve(b) })
			}
		})
	}
	if !a.wait(&x.signal, timeout) {
		return nil, errTimeout
	}
	return x.res, x.err
}

func (w *world) arrive(x *exchange, to *server, mute bool, serve func(b *actor) any) {
	switch {
	case w.apart(x.from, &to.process):
		return
	case !to.open():
		w.end(x, w.lag(), nil, errRefused)
		return
	}
	x.at = len(to.exchanges)
	to.exchanges = append(to.exchanges, x)
	w.spawn(&to.process, func(b *actor) {
		res := serve(b)
		to.leave(x)
		if !mute && !w.apart(x.from, &to.process) {
			w.end(x, w.lag(), res, nil)
		} else if w.chance(0.5) {
			w.end(x, w.lag(), nil, errReset)
		}
	})
}

func (w *world) end(x *exchange, d time.Duration, res any, err error) {
	w.after(d, func() {
		if !x.fired {
			x.res, x.err = res, err
			w.fire(&x.signal)
		}
	})
}

// server is a process that others connect to.
type server struct {
	process
	listening bool
	exchanges []*exchange
}

func (s *server) open() bool { return s.up && s.listening }

func (s *server) leave(x *exchange) {
	last := len(s.exchanges) - 1
	s.exchanges[x.at] = s.exchanges[last]
	s.exchanges[x.at].at = x.at
	s.exchanges = s.exchanges[:last]
	x.at = -1
}

// die ends the process; whoever waits for it sees the connection break. When the running actor belongs to it, die does
// not return.
func (w *world) die(s *server) {
	for _, x := range s.exchanges {
		x.at = -1
		w.end(x, w.lag(), nil, errReset)
	}
	s.exchanges, s.listening = nil, false
	w.kill(&s.process)
}
