package dtm

import (
	"context"
	"encoding/json"
	"fmt"
	"time"

	"txmesh/interceptor"
	"txmesh/txn"
)

// transactionView is a transaction as query, all and prepareWorkflow show it. Absent times are omitted.
type transactionView struct {
	ID               int                 `json:"id"`
	CreateTime       *time.Time          `json:"create_time"`
	UpdateTime       *time.Time          `json:"update_time"`
	GID              string              `json:"gid,omitempty"`
	Type             string              `json:"trans_type,omitempty"`
	Steps            []map[string]string `json:"steps,omitempty"`
	Payloads         []string            `json:"payloads,omitempty"`
	Status           string              `json:"status,omitempty"`
	QueryPrepared    string              `json:"query_prepared,omitempty"`
	Protocol         string              `json:"protocol,omitempty"`
	FinishTime       *time.Time          `json:"finish_time,omitempty"`
	RollbackTime     *time.Time          `json:"rollback_time,omitempty"`
	Result           string              `json:"result,omitempty"`
	RollbackReason   string              `json:"rollback_reason,omitempty"`
	OptionsText      string              `json:"options,omitempty"`
	CustomData       string              `json:"custom_data,omitempty"`
	NextCronInterval int64               `json:"next_cron_interval,omitempty"`
	NextCronTime     *time.Time          `json:"next_cron_time,omitempty"`
	options
	Concurrent bool `json:"concurrent"`
}

// branchView is one op of a branch: DTM keeps a row for each.
type branchView struct {
	ID           int        `json:"id"`
	CreateTime   *time.Time `json:"create_time"`
	UpdateTime   *time.Time `json:"update_time"`
	GID          string     `json:"gid,omitempty"`
	URL          string     `json:"url,omitempty"`
	BinData      []byte     `json:"bin_data,omitempty"`
	BranchID     string     `json:"branch_id,omitempty"`
	Op           string     `json:"op,omitempty"`
	Status       string     `json:"status,omitempty"`
	FinishTime   *time.Time `json:"finish_time,omitempty"`
	RollbackTime *time.Time `json:"rollback_time,omitempty"`
}

// story is a transaction with its times, folded from its facts.
type story struct {
	st       txn.State
	note     note
	begun    time.Time
	updated  time.Time
	finished time.Time            // zero: not yet
	joined   map[string]time.Time // branches
	settled  map[settledOp]time.Time
	due      time.Time // the next try of anything; zero: none is planned
}

type settledOp struct {
	branch string
	op     txn.Op
}

// story returns nil for what is not of this door.
func (s *Service) story(ctx context.Context, gid string) (*story, error) {
	facts, err := s.Chronicle.Story(ctx, txn.ID(gid))
	if err != nil || len(facts) == 0 {
		return nil, err
	}
	b := &story{joined: map[string]time.Time{}, settled: map[settledOp]time.Time{}}
	for _, f := range facts {
		b.add(f)
	}
	if b.st.Spec.Door != Name {
		return nil, nil
	}
	b.note, err = decodeNote(b.st.Spec.Note)
	return b, err
}

func (b *story) add(f interceptor.Fact) {
	b.st.Apply(f.Record)
	b.updated = f.At
	switch r := f.Record.(type) {
	case txn.Began:
		b.begun = f.At
		for _, x := range r.Spec.Branches {
			b.joined[x.ID] = f.At
		}
	case txn.Enlisted:
		b.joined[r.Branch.ID] = f.At
	case txn.Settled:
		b.settled[settledOp{r.Branch, r.Op}] = f.At
	case txn.Deferred:
		b.due = r.Until
	case txn.Finished:
		b.finished = f.At
	}
}

func when(t time.Time) *time.Time {
	if t.IsZero() {
		return nil
	}
	t = t.UTC()
	return &t
}

