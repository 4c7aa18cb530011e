package dtm

import (
	"context"
	"errors"
	"time"

	"txmesh/interceptor"
	"txmesh/policies"
	"txmesh/txn"
)

// hastened is the answer of resetCronTime.
type hastened struct {
	HasRemaining bool `json:"has_remaining"`
	Succeeded    int  `json:"succeed_count"`
}

// hastenMany makes due now what would be tried only after so long, of at most limit transactions.
func (s *Service) hastenMany(ctx context.Context, after time.Duration, limit int) (*hastened, error) {
	if err := s.may(ctx, policies.Operate); err != nil {
		return nil, err
	}
	out := &hastened{}
	unfinished := interceptor.TitleQuery{Door: Name, Phases: []txn.Phase{txn.Open, txn.Committing, txn.Aborting, txn.Stuck}}
	for t, err := range s.Chronicle.Titles(ctx, unfinished) {
		if err != nil {
			return nil, err
		}
		st, err := s.Engine.State(ctx, t.ID)
		if errors.Is(err, txn.ErrUnknown) {
			continue // it has ended and is forgotten
		}
		if err != nil {
			return nil, err
		}
		if !waitsBeyond(&st, s.Now().Add(after)) {
			continue
		}
		if out.Succeeded == limit {
			out.HasRemaining = true
			return out, nil
		}
		if err := s.nudge(ctx, &st); err != nil {
			return nil, err
		}
		out.Succeeded++
	}
	return out, nil
}

// nudge makes due now whatever a transaction waits for, but a decision that its initiator may still bring: only a workflow
// is called before its time, because that harms nobody.
func (s *Service) nudge(ctx context.Context, st *txn.State) error {
	var e txn.Event = txn.Hasten{}
	if st.Spec.Mode == txn.Workflow && st.Phase == txn.Open && st.Expires.After(s.Now()) {
		e = txn.Extend{Timeout: time.Millisecond}
	}
	_, err := s.Engine.Do(ctx, st.Spec.ID, e)
	return err
}

// waitsBeyond reports whether the next try of anything is planned for later.
func waitsBeyond(st *txn.State, at time.Time) bool {
	late := func(o *txn.OpState) bool { return o.Outcome == txn.None && !o.Halted && o.Until.After(at) }
	if late(&st.Asked) || st.Spec.Mode == txn.Workflow && st.Phase == txn.Open && st.Expires.After(at) {
		return true
	}
	for i := range st.Branches {
		for op := range st.Branches[i].Known {
			if late(&st.Branches[i].Known[op]) {
				return true
			}
		}
	}
	return false
}
