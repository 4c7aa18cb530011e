//go:build linux

package fleet

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"maps"
	"net"
	"net/http"
	"slices"
	"testing"
	"time"

	"txmesh/txlog"
	"txmesh/txlog/etcd"
	"txmesh/txn"
)

// wrong collects what does not hold, and prints the first of it.
type wrong struct {
	t     *testing.T
	count int
}

func (w *wrong) addf(format string, args ...any) {
	const printed = 30
	if w.count++; w.count <= printed {
		w.t.Errorf(format, args...)
	}
}

// unfinished lists, by the sidecars, what has not ended: ids, each with where it stands for whom.
func (w *world) unfinished() (open map[string]string, err error) {
	open = map[string]string{}
	for _, p := range w.pods {
		err = errors.Join(err, p.unfinished(open))
	}
	return open, err
}

func (p *pod) unfinished(open map[string]string) error {
	text, err := p.get("?limit=1000&phase=open&phase=committing&phase=aborting&phase=stuck")
	if err != nil {
		return err
	}
	var page struct{ Transactions []struct{ ID, Phase string } }
	if err := json.Unmarshal(text, &page); err != nil {
		return fmt.Errorf("list of %s: %w", p.host.Name, err)
	}
	for _, x := range page.Transactions {
		open[x.ID] += x.Phase + " for " + p.host.Name + "; "
	}
	return nil
}

// get asks the API of a sidecar for transactions.
func (p *pod) get(which string) ([]byte, error) {
	url := fmt.Sprintf("http://127.0.0.1:%d/v1/transactions%s", apiPort, which)
	r, err := http.NewRequestWithContext(context.Background(), http.MethodGet, url, nil)
	if err != nil {
		return nil, err
	}
	r.Header.Set("Authorization", "Bearer "+token)
	res, err := p.client.Do(r)
	if err != nil {
		return nil, fmt.Errorf("ask %s: %w", p.host.Name, err)
	}
	defer res.Body.Close()
	text, err := io.ReadAll(res.Body)
	if err == nil && res.StatusCode != http.StatusOK {
		err = errors.New(res.Status)
	}
	if err != nil {
		return nil, fmt.Errorf("ask %s for %s: %w %s", p.host.Name, which, err, text)
	}
	return text, nil
}

// settle waits until nothing is open for any sidecar, and tells how long that took.
func (w *world) settle(within time.Duration) time.Duration {
	w.t.Helper()
	const rest = 200 * time.Millisecond
	calm := time.Now()
	for {
		open, err := w.unfinished()
		took := time.Since(calm)
		if err == nil && len(open) == 0 {
			return took
		}
		if took > within {
			w.t.Errorf("%v after the last fault, want nothing open within %v: %d open; %v", took, within, len(open), err)
			w.describe(open)
			return took
		}
		time.Sleep(rest)
	}
}

// describe prints the first of what is open, as the sidecars tell it.
func (w *world) describe(open map[string]string) {
	const printed = 3
	for i, id := range slices.Sorted(maps.Keys(open)) {
		if i == printed {
			return
		}
		text, err := w.pods[0].get("/" + id)
		w.t.Logf("%s is %s\n%s %v", id, open[id], text, err)
	}
}

// history reads the store itself, and calls back with every transaction.
func (w *world) history(ctx context.Context, each func(s txlog.Summary, records []txn.Record)) error {
	var endpoints []string
	for _, name := range w.roster.Stores {
		l, err := w.window(name)
		if err != nil {
			return err
		}
		defer l.Close()
		endpoints = append(endpoints, l.Addr().String())
	}
	engine, err := etcd.Open(ctx, etcd.Options{Endpoints: endpoints, Prefix: prefix})
	if err != nil {
		return err
	}
	defer func() { must(w.t, engine.Close()) }()
	store := engine.As(txlog.Owner{})
	const page = 1000
	for q := (txlog.Query{Limit: page}); ; {
		found, next, err := store.List(ctx, q)
		if err != nil {
			return err
		}
		for _, s := range found {
			var records []txn.Record
			for e, err := range store.History(ctx, s.ID) {
				if err != nil {
					return fmt.Errorf("history of %v: %w", s.ID, err)
				}
				records = append(records, e.Record)
			}
			each(s, records)
		}
		if q.From = next; next == "" {
			return nil
		}
	}
}

