//go:build linux

package fleet

import (
	"testing"

	"txmesh/txn"
)

func TestPromiseIsJudgedByTheBooks(t *testing.T) {
	const amount = 7
	took, gave := []Effect{{Net: -amount}}, []Effect{{Net: amount}}
	for _, tt := range []struct {
		name            string
		promise         promise
		accounts, saves []Effect
		want            string
	}{
		{"confirmed and done", promise{answered: true, committed: true}, took, gave, ""},
		{"refused and absent", promise{answered: true}, nil, nil, ""},
		{"refused and taken back", promise{answered: true}, []Effect{{Net: 0, Lines: 2}}, nil, ""},
		{"never told and done", promise{}, took, gave, ""},
		{"never told and absent", promise{}, nil, nil, ""},
		{"done after a try that was taken back", promise{answered: true, committed: true}, append([]Effect{{}}, took...), gave, ""},
		{"half", promise{}, took, nil, "it is done in part, or twice"},
		{"other half", promise{}, nil, gave, "it is done in part, or twice"},
		{"twice", promise{answered: true, committed: true}, append(took, took...), append(gave, gave...), "it is done in part, or twice"},
		{"lost", promise{answered: true, committed: true}, nil, nil, "it was confirmed and is lost"},
		{"refused and done", promise{answered: true}, took, gave, "it was refused and is done"},
		{"from the poor", promise{from: Poor, to: 5}, took, gave, "it ought to be refused"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			p := tt.promise
			if p.amount = amount; p.to == 0 {
				p.from, p.to = 5, 6
			}
			got := p.judge(map[string][]Effect{"accounts": tt.accounts, "savings": tt.saves})
			if got != tt.want {
				t.Errorf("judge = %q, want %q", got, tt.want)
			}
		})
	}
}

func TestHistoryHasOneDecision(t *testing.T) {
	yes, no := txn.Decided{Commit: true}, txn.Decided{}
	for _, tt := range []struct {
		name    string
		phase   txn.Phase
		records []txn.Record
		want    string
	}{
		{"committed", txn.Committed, []txn.Record{txn.Began{}, yes}, ""},
		{"aborted", txn.Aborted, []txn.Record{txn.Began{}, no}, ""},
		{"two owners", txn.Committed, []txn.Record{txn.Began{}, no, yes}, "was decided 2 times, want once"},
		{"two owners of one mind", txn.Committed, []txn.Record{txn.Began{}, yes, yes}, "was decided 2 times, want once"},
		{"nobody", txn.Open, []txn.Record{txn.Began{}}, "was decided 0 times, want once"},
		{"under way", txn.Aborting, []txn.Record{txn.Began{}, no}, "has not ended: aborting"},
		{"against the decision", txn.Committed, []txn.Record{txn.Began{}, no}, "was decided, commit = false, and is committed"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			if _, _, got := judgeHistory(tt.phase, tt.records); got != tt.want {
				t.Errorf("judge = %q, want %q", got, tt.want)
			}
		})
	}
}
