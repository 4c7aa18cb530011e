package interceptor

import (
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"txmesh/txn"
)

func TestJoins(t *testing.T) {
	now := time.Unix(1_700_000_000, 0)
	tx := func(id txn.ID, parent string) *serving {
		return &serving{context: Context{ID: id, Parent: parent}, keys: []string{"trace:1"}}
	}
	type look struct {
		id        txn.ID
		parents   []string
		ambiguous bool
	}
	for _, tt := range []struct {
		name string
		do   func(j *joins)
		at   time.Duration
		want look
	}{
		{"nothing in flight", func(*joins) {}, 0, look{}},
		{"one in flight", func(j *joins) { j.enter(now, tx("a", "1")) }, 0, look{id: "a", parents: []string{"1"}}},
		{"one transaction, two branches served: either may be the parent", func(j *joins) {
			j.enter(now, tx("a", "1"))
			j.enter(now, tx("a", "2"))
		}, 0, look{id: "a", parents: []string{"1", "2"}}},
		{"two transactions", func(j *joins) {
			j.enter(now, tx("a", ""))
			j.enter(now, tx("b", ""))
		}, 0, look{ambiguous: true}},
		{"in flight goes before lingering", func(j *joins) {
			s := tx("a", "")
			j.enter(now, s)
			j.leave(now, s)
			j.enter(now, tx("b", ""))
		}, 0, look{id: "b"}},
		{"lingering is found", func(j *joins) {
			s := tx("a", "")
			j.enter(now, s)
			j.leave(now, s)
		}, 29 * time.Second, look{id: "a"}},
		{"lingering ends", func(j *joins) {
			s := tx("a", "")
			j.enter(now, s)
			j.leave(now, s)
		}, 30 * time.Second, look{}},
		{"remembered over a restart", func(j *joins) { j.remember(now, tx("a", "")) }, time.Second, look{id: "a"}},
	} {
		t.Run(tt.name, func(t *testing.T) {
			j := newJoins(30 * time.Second)
			tt.do(j)
			found, _, ambiguous := j.find(now.Add(tt.at), []string{"trace:0", "trace:1"})
			got := look{found.context.ID, found.parents, ambiguous}
			if diff := cmp.Diff(got, tt.want, cmp.AllowUnexported(look{})); diff != "" {
				t.Errorf("find (got, want):\n%s", diff)
			}
		})
	}
}

func TestJoinsForgetWhatHasLingered(t *testing.T) {
	now := time.Unix(1_700_000_000, 0)
	j := newJoins(time.Second)
	for i := range 100 {
		s := &serving{context: Context{ID: "a"}, keys: []string{"trace:" + string(rune('0'+i))}}
		j.enter(now.Add(time.Duration(i)*time.Second), s)
		if !j.inFlight(now) {
			t.Fatal("a served request is not in flight")
		}
		j.leave(now.Add(time.Duration(i)*time.Second), s)
		j.leave(now, s) // a second time changes nothing
	}
	if len(j.byKey) > 2 || len(j.gone) > 2 || j.inFlight(now) {
		t.Errorf("%d keys and %d entries are kept of 100 ended requests, in flight: %v", len(j.byKey), len(j.gone), j.inFlight(now))
	}
}