// window opens a port of this process through which a member of the store is reached from outside of the net.
func (w *world) window(member string) (net.Listener, error) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		return nil, err
	}
	go func() {
		for {
			in, err := l.Accept()
			if err != nil {
				return // closed
			}
			out, err := w.clients.DialContext(context.Background(), "tcp", w.hosts[member].At(etcdPort))
			if err != nil {
				in.Close()
				continue
			}
			pipe := func(to, from net.Conn) {
				_, _ = io.Copy(to, from) // what breaks off is broken for both
				to.Close()
			}
			go pipe(in, out)
			go pipe(out, in)
		}
	}()
	return l, nil
}

// fate is what the store says of transactions.
type fate struct {
	committed map[string]bool // by id: how it ended
	aborted   int
	decisions int
}

// checkStore holds every transaction of the store to its laws.
func (w *world) checkStore(bad *wrong) fate {
	f := fate{committed: map[string]bool{}}
	err := w.history(w.t.Context(), func(s txlog.Summary, records []txn.Record) {
		decided, commit, text := judgeHistory(s.Phase, records)
		if f.decisions += decided; text != "" {
			bad.addf("%v %s; its records: %+v", s.ID, text, records)
		}
		if f.committed[string(s.ID)] = commit; !commit {
			f.aborted++
		}
	})
	must(w.t, err)
	return f
}

// judgeHistory says how often a transaction was decided, how at last, and what is wrong with that, or nothing. Two owners
// that both decide leave two decisions.
func judgeHistory(phase txn.Phase, records []txn.Record) (decided int, commit bool, text string) {
	for _, r := range records {
		if d, is := r.(txn.Decided); is {
			decided++
			commit = d.Commit
		}
	}
	switch {
	case decided != 1:
		text = fmt.Sprintf("was decided %d times, want once", decided)
	case !phase.Done():
		text = fmt.Sprintf("has not ended: %v", phase)
	case commit != (phase == txn.Committed):
		text = fmt.Sprintf("was decided, commit = %t, and is %v", commit, phase)
	}
	return decided, commit, text
}

// effects are those of all transfers, by transfer and service.
type effects map[string]map[string][]Effect

// checkBooks compares what the databases say of each change with what the store says of its transaction.
func (w *world) checkBooks(bad *wrong, f fate) effects {
	ctx := w.t.Context()
	all := effects{}
	sum := int64(0)
	for service, b := range w.books {
		found, err := b.Effects(ctx)
		must(w.t, err)
		for _, e := range found {
			committed, known := f.committed[e.Tx]
			switch {
			case !known:
				bad.addf("%s: change %s of %s belongs to %q, which the store does not know", service, e.Key, e.Transfer, e.Tx)
			case committed && (e.Net == 0 || e.Lines != 1):
				bad.addf("%s: %s of the committed %s moved %d by %d lines", service, e.Transfer, e.Tx, e.Net, e.Lines)
			case !committed && e.Net != 0:
				bad.addf("%s: %s of the aborted %s moved %d", service, e.Transfer, e.Tx, e.Net)
			}
			if all[e.Transfer] == nil {
				all[e.Transfer] = map[string][]Effect{}
			}
			all[e.Transfer][service] = append(all[e.Transfer][service], e)
		}
		n, err := b.Sum(ctx)
		must(w.t, err)
		sum += n
	}
	if want := int64(len(w.books)) * (accounts - 1) * Rich; sum != want {
		bad.addf("sum of all balances = %d, was %d", sum, want)
	}
	return all
}

// checkPromises compares what clients were told with what the databases say.
func checkPromises(bad *wrong, made []*promise, all effects) {
	for _, p := range made {
		if text := p.judge(all[p.id]); text != "" {
			bad.addf("%s of %d from %d to %d: %s; told %q at last, by %d tries; effects %+v", p.id, p.amount, p.from, p.to, text, p.last, p.tries, all[p.id])
		}
	}
}

// judge says what is wrong with one transfer, or nothing.
func (p *promise) judge(of map[string][]Effect) string {
	net := map[string]int64{}
	for service, changes := range of {
		for _, e := range changes {
			net[service] += e.Net
		}
	}
	took, gave := net["accounts"] == -p.amount && net["savings"] == p.amount, net["accounts"] == 0 && net["savings"] == 0
	switch {
	case !took && !gave:
		return "it is done in part, or twice"
	case p.answered && p.committed && !took:
		return "it was confirmed and is lost"
	case p.answered && !p.committed && !gave:
		return "it was refused and is done"
	case took && (p.from == Poor || p.to == Closed):
		return "it ought to be refused"
	}
	return ""
}