// transaction shows the whole.
func (s *Service) transactionView(b *story) *transactionView {
	st, n := &b.st, &b.note
	v := &transactionView{CreateTime: when(b.begun), UpdateTime: when(b.updated), GID: string(st.Spec.ID), Type: typeOf(st.Spec.Mode),
		Status: status(st), Protocol: n.Protocol, CustomData: n.CustomData, Result: result(st), options: n.Options,
		Concurrent: n.Concurrent, NextCronInterval: int64(s.interval(st).Seconds())}
	if v.Protocol == "" {
		v.Protocol = protocolHTTP
	}
	v.OptionsText = optionsText(n)
	v.QueryPrepared = string(st.Spec.Ask)
	if v.Type == typeSaga || v.Type == typeMsg {
		v.Steps, v.Payloads = steps(st, n)
	}
	switch v.Status {
	case statusSucceed:
		v.FinishTime = when(b.finished)
	case statusFailed:
		v.RollbackTime, v.RollbackReason = when(b.finished), s.reason(st)
	case statusAborting:
		v.RollbackReason = s.reason(st)
	}
	if !st.Phase.Done() {
		v.NextCronTime = when(b.next())
	}
	return v
}

func (s *Service) interval(st *txn.State) time.Duration { return st.Spec.Plan.Retry.Delay }

// next is when something happens by itself.
func (b *story) next() time.Time {
	switch {
	case !b.st.Due.IsZero() && b.st.Due.After(b.due):
		return b.st.Due
	case b.due.IsZero():
		return b.st.Expires
	}
	return b.due
}

func optionsText(n *note) string {
	text, err := json.Marshal(struct {
		options
		Concurrent bool `json:"concurrent"`
	}{n.Options, n.Concurrent})
	if err != nil {
		panic("dtm: options: " + err.Error())
	}
	return string(text)
}

// steps shows the branches as the client wrote them.
func steps(st *txn.State, n *note) (steps []map[string]string, payloads []string) {
	for i := range st.Spec.Branches {
		b := &st.Spec.Branches[i]
		step := map[string]string{opAction: string(b.Ops[txn.Commit])}
		if st.Spec.Plan.Drives {
			step = map[string]string{opAction: string(b.Ops[txn.Forward]), opCompensate: string(b.Ops[txn.Undo])}
		}
		steps, payloads = append(steps, step), append(payloads, string(b.Note))
	}
	if len(n.Topics) > 0 {
		return n.Topics, nil
	}
	return steps, payloads
}

// branchViews shows every op of every branch, in the order in which DTM inserts its rows.
func (b *story) branchViews() []branchView {
	views := []branchView{}
	k, _ := kindOf(typeOf(b.st.Spec.Mode))
	for i := range b.st.Branches {
		x := b.st.Branches[i]
		if b.st.Spec.Mode == txn.Workflow {
			views = append(views, b.progress(x))
			continue
		}
		for _, o := range k.ops() {
			views = append(views, b.opView(x, o))
		}
	}
	return views
}

func (b *story) opView(x *txn.BranchState, o opName) branchView {
	v := branchView{CreateTime: when(b.joined[x.ID]), UpdateTime: when(b.joined[x.ID]), GID: string(b.st.Spec.ID),
		URL: string(x.Ops[o.op]), BinData: x.Note, BranchID: x.ID, Op: o.word, Status: statusPrepared}
	at := b.settled[settledOp{x.ID, o.op}]
	outcome := x.Known[o.op].Outcome
	empty := x.Ops[o.op] == nil && b.st.Phase.Done() && (o.op == txn.Undo && x.Undone || o.op == txn.Commit && x.Stands)
	switch {
	case empty:
		v.Status, at = statusSucceed, b.finished
	case outcome == txn.OK:
		v.Status = statusSucceed
	case outcome == txn.Refused:
		v.Status = statusFailed
	}
	b.stamp(&v, at)
	return v
}

func (b *story) stamp(v *branchView, at time.Time) {
	switch v.Status {
	case statusSucceed:
		v.FinishTime = when(at)
	case statusFailed:
		v.RollbackTime = when(at)
	default:
		return
	}
	v.UpdateTime = when(at)
}

