package main

// mutation is one way to break the code, and the law whose message must appear then.
type mutation struct {
	name  string
	law   string
	file  string
	old   string // is in the file exactly once
	now   string
	tests string // of package by, by name; empty: the simulation judges
	by    string // whose tests judge; empty: package engine
	quick bool   // is in the short list
	fleet bool   // is looked for where sidecars share a store
}

// mutations are all of them: the core, the barrier, the Gate, the relay, the shard and the driver around it, the fleet, the
// door for clients of DTM, the choice of endpoints, repeats, tunnels, calls without a barrier, those of gRPC, our own ports, the form of entries.
func mutations() []mutation {
	var all []mutation
	for _, list := range [][]mutation{ofCore(), ofOrder(), ofBarrier(), ofGate(), ofRelay(), ofEngine(), ofFleet(), ofDTM(), ofTraffic(),
		ofRepeats(), ofTunnels(), ofUnprotected(), ofGRPC(), ofPorts(), ofControlPlane(), ofProof(), ofJournal()} {
		all = append(all, list...)
	}
	return all
}

// ofCore breaks what the machine decides and remembers.
func ofCore() []mutation {
	const machine, advance, returned = "txn/machine.go", "txn/advance.go", "txn/returned.go"
	return []mutation{
		{name: "only what was answered ok is undone", law: "conservation", file: advance, quick: true,
			old: "case mayHaveRun(i) && !m.refusedForGood(b):", now: "case mayHaveRun(i) && b.Known[Forward].Outcome == OK:"},
		{name: "a decision may be changed", law: "L3", file: machine, quick: true,
			old: "		if m.s.Commit != e.Commit {\n			return ErrDecided\n		}",
			now: "		if m.s.Commit != e.Commit {\n			m.decide(now, e)\n		}"},
		{name: "branches are enlisted after the decision", law: "conservation", file: machine,
			old: "return m.s.Phase == Open && (!m.expired(now) || m.asks())", now: "return !m.s.Phase.Done()"},
		{name: "the time of the next try is forgotten", law: "L7", file: advance, quick: true,
			old: "o.Outcome == None && !o.Halted {\n				at(o.Until)", now: "o.Outcome == None && !o.Halted {\n				at(time.Time{})"},
		{name: "tries that waited before a restart are forgotten", law: "L7", file: machine,
			old: ", waited: slices.ContainsFunc(records, isDeferred)}", now: "}"},
		{name: "the time-out of a transaction is forgotten", law: "L7", file: advance,
			old: "	if m.s.Phase == Open {\n		at(m.s.Expires)\n	}", now: "	_ = m.s.Expires"},
		{name: "a call that was never answered flies for ever", law: "L7", file: advance,
			old: "return !f.until.IsZero() && !now.Before(f.until) })", now: "return f.branch == \"\" })"},
		{name: "what a decision brings about does not wait until it is due", law: "L1", file: advance, quick: true,
			old: "	if now.Before(m.s.Due) {\n		return\n	}\n", now: "	_ = m.s.Due\n"},
		{name: "what is due later is forgotten", law: "L7", file: advance,
			old: "	at(m.s.Due)\n", now: ""},
		{name: "a transaction that was stopped goes on", law: "L11", file: machine, quick: true,
			old: "	m.log(Finished{Ceased})\n", now: ""},
		{name: "the decision that comes with a begin is lost", law: "conservation", file: machine,
			old: "	return m.decideOn(now, *d)\n", now: "	_ = now\n	return nil\n"},
		{name: "a fact is journaled and not remembered", law: "L4", file: machine, quick: true,
			old: "	m.s.Apply(r)\n", now: "	if _, skip := r.(Deferred); !skip {\n		m.s.Apply(r)\n	}\n"},
		{name: "a refused branch stands", law: "conservation", file: advance,
			old: "return !m.s.Spec.Plan.Answers || b.Known[Forward].Outcome == OK", now: "return b.ID != \"\""},
		{name: "what does not stand is committed too", law: "L5", file: advance,
			old: "case !b.Stands:", now: "case !b.Stands && !m.s.Commit:"},
		{name: "a decision is not synced", law: "L1", file: machine, quick: true,
			old: "case Began, Enlisted, Left, Extended, Decided, Forced, Stopped:", now: "case Began, Enlisted, Left, Extended, Forced, Stopped:"},
		{name: "a branch is not synced", law: "L14", file: machine,
			old: "case Began, Enlisted, Left, Extended, Decided, Forced, Stopped:", now: "case Began, Left, Extended, Decided, Forced, Stopped:"},
		{name: "a beginning is not synced", law: "L14", file: machine,
			old: "case Began, Enlisted, Left, Extended, Decided, Forced, Stopped:", now: "case Enlisted, Left, Extended, Decided, Forced, Stopped:"},
		{name: "an answer that an undo reads is not synced", law: "L13", file: machine, quick: true,
			old: "r.Op == Forward && b != nil && b.KeepAnswer {", now: "r.Op == NumOps && b != nil && b.KeepAnswer {"},
		{name: "what made a forward call ready is not synced", law: "L1", file: advance,
			old: "m.out.Sync = m.out.Sync || op == Forward", now: "_ = m.out.Sync || op == Forward"},
		{name: "a refused commit counts as done", law: "conservation", file: returned,
			old: "refused = refused && m.s.Spec.Plan.Refusal == RefusalEnds", now: "_ = m.s.Spec.Plan.Refusal == RefusalEnds"},
		{name: "a late answer moves a stuck op", law: "L11", file: returned,
			old: "b.Known[op].Outcome != None || b.Known[op].Halted:", now: "b.Known[op].Outcome != None:"},
		{name: "a stuck query is asked again", law: "L11", file: advance,
			old: "if o.Halted || now.Before(o.Until)", now: "if now.Before(o.Until)"},
		{name: "any repeat is taken for the same", law: "L12", file: machine, quick: true,
			old: "case differs || !sameBranch(old.Branch, e.Branch):", now: "case differs:"},
		{name: "a repeat of a refused call is not noted", law: "conservation", file: machine,
			old: "		if known.Outcome != OK {\n", now: "		if known.Outcome == Pending {\n"},
		{name: "a call leaves again while it flies", law: "L6", file: advance,
			old: "now.Before(o.Until) || m.flying.has(c.Branch, op) {", now: "now.Before(o.Until) {"},
	}
}

