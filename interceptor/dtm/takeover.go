package dtm

import (
	"context"
	"encoding/json"
	"fmt"
	"net/http"
	"reflect"
	"slices"
	"strings"
	"time"

	"txmesh/interceptor"
	"txmesh/txn"
)

// Takeover says of one transaction of another server what has become of it here, or would in a dry run.
type Takeover struct {
	GID     string `json:"gid"`
	Type    string `json:"trans_type"`
	Status  string `json:"status"`            // there
	Outcome string `json:"outcome"`           // taken, known (it is here already) or, of a dry run, would
	Done    int    `json:"done"`              // ops of the present direction that need not be called again
	Left    int    `json:"left"`              // those still to be called
	Next    string `json:"next"`              // what is done first, for people
	Differs string `json:"differs,omitempty"` // what happens otherwise than there, for people
}

// The outcomes of a takeover.
const (
	outcomeTaken = "taken"
	outcomeKnown = "known"
	outcomeWould = "would"
)

// TakeOver begins here what another server has begun: body is its answer to query. What that server has recorded as done
// is not called again. A repeat has no effect, nor has a dry run. An error that wraps interceptor.ErrRefused says why
// the transaction must stay where it is.
func (s *Service) TakeOver(ctx context.Context, body []byte, dryRun bool) (*Takeover, error) {
	var q queried
	if err := json.Unmarshal(body, &q); err != nil {
		return nil, refused("body: %v; want what query answers", err)
	}
	if q.Transaction == nil {
		return nil, refused("transaction is null: the server does not know it")
	}
	if err := s.checkForeign(&q); err != nil {
		return nil, err
	}
	t, err := foreignRequest(&q)
	if err != nil {
		return nil, err
	}
	if t.Type == typeSaga && q.Transaction.Status == statusPrepared {
		return s.takePreparedOver(ctx, t, dryRun)
	}
	begin, err := s.foreignBegin(ctx, t, &q)
	if err != nil {
		return nil, err
	}
	return s.takeOver(ctx, begin, &q, dryRun)
}

func refused(format string, args ...any) error {
	return fmt.Errorf("%w: %s", interceptor.ErrRefused, fmt.Sprintf(format, args...))
}

// foreignStatuses are those that each type can have. A message is never aborting, a workflow neither that nor submitted:
// its application does all that is to be done.
func foreignStatuses() map[string][]string {
	all := []string{statusPrepared, statusSubmitted, statusAborting, statusSucceed, statusFailed}
	return map[string][]string{
		typeSaga: all, typeTCC: all, typeXA: all,
		typeMsg:      {statusPrepared, statusSubmitted, statusSucceed, statusFailed},
		typeWorkflow: {statusPrepared, statusSucceed, statusFailed},
	}
}

// checkForeign refuses what cannot be understood.
func (s *Service) checkForeign(q *queried) error {
	v := q.Transaction
	known, ok := foreignStatuses()[v.Type]
	switch {
	case !ok:
		return refused("trans_type %q is not known here", v.Type)
	case !slices.Contains(known, v.Status):
		return refused("a %s is never %q", v.Type, v.Status)
	case v.GID != cleanGID(v.GID):
		return refused("gid %q: clients could not name it over HTTP", v.GID)
	}
	for i := range q.Branches {
		b := &q.Branches[i]
		if b.GID != "" && b.GID != v.GID {
			return refused("branch %s is of gid %q", b.BranchID, b.GID)
		}
		if scheme, _, found := strings.Cut(b.URL, "://"); found && scheme != "http" && scheme != "https" {
			return refused("branch %s is called at %s, by a driver for %s that is not here", b.BranchID, b.URL, scheme)
		}
	}
	return nil
}

// foreignRequest makes the request that began the transaction, with the options that it has by now.
func foreignRequest(q *queried) (*transaction, error) {
	v := q.Transaction
	t := &transaction{GID: v.GID, Type: v.Type, CustomData: v.CustomData, QueryPrepared: v.QueryPrepared, Protocol: v.Protocol,
		Concurrent: v.Concurrent, options: v.options}
	if v.OptionsText != "" { // all that a server with tables keeps of them
		o := struct {
			*options
			Concurrent *bool `json:"concurrent"`
		}{&t.options, &t.Concurrent}
		if err := json.Unmarshal([]byte(v.OptionsText), &o); err != nil {
			return nil, refused("options %q: %v", v.OptionsText, err)
		}
	}
	if len(t.BranchHeaders) == 0 {
		t.BranchHeaders = nil
	}
	if t.Type == typeSaga {
		if err := sagaSteps(t, q); err != nil {
			return nil, err
		}
	}
	if err := t.check(); err != nil {
		return nil, refused("%v", err)
	}
	return t, nil
}