// progress is what a workflow recorded of one op of a branch.
func (b *story) progress(x *txn.BranchState) branchView {
	at := b.joined[x.ID]
	v := branchView{CreateTime: when(at), UpdateTime: when(at), GID: string(b.st.Spec.ID), BinData: x.Known[txn.Forward].Result,
		BranchID: x.ID[:max(len(x.ID)-len(x.Name)-1, 0)], Op: x.Name, Status: statusSucceed}
	if x.Known[txn.Forward].Outcome == txn.Refused {
		v.Status = statusFailed
	}
	b.stamp(&v, at)
	return v
}

// queried is the answer of query: null and no branches for a gid that is not known.
type queried struct {
	Transaction *transactionView `json:"transaction"`
	Branches    []branchView     `json:"branches"`
}

func (s *Service) query(ctx context.Context, gid string) (*queried, error) {
	if err := checkGID(gid); err != nil {
		return nil, err
	}
	p, err := s.preparedSaga(ctx, gid)
	if err != nil {
		return nil, err
	}
	if p != nil {
		return s.queryPrepared(ctx, p)
	}
	b, err := s.story(ctx, gid)
	if err != nil || b == nil {
		return &queried{Branches: []branchView{}}, err
	}
	return &queried{s.transactionView(b), b.branchViews()}, nil
}

// queryPrepared shows a saga that was prepared and not submitted.
func (s *Service) queryPrepared(ctx context.Context, p *preparedSaga) (*queried, error) {
	spec, err := s.spec(ctx, p.request())
	if err != nil {
		return nil, err
	}
	b := &story{joined: map[string]time.Time{}, settled: map[settledOp]time.Time{}}
	b.add(interceptor.Fact{At: p.At, Record: txn.Began{Spec: spec}})
	if b.note, err = decodeNote(spec.Note); err != nil {
		return nil, err
	}
	v := s.transactionView(b)
	v.Status = statusPrepared
	return &queried{v, b.branchViews()}, nil
}

// allQuery is what all selects by.
type allQuery struct {
	gid, position, status, transType string
	limit                            int
	after, before                    time.Time
}

type listed struct {
	Transactions []*transactionView `json:"transactions"`
	NextPosition string             `json:"next_position"`
}

// limitMax bounds one page of a listing.
const limitMax = 1000

// all lists transactions, newest first. The position is the one of the last transaction that was looked at.
func (s *Service) all(ctx context.Context, q allQuery) (*listed, error) {
	if err := s.mayLook(ctx); err != nil {
		return nil, err
	}
	if q.gid != "" {
		one, err := s.query(ctx, q.gid)
		if err != nil || one.Transaction == nil {
			return &listed{}, err
		}
		return &listed{Transactions: []*transactionView{one.Transaction}}, nil
	}
	tq := interceptor.TitleQuery{Door: Name, Phases: phases(q.status), From: q.position}
	tq.Begun.After, tq.Begun.Before = q.after, q.before
	out := &listed{}
	for t, err := range s.Chronicle.Titles(ctx, tq) {
		if err != nil {
			return nil, invalid("position %q: %v", q.position, err)
		}
		if q.transType != "" && typeOf(t.Mode) != q.transType {
			continue
		}
		b, err := s.story(ctx, string(t.ID))
		if err != nil {
			return nil, fmt.Errorf("transaction %s: %w", t.ID, err)
		}
		if b == nil || q.status != "" && status(&b.st) != q.status {
			continue
		}
		if len(out.Transactions) == q.limit {
			return out, nil // there is more: NextPosition is set
		}
		out.Transactions, out.NextPosition = append(out.Transactions, s.transactionView(b)), t.Next
	}
	out.NextPosition = ""
	return out, nil
}

// result is what a workflow returned, as its client sent it.
func result(st *txn.State) string {
	if st.Spec.Mode != txn.Workflow || !st.Commit {
		return ""
	}
	return string(st.Answer)
}