// ofOrder breaks what comes before what.
func ofOrder() []mutation {
	return []mutation{
		{name: "undo runs forwards", law: "order", file: "txn/order.go", quick: true,
			old: "		case op == Forward:\n			those.add(i)\n		default:\n			those.addAll(before[i])\n		}\n	}\n	if op == Forward {\n",
			now: "		default:\n			those.add(i)\n		}\n	}\n	if op < NumOps {\n"},
		{name: "a branch does not follow those answered before", law: "order", file: "txn/machine.go",
			old: "if c.Known[Forward].Outcome != None && !slices.Contains(named, c.ID) {", now: "if c.ID == b.ID {"},
		{name: "a child does not follow its parent", law: "order", file: "interceptor/branch.go",
			old: "b := txn.Branch{Name: rule.Name, After: j.parents,", now: "b := txn.Branch{Name: rule.Name, After: nil,"},
		{name: "undo does not wait for the forward call", law: "flight", file: "txn/advance.go", quick: true,
			old: "return false // its answer may still turn the branch around", now: "return true"},
		{name: "a report lands whichever call of the branch", law: "flight", file: "txn/flights.go",
			old: "(call == \"\" || f.call == call)", now: "true"},
		{name: "a chain is called side by side", law: "L1", file: "txn/order.go",
			old: "return func(i int) bool { return first < 0 || i <= first }\n", now: "return func(int) bool { return first < len(bs) }\n"},
		{name: "a call that has landed still flies", law: "L7", file: "txn/flights.go",
			old: "	s.forget(f)\n	return f, true\n", now: "	return f, true\n"},
	}
}