// sagaSteps makes the steps anew from the rows: servers with tables do not show them otherwise.
func sagaSteps(t *transaction, q *queried) error {
	bs, err := foreignBranches(q)
	if err != nil {
		return err
	}
	for i := range bs {
		if want := branchID(i); bs[i].ID != want {
			return refused("branch %s: want %s, for the branches of a saga are numbered", bs[i].ID, want)
		}
		t.Steps = append(t.Steps, map[string]string{opAction: string(bs[i].Ops[txn.Forward]), opCompensate: string(bs[i].Ops[txn.Undo])})
		t.binPayloads = append(t.binPayloads, bs[i].Note)
	}
	return nil
}

// foreignBranches joins the rows of each branch, in the order in which they were written.
func foreignBranches(q *queried) ([]txn.Branch, error) {
	v := q.Transaction
	k, _ := kindOf(v.Type)
	if v.Type == typeWorkflow {
		return recorded(q)
	}
	var bs []txn.Branch
	ops := k.ops()
	rows := map[settledOp]bool{}
	for i := range q.Branches {
		r := &q.Branches[i]
		n := slices.IndexFunc(ops, func(o opName) bool { return o.word == r.Op })
		if n < 0 || r.BranchID == "" {
			return nil, refused("branch %q has a row %q, which a %s has not", r.BranchID, r.Op, v.Type)
		}
		at := slices.IndexFunc(bs, func(b txn.Branch) bool { return b.ID == r.BranchID })
		if at < 0 {
			at, bs = len(bs), append(bs, txn.Branch{ID: r.BranchID, Note: r.BinData})
		}
		rows[settledOp{r.BranchID, ops[n].op}] = true
		bs[at].Ops[ops[n].op] = target(r.URL)
	}
	if len(rows) != len(q.Branches) || len(rows) != len(bs)*len(ops) {
		return nil, refused("%d rows for %d branches: want each of %d once", len(q.Branches), len(bs), len(ops))
	}
	if n := len(v.Steps); n > 0 && len(bs) < n && !slices.ContainsFunc(v.Steps, isTopic) {
		return nil, refused("%d branches for %d steps: the server does not show them all", len(bs), n)
	}
	return bs, nil
}

func isTopic(step map[string]string) bool { return strings.HasPrefix(step[opAction], topicPrefix) }

// recorded makes the branches of what a workflow has recorded.
func recorded(q *queried) ([]txn.Branch, error) {
	var bs []txn.Branch
	for i := range q.Branches {
		r := &q.Branches[i]
		if r.BranchID == "" || r.Op == "" || r.Status != statusSucceed && r.Status != statusFailed {
			return nil, refused("branch %q records %q as %q: want succeed or failed", r.BranchID, r.Op, r.Status)
		}
		bs = append(bs, txn.Branch{ID: r.BranchID + "-" + r.Op, Name: r.Op})
	}
	return bs, nil
}

// foreignBegin makes the event: what it begins, what of it is done, and how it is decided.
func (s *Service) foreignBegin(ctx context.Context, t *transaction, q *queried) (txn.Begin, error) {
	spec, err := s.spec(ctx, t)
	if err == nil {
		spec.Branches, err = orFrom(spec.Branches, q)
	}
	if err != nil {
		return txn.Begin{}, asRefused(err)
	}
	if t.Type == typeMsg && slices.ContainsFunc(q.Transaction.Steps, isTopic) {
		n, err := decodeNote(spec.Note)
		if err != nil {
			return txn.Begin{}, err
		}
		n.Topics = q.Transaction.Steps
		spec.Note = n.encode()
	}
	begin := txn.Begin{Spec: spec, Known: foreignKnown(q)}
	age := ageOf(q.Transaction, s.Now())
	if open := q.Transaction.Status == statusPrepared || t.Type == typeSaga && q.Transaction.Status == statusSubmitted; open && t.Type != typeWorkflow {
		begin.Age = age
	}
	begin.Decide, err = foreignDecision(t, q.Transaction, age)
	return begin, asRefused(err)
}

