package takeover

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
)

// Apply takes over what is in the file and not yet here, then what the source lists. It tells report of each that it has
// dealt with. After an error, Apply with the same file goes on.
func (m *Migration) Apply(ctx context.Context, j *Journal, report func(Item)) error {
	done := map[string]bool{}
	each := func(gids []string, all []Title) error {
		for _, gid := range gids {
			if done[gid] {
				continue
			}
			done[gid] = true
			i, err := m.apply(ctx, j, gid, all)
			if err != nil {
				return fmt.Errorf("transaction %s: %w", gid, err)
			}
			report(i)
		}
		return nil
	}
	// What nobody works on comes first; it needs no source any more.
	if err := each(j.at(StepStopped), nil); err != nil {
		return err
	}
	titles, err := m.Source.List(ctx, m.Since)
	if err != nil {
		return err
	}
	gids := j.at(StepRead)
	for _, t := range ordered(titles) {
		gids = append(gids, t.GID)
	}
	return each(gids, titles)
}

// apply takes one transaction over. Each step is in the file before the next one is taken:
//  1. read: from here on it may have been stopped, and only the file says how it stood before
//  2. stopped: nobody works on it; what the source did until then is in the file
//  3. taken: the sidecar works on it
func (m *Migration) apply(ctx context.Context, j *Journal, gid string, all []Title) (Item, error) {
	last := j.Last(gid)
	if last.Step == StepTaken || last.Step == StepStopped {
		return m.begin(ctx, j, gid, last)
	}
	s, err := m.Source.Read(ctx, gid)
	if err != nil {
		return Item{}, err
	}
	t, err := s.title()
	if err != nil {
		return Item{}, err
	}
	if t.Finished() && last.Step == StepRead { // stopped by an earlier run, which could not say so any more
		return m.settle(ctx, j, last.Snapshot, s)
	}
	i, err := m.weigh(ctx, s, all)
	if err != nil || i.Why != "" {
		return i, err
	}
	if t.Finished() {
		return m.begin(ctx, j, gid, Entry{Step: StepStopped, Snapshot: s})
	}
	if err := j.Append(Entry{Step: StepRead, GID: gid, Snapshot: s}); err != nil {
		return Item{}, err
	}
	if err := m.Source.Stop(ctx, gid); err != nil && !errors.Is(err, ErrEnded) {
		return Item{}, err
	}
	after, err := m.Source.Read(ctx, gid)
	if err != nil {
		return Item{}, err
	}
	return m.settle(ctx, j, s, after)
}

// settle joins how a transaction stood with what its rows say now that nobody works on it.
func (m *Migration) settle(ctx context.Context, j *Journal, before, after Snapshot) (Item, error) {
	s, err := joined(before, after, m.Source.Serves())
	if err != nil {
		return Item{}, err
	}
	t, err := s.title()
	if err != nil {
		return Item{}, err
	}
	e := Entry{Step: StepStopped, GID: t.GID, Snapshot: s}
	if err := j.Append(e); err != nil {
		return Item{}, err
	}
	return m.begin(ctx, j, t.GID, e)
}

// joined is the transaction as it stood before it was stopped, with the rows of afterwards.
func joined(before, after Snapshot, serves bool) (Snapshot, error) {
	was, err := before.title()
	if err != nil {
		return after, err
	}
	is, err := after.title()
	if err != nil {
		return after, err
	}
	rows, err := after.rows()
	switch {
	case err != nil:
		return after, err
	case is.Status == succeed, is.Status == was.Status && !serves:
		return after, nil
	case is.Status != failed:
		return after, fmt.Errorf("it was stopped and is still %s", is.Status)
	}
	word, err := json.Marshal(advanced(was, rows))
	if err != nil {
		return after, err
	}
	fields := map[string]json.RawMessage{}
	if err := json.Unmarshal(before.Transaction, &fields); err != nil {
		return after, err
	}
	fields["status"] = word
	text, err := json.Marshal(fields)
	return Snapshot{text, after.Branches}, err
}

// advanced is the status that rows tell: between the reading and the stop, it may have been decided.
func advanced(t Title, rows []row) string {
	if t.Type == "workflow" {
		return t.Status // its rows are records of its application
	}
	for _, r := range rows {
		switch {
		case r.Status != succeed:
		case r.Op == "compensate" || r.Op == "cancel" || r.Op == "rollback":
			return aborting
		case t.Status == prepared:
			return submitted
		}
	}
	return t.Status
}

// begin begins at the target what the file holds.
func (m *Migration) begin(ctx context.Context, j *Journal, gid string, e Entry) (Item, error) {
	t, err := e.Snapshot.title()
	if err != nil {
		return Item{}, err
	}
	i := Item{Title: t, Stopped: true}
	if e.Step == StepTaken {
		i.Outcome = OutcomeBefore
		return i, nil
	}
	i.Verdict, err = m.Target.TakeOver(ctx, e.Snapshot, false)
	if errors.Is(err, ErrRefused) {
		i.Why = err.Error()
		return i, nil
	}
	if err != nil {
		return i, err
	}
	return i, j.Append(Entry{Step: StepTaken, GID: gid, Snapshot: Snapshot{Transaction: e.Snapshot.Transaction}})
}

// OutcomeBefore is the outcome of what an earlier run has taken over.
const OutcomeBefore = "before"