// ofBarrier breaks the table of the barrier.
func ofBarrier() []mutation {
	const file = "txn/barrier/barrier.go"
	return []mutation{
		{name: "a late forward call runs after its undo", law: "barrier", file: file, quick: true,
			old: "	case Done, Refused:\n		return Replay\n	case Undone:\n		return Refuse\n",
			now: "	case Done, Refused:\n		return Replay\n	case Undone:\n		return Run\n"},
		{name: "a repeated forward call runs again", law: "barrier", file: file,
			old: "	case Done, Refused:\n		return Replay\n	case Undone:\n		return Refuse\n",
			now: "	case Done, Refused:\n		return Run\n	case Undone:\n		return Refuse\n"},
		{name: "a crashed forward call runs again", law: "barrier", file: file,
			old: "		return Early\n	case Crashed:\n		return Resolve\n	case Done, Refused:\n		return Replay\n	case Undone:\n		return Refuse",
			now: "		return Early\n	case Crashed:\n		return Run\n	case Done, Refused:\n		return Replay\n	case Undone:\n		return Refuse"},
		{name: "the undo of what is done is answered from the row", law: "conservation", file: file,
			old: "	case Done:\n		return Run\n	case Undone:\n		return Replay", now: "	case Done:\n		return Replay\n	case Undone:\n		return Replay"},
		{name: "a crashed call counts as never made", law: "conservation", file: file,
			old: "	case Crashed:\n		return Resolve\n	case Done:\n		return Run\n	case Undone:\n		return Replay",
			now: "	case Crashed:\n		return Empty\n	case Done:\n		return Run\n	case Undone:\n		return Replay"},
	}
}

// ofGate breaks the protocol at the two sides of an application.
func ofGate() []mutation {
	const branch, home, root = "interceptor/branch.go", "interceptor/home.go", "interceptor/root.go"
	return []mutation{
		{name: "a call leaves though its branch was not enlisted", law: "L2", file: branch, quick: true,
			old: "	if err != nil {\n		return g.notEnlisted(r, rule, j, err)\n	}", now: "	if err != nil {\n		placed.Branch = \"0\"\n	}"},
		{name: "an answer is not marked as needed", law: "L13", file: branch,
			old: "return home == \"\" && (rule.ReadsAnswer", now: "return home == \"-\" && (rule.ReadsAnswer"},
		{name: "the start of a call is not synced at its home", law: "conservation", file: home,
			old: "g.save(ctx, branch, &x.row, true)", now: "g.save(ctx, branch, &x.row, false)"},
		{name: "the answer of a call is not synced at its home", law: "L13", file: home,
			old: "g.save(ctx, x.branch, &r, true)", now: "g.save(ctx, x.branch, &r, false)"},
		{name: "an empty undo leaves no row", law: "barrier", file: home, quick: true,
			old: "	if err := g.save(ctx, c.Branch, &r, true); err != nil {", now: "	if err := ctx.Err(); err != nil {"},
		{name: "any sidecar answers for a row", law: "home", file: home,
			old: "	if c.Home != g.Home {", now: "	if c.Home == \"\" {"},
		{name: "any sidecar serves a forward call", law: "conservation", file: home,
			old: "	case home != g.Home:", now: "	case home == \"-\":"},
		{name: "two calls of a branch run at the same time", law: "barrier", file: "interceptor/row.go",
			old: "	if g.busy[branch] {\n		return false\n	}", now: "	_ = g.busy[branch]"},
		{name: "what is called by a call made again is no branch", law: "L2", file: home,
			old: "	s := &serving{context: Context{ID: id, Parent: n, Expires: r.Deadline},", now: "	s := &serving{op: txn.Undo, context: Context{ID: id, Parent: n, Expires: r.Deadline},"},
		{name: "the root is answered before the decision", law: "L14", file: root,
			old: "	if err == nil && !s.Decided() {", now: "	if err == nil && s.Decided() {"},
		{name: "a root's key is not looked up", law: "conservation", file: root,
			old: "	if errors.Is(err, txn.ErrUnknown) {\n		return nil\n	}", now: "	if err == nil || errors.Is(err, txn.ErrUnknown) {\n		return nil\n	}"},
		{name: "calls join without looking whose they are", law: "join", file: "interceptor/join.go",
			old: "s.context.ID != first.context.ID || s.op != first.op {", now: "s.op != first.op {"},
		{name: "a call of an undo is taken for a branch", law: "join", file: branch,
			old: "	case ok && j.op != txn.Forward:", now: "	case ok && j.op == txn.NumOps:"},
	}
}