// orFrom keeps the branches that the request gives, and takes those that only rows tell.
func orFrom(bs []txn.Branch, q *queried) ([]txn.Branch, error) {
	if q.Transaction.Type == typeSaga {
		return bs, nil
	}
	return foreignBranches(q)
}

// asRefused tells what no repeat can mend from what may pass.
func asRefused(err error) error {
	if err == nil || faultOf(err).status == http.StatusServiceUnavailable {
		return err
	}
	return refused("%v", err)
}

func ageOf(v *transactionView, now time.Time) time.Duration {
	if v.CreateTime == nil {
		return 0
	}
	return max(now.Sub(*v.CreateTime), 0)
}

// foreignKnown lists what is done already.
func foreignKnown(q *queried) []txn.Settled {
	var known []txn.Settled
	for i := range q.Branches {
		r := &q.Branches[i]
		k := txn.Settled{Branch: r.BranchID, Outcome: txn.OK}
		switch r.Status {
		case statusSucceed:
		case statusFailed:
			k.Outcome = txn.Refused
		default:
			continue
		}
		if q.Transaction.Type == typeWorkflow {
			k.Branch, k.Result = r.BranchID+"-"+r.Op, r.BinData
		} else {
			k.Op = opOf(q.Transaction.Type, r.Op)
		}
		if k.Op != txn.Forward && k.Outcome == txn.Refused {
			continue // refusing it changes nothing: it is called until it succeeds
		}
		known = append(known, k)
	}
	return known
}

func opOf(transType, word string) txn.Op {
	k, _ := kindOf(transType)
	ops := k.ops()
	return ops[slices.IndexFunc(ops, func(o opName) bool { return o.word == word })].op
}

// foreignDecision is what was decided there. A saga that goes on decides by the answers of its branches.
func foreignDecision(t *transaction, v *transactionView, age time.Duration) (*txn.Decide, error) {
	switch v.Status {
	case statusPrepared:
		return nil, nil
	case statusAborting, statusFailed:
		return &txn.Decide{Reason: v.RollbackReason}, nil
	}
	if t.Type == typeSaga {
		return nil, nil
	}
	custom, err := t.custom()
	if err != nil {
		return nil, err
	}
	d := &txn.Decide{Commit: true, Delay: max(time.Duration(custom.Delay*float64(time.Second))-age, 0)}
	if v.Status == statusSucceed {
		d.Delay, d.Answer = 0, []byte(v.Result)
	}
	return d, nil
}

// takeOver begins it, unless it is here already or this is a dry run.
func (s *Service) takeOver(ctx context.Context, begin txn.Begin, q *queried, dryRun bool) (*Takeover, error) {
	v := q.Transaction
	out, err := s.preview(begin, v)
	if err != nil {
		return nil, err
	}
	old, err := s.known(ctx, v.GID)
	if err != nil {
		return nil, asRefused(err)
	}
	saga, err := s.preparedSaga(ctx, v.GID)
	if err != nil {
		return nil, err
	}
	switch {
	case saga != nil:
		return nil, refused("gid %q is taken here by a saga that is prepared", v.GID)
	case old != nil:
		// It is compared, and never decided: what it was meanwhile told here counts.
		if _, err := txn.Restore([]txn.Record{txn.Began{Spec: old.Spec}}).Step(s.Now(), txn.Begin{Spec: begin.Spec}); err != nil {
			return nil, refused("gid %q is taken here by a transaction with other content, which is %s", v.GID, status(old))
		}
		out.Outcome, out.Next, out.Differs = outcomeKnown, "it is here already, "+status(old), ""
	case dryRun:
		out.Outcome = outcomeWould
	default:
		out.Outcome = outcomeTaken
		if _, err := s.Engine.Do(ctx, begin.Spec.ID, begin); err != nil {
			return nil, asRefused(err)
		}
	}
	return out, nil
}

