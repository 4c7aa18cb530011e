package txlogtest_test

import (
	"context"
	"errors"
	"testing"
	"testing/synctest"
	"time"

	"txmesh/txlog"
	"txmesh/txlog/memory"
	"txmesh/txlog/txlogtest"
	"txmesh/txn"
)

func TestRulesDisturbTheCallsTheyName(t *testing.T) {
	broken := errors.New("broken")
	entry := func(id txn.ID) []txlog.Entry { return []txlog.Entry{{Tx: id, Record: txn.Left{}}} }
	for _, tt := range []struct {
		name string
		rule txlogtest.Rule
		errs string // of four appends: x an error
		kept string // of four appends: x found
	}{
		{"the second", txlogtest.Rule{From: 2, Err: broken}, ".x..", "x.xx"},
		{"the second and third", txlogtest.Rule{From: 2, To: 3, Err: broken}, ".xx.", "x..x"},
		{"all from the third", txlogtest.Rule{From: 3, To: -1, Err: broken}, "..xx", "xx.."},
		{"written all the same", txlogtest.Rule{From: 2, Err: broken, Written: true}, ".x..", "xxxx"},
		{"by its entries", txlogtest.Rule{To: -1, Err: broken, If: func(es []txlog.Entry) bool { return es[0].Tx == "c" }}, "..x.", "xx.x"},
		{"another method", txlogtest.Rule{On: txlogtest.OnPut, To: -1, Err: broken}, "....", "xxxx"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			s := txlogtest.Faulty(memory.New(memory.Options{}), tt.rule)
			var errs, kept string
			for _, id := range []txn.ID{"a", "b", "c", "d"} {
				err := s.Append(t.Context(), entry(id), true)
				errs += mark(err != nil)
				found := false
				for _, err := range s.History(t.Context(), id) {
					found = err == nil
				}
				kept += mark(found)
			}
			if errs != tt.errs || kept != tt.kept {
				t.Errorf("errors %s, kept %s; want %s, %s", errs, kept, tt.errs, tt.kept)
			}
		})
	}
}

func mark(b bool) string {
	if b {
		return "x"
	}
	return "."
}

func TestSlowCallsEndWithTheirContext(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := txlogtest.Faulty(memory.New(memory.Options{}), txlogtest.Rule{On: txlogtest.OnPut, To: -1, Delay: time.Minute})
		rows := []txlog.Row{{Key: "k", Value: []byte("v")}}
		start := time.Now()
		if err := s.Table("t").Put(t.Context(), rows, true); err != nil || time.Since(start) != time.Minute {
			t.Errorf("put = %v after %v, want nil after a minute", err, time.Since(start))
		}
		ctx, cancel := context.WithTimeout(t.Context(), time.Second)
		defer cancel()
		if err := s.Table("t").Put(ctx, rows, true); !errors.Is(err, context.DeadlineExceeded) {
			t.Errorf("put = %v, want DeadlineExceeded", err)
		}
		if n := s.Calls(txlogtest.OnPut); n != 2 {
			t.Errorf("%d puts counted, want 2", n)
		}
	})
}