// ofRelay breaks the way to another owner.
func ofRelay() []mutation {
	const file = "sidecar/peer/relay.go"
	return []mutation{
		{name: "an unreachable owner counts as told", law: "L2", file: file, quick: true,
			old: "			return interceptor.Placed{}, fmt.Errorf(\"enlist at owner %s: %w\", owner, err)",
			now: "			return interceptor.Placed{Branch: \"7\"}, nil"},
		{name: "an answer is relayed and not waited for", law: "L13", file: file,
			old: "	if !durable {\n		l.Post(id, e)", now: "	if !durable || durable {\n		l.Post(id, e)"},
		{name: "every sidecar takes a transaction for its own", law: "L2", file: file,
			old: "	owner := interceptor.OwnerOf(id)\n	if r.l.Holds(owner) {\n		return enlist(ctx, r.l, id, e)",
			now: "	owner := interceptor.OwnerOf(id)\n	if r.l.Holds(owner) {\n		return interceptor.Placed{Branch: \"0\"}, nil"},
	}
}

// ofEngine breaks the shard and, judged by the engine's own tests, the goroutines around it.
func ofEngine() []mutation {
	const shard, commit, call = "sidecar/engine/shard.go", "sidecar/engine/commit.go", "sidecar/engine/call.go"
	return []mutation{
		{name: "what a load found is not made durable", law: "L1", file: shard,
			old: "	s.rd.Sync = true\n", now: "	_ = s.rd.Sync\n"},
		{name: "nobody is woken after a restart", law: "L7", file: shard, quick: true,
			old: "	if err := s.Step(now, id, txn.Wake{}); err != nil && t.broken == nil {\n		s.breakDown(t, err)\n	}\n}\n\n// Step",
			now: "	_ = now\n}\n\n// Step"},
		{name: "the last step alone says whether to sync", law: "L14", file: shard, quick: true,
			old: "s.rd.Sync = s.rd.Sync || out.Sync", now: "s.rd.Sync = out.Sync"},
		{name: "only the first alarm is set", law: "L7", file: shard,
			old: "	s.alarms.set(t, out.Wake)\n", now: "	if t.at.IsZero() && t.begun.IsZero() {\n		s.alarms.set(t, out.Wake)\n	}\n"},
		{name: "calls of a step without records are lost", law: "L7", file: shard,
			old: "	s.rd.Calls = append(s.rd.Calls, out.Calls...)\n", now: "	if len(out.Records) > 0 {\n		s.rd.Calls = append(s.rd.Calls, out.Calls...)\n	}\n"},
		{name: "replies do not wait for the append", law: "L14", file: commit, tests: "TestL14|TestL1", quick: true,
			old: "			l.inflight = b\n", now: "			for _, w := range b.replies {\n				w.to.answer(w.reply.state, w.reply.err)\n			}\n			b.replies = nil\n			l.inflight = b\n"},
		{name: "calls do not wait for the append", law: "L1", file: commit, tests: "TestL1|TestStorm|TestCrash|TestCalls",
			old: "			l.inflight = b\n", now: "			for _, c := range b.Calls {\n				l.calls.add(c)\n			}\n			b.Calls = nil\n			l.startCalls()\n			l.inflight = b\n"},
		{name: "nobody is told of a failed append", law: "L14", file: commit, tests: "TestL14",
			old: "b.replies, l.replies...) {\n		w.to.answer(nil, err)", now: "b.replies, l.replies...) {\n		w.to.answer(w.reply.state, nil)"},
		{name: "a call that hangs is never answered", law: "L6", file: call, tests: "TestL6",
			old: "		answer(txn.Unknown, nil, fmt.Sprintf(\"no answer within %v\", timeout))", now: "		_ = fmt.Sprint"},
	}
}