// preview tries the event on a machine of its own: what would be called, and is an end really the end?
func (s *Service) preview(begin txn.Begin, v *transactionView) (*Takeover, error) {
	var m txn.Machine
	now := s.Now()
	reaction, err := m.Step(now, begin)
	if err != nil {
		return nil, refused("%v", err)
	}
	st := m.State()
	if ended := v.Status == statusSucceed || v.Status == statusFailed; ended && (!st.Phase.Done() || status(&st) != v.Status) {
		return nil, refused("it is %s there, but not all that leads to it was done; it was stopped by force, or its rows are not all there", v.Status)
	}
	out := &Takeover{GID: v.GID, Type: v.Type, Status: v.Status}
	out.Done, out.Left = progress(&st)
	out.Next = next(&st, reaction, now)
	if v.Type == typeMsg && st.Phase == txn.Open && st.Spec.Ask == nil {
		out.Differs = "it has no query_prepared: DTM would send it when its time is over, here it fails then"
	}
	return out, nil
}

// progress counts the ops of the present direction.
func progress(st *txn.State) (done, left int) {
	for i := range st.Branches {
		b := st.Branches[i]
		op := txn.Forward
		switch {
		case st.Decided() && st.Commit && b.Stands && !st.Spec.Plan.Drives && st.Spec.Mode != txn.Workflow:
			op = txn.Commit
		case st.Decided() && !st.Commit && b.Undone:
			op = txn.Undo
		case st.Decided() && !st.Commit:
			continue
		}
		if b.Known[op].Outcome == txn.None && (b.Ops[op] != nil || !st.Decided()) {
			left++
		} else {
			done++
		}
	}
	return done, left
}

// next says what happens first.
func next(st *txn.State, reaction txn.Output, now time.Time) string {
	transType := typeOf(st.Spec.Mode)
	if len(reaction.Calls) > 0 {
		c := reaction.Calls[0]
		text := "ask the initiator at " + string(c.Target)
		if c.Branch != "" {
			text = fmt.Sprintf("%s of %s at %s", wordOf(transType, c.Op), c.Branch, c.Target)
		}
		if n := len(reaction.Calls) - 1; n > 0 {
			text += fmt.Sprintf(", and %d more", n)
		}
		return text
	}
	switch in := reaction.Wake.Sub(now).Round(time.Second); {
	case st.Phase.Done():
		return "nothing is called"
	case st.Phase != txn.Open:
		return fmt.Sprintf("wait %v, as it was delayed", in)
	case reaction.Wake.IsZero():
		return "wait for its client"
	case transType == typeWorkflow:
		return fmt.Sprintf("wait %v for its application, then call it", in)
	case st.Spec.Ask != nil:
		return fmt.Sprintf("wait %v for its client, then ask", in)
	default:
		return fmt.Sprintf("wait %v for its client, then abort", in)
	}
}

// takePreparedOver takes a saga that waits for its submit.
func (s *Service) takePreparedOver(ctx context.Context, t *transaction, dryRun bool) (*Takeover, error) {
	out := &Takeover{GID: t.GID, Type: t.Type, Status: statusPrepared, Outcome: outcomeTaken, Left: len(t.Steps), Next: "wait for its client"}
	st, err := s.known(ctx, t.GID)
	if err != nil {
		return nil, asRefused(err)
	}
	old, err := s.preparedSaga(ctx, t.GID)
	switch {
	case err != nil:
		return nil, err
	case st != nil:
		return nil, refused("gid %q is taken here by a transaction that is %s", t.GID, status(st))
	case old == nil && dryRun:
		out.Outcome = outcomeWould
	case old == nil:
		return out, asRefused(s.prepareSaga(ctx, t))
	case !sameSaga(old.request(), t):
		return nil, refused("gid %q is taken here by a prepared saga with other content", t.GID)
	default:
		out.Outcome, out.Next = outcomeKnown, "it is here already, "+statusPrepared
	}
	return out, nil
}

func sameSaga(a, b *transaction) bool {
	same := len(a.Steps) == len(b.Steps) && a.CustomData == b.CustomData && a.Protocol == b.Protocol &&
		reflect.DeepEqual(a.options, b.options)
	for i := 0; same && i < len(a.Steps); i++ {
		same = a.Steps[i][opAction] == b.Steps[i][opAction] && a.Steps[i][opCompensate] == b.Steps[i][opCompensate] &&
			string(a.payload(i)) == string(b.payload(i))
	}
	return same
}