// ofFleet breaks what keeps sidecars with a shared store from each other's journals, and brings them to those of the dead.
func ofFleet() []mutation {
	const machine, judge, shared = "sidecar/takeover/machine.go", "sidecar/takeover/judge.go", "txlog/memory/shared.go"
	list := []mutation{
		{name: "an append is not fenced", law: "fence", file: "txlog/memory/memory.go", quick: true,
			old: "s.leases[s.owner.ID].Owner != s.owner:", now: "s.leases[s.owner.ID].Owner.ID != s.owner.ID:"},
		{name: "an append carries no epoch", law: "fence", file: shared,
			old: "owner: o, shared: true,", now: "owner: s.core.leases[o.ID].Owner, shared: true,"},
		{name: "who adopts fences nobody", law: "fence", file: shared,
			old: "Epoch: s.core.epoch}", now: "Epoch: max(known, 1)}"},
		{name: "a lease lapses by its holder's clock", law: "lapse", file: judge, quick: true,
			old: "s.still = max(0, m.asked-s.since)", now: "s.still = max(0, m.asked-time.Duration(l.Beat)*m.cfg.Lease/3)"},
		{name: "the time that an answer takes counts as silence", law: "lapse", file: judge, by: "./sidecar/takeover", tests: "TestHistories",
			old: "since: m.now}", now: "since: m.asked}"},
		{name: "the time since the last look counts as silence", law: "lapse", file: judge, by: "./sidecar/takeover", tests: "TestHistories",
			old: "s.still = max(0, m.asked-s.since)", now: "s.still = m.now - s.since"},
		{name: "a beat is taken for silence", law: "lapse", file: judge,
			old: "s.lease != l {", now: "s.lease.Owner != l.Owner {"},
		{name: "a call that a replica runs counts as crashed", law: "Replica", file: "interceptor/row.go", by: "./interceptor", tests: "TestAnyReplicaSettles|TestOneReplicaUndoesAtATime",
			old: "	return (err != nil || me != r.Runner) && !g.Runners.Gone(ctx, r.Runner)", now: "	return err != nil && me != r.Runner"},
		{name: "a row in doubt is left as it is", law: "Doubt", file: "interceptor/doubt.go", by: "./interceptor", tests: "TestARowInDoubtIsTakenBack",
			old: "	if !found || err != nil || r.Runner != me {", now: "	if !found || err != nil || r.Runner != me || r.Runner == me {"},
		{name: "an order to adopt is believed blindly", law: "lapse", file: judge,
			old: "case s.ordered && s.still >= lease/3+lease/6:", now: "case s.ordered:"},
		{name: "nobody adopts what has lapsed", law: "orphan", file: judge, quick: true,
			old: "return rank >= 0 && s.still >= wait", now: "return rank >= 0 && s.still >= wait && l.Free"},
		{name: "a stand-by leaves dead services alone", law: "orphan", file: judge,
			old: "(!m.cfg.Standby || len(m.live(l.Holder.Service)) > 0)", now: "(!m.cfg.Standby || l.Owner.ID != \"\")"},
		{name: "a journal is given away before its engine has stopped", law: "handover", file: machine, quick: true,
			old: "	m.do(Drop{h.lease.Owner, h.why})\n", now: "	m.do(Drop{h.lease.Owner, h.why})\n	m.do(Release{h.lease.Owner})\n"},
		{name: "a shared row is replaced whatever it is by now", law: "barrier", file: "txlog/memory/memory.go",
			old: "case !s.now.meets(c):", now: "case c.expect == nil && !s.now.meets(c):"},
	}
	for i := range list {
		list[i].fleet = list[i].tests == ""
	}
	return list
}

// ofDTM breaks the door for clients of DTM. The law is the file of tests/wire that shows the rule.
func ofDTM() []mutation {
	const service, calls, spec, wire, keys = "interceptor/dtm/service.go", "interceptor/dtm/calls.go", "interceptor/dtm/spec.go",
		"interceptor/dtm/wire.go", "txlog/badger/keys.go"
	list := []mutation{
		{name: "a submit that is repeated loses the confirms", law: "1.4-outcomes", file: service, quick: true,
			old: "		return *old, err\n	}\n", now: "		return s.Engine.Do(ctx, old.Spec.ID, txn.Stop{})\n	}\n"},
		{name: "what was stopped by force may be submitted", law: "1.4-outcomes", file: service,
			old: "rolledBack := st.Decided() && !st.Commit || st.Phase == txn.Ceased\n", now: "rolledBack := st.Decided() && !st.Commit\n"},
		{name: "gids that begin alike share their rows", law: "5.2-tcc", file: keys,
			old: "	k = binary.BigEndian.AppendUint16(k, uint16(len(id)))\n	k = append(k, id...)\n	return binary",
			now: "	k = binary.BigEndian.AppendUint16(k, 7)\n	k = append(k, id[:min(len(id), 7)]...)\n	return binary"},
		{name: "an answer ONGOING is success", law: "4.2-http", file: calls, quick: true,
			old: "bytes.Contains(body, []byte(wordOngoing)):\n		return txn.Pending,", now: "bytes.Contains(body, []byte(wordOngoing)):\n		return txn.OK,"},
		{name: "an answer FAILURE with 200 is success", law: "4.2-http", file: calls,
			old: "a.Reply.Status == http.StatusConflict || bytes.Contains(body, []byte(wordFailure)):", now: "a.Reply.Status == http.StatusConflict:"},
		{name: "a refusal of JSON-RPC is an error", law: "4.3-json-rpc", file: calls,
			old: "	case rpcFailure:\n		return txn.Refused, message", now: "	case rpcFailure:\n		return txn.Unknown, message"},
		{name: "Aborted with ONGOING is a failure", law: "4.4-grpc", file: calls,
			old: "a.Code == grpcAborted && a.Message == wordOngoing:", now: "a.Code == grpcAborted && a.Message == wordSuccess:"},
		{name: "a workflow is decided by what it answers when it is resumed", law: "5.5-workflow", file: calls,
			old: "(out == txn.OK || out == txn.Refused) {", now: "(out == txn.OK && out == txn.Refused) {"},
		{name: "a workflow that cannot be called times out", law: "5.5-workflow", file: spec,
			old: "		if t.QueryPrepared == \"\" {\n			return 0\n		}\n", now: ""},
		{name: "a delay counts from the submit", law: "5.4-msg", file: spec,
			old: "		d -= now.Sub(st.Expires.Add(-st.Spec.Timeout))\n", now: "		_ = now\n"},
		{name: "confirms run forwards", law: "5.2-tcc", file: wire,
			old: "p.Chain, p.Backward = true, true", now: "p.Chain, p.Backward = true, false"},
		{name: "the first try counts as a repeat", law: "5.1-saga", file: wire,
			old: "p.ForwardLimit = int(t.RetryLimit) + 1", now: "p.ForwardLimit = int(t.RetryLimit)"},
		{name: "whoever waits is told that the stopped is done", law: "5.7-wait", file: service,
			old: "case now.Phase == txn.Aborted && !now.Spec.Plan.Drives:", now: "case now.Phase.Done() && !now.Spec.Plan.Drives:"},
		{name: "a prepared saga leaves its gid to others", law: "1.4-outcomes", file: service,
			old: "err == nil && p != nil && t.Type != typeSaga {", now: "err == nil && p != nil && t.Type == \"\" {"},
	}
	for i := range list {
		list[i].by, list[i].tests = "./tests/wire", "TestTables/"+list[i].law
	}
	return list
}
