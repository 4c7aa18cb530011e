package txlogtest

import (
	"bytes"
	"errors"
	"fmt"
	"strconv"
	"strings"
	"sync"
	"testing"

	"txmesh/txlog"
	"txmesh/txn"
)

func put(t *testing.T, tab txlog.Table, sync bool, rows ...txlog.Row) {
	t.Helper()
	if err := tab.Put(t.Context(), rows, sync); err != nil {
		t.Fatal(err)
	}
}

func rowsOf(kv ...string) []txlog.Row {
	var rows []txlog.Row
	for i := 0; i < len(kv); i += 2 {
		rows = append(rows, txlog.Row{Key: kv[i], Value: []byte(kv[i+1])})
	}
	return rows
}

func rowsArePutWhole(t *testing.T, open opener) {
	s := open()
	tab := s.Table("t")
	put(t, tab, false, rowsOf("a", "1", "b", "", "c", "3")...)
	put(t, tab, true, txlog.Row{Key: "c"}, txlog.Row{Key: "a", Value: []byte("2")}, txlog.Row{Key: "never"})
	put(t, tab, true, txlog.Row{Key: "d", Value: []byte("4")}, txlog.Row{Key: "d"}) // the last word counts
	for range 2 {
		tab = s.Table("t")
		same(t, "rows", collect(t, tab.Scan(t.Context(), "")), rowsOf("a", "2", "b", ""))
		if v, err := tab.Get(t.Context(), "b"); err != nil || v == nil || len(v) != 0 {
			t.Errorf("empty row = %v, %v; want it, empty", v, err)
		}
		for _, key := range []string{"c", "d", "never", "", "aa"} {
			if v, err := tab.Get(t.Context(), key); !errors.Is(err, txlog.ErrNotFound) {
				t.Errorf("get %q = %q, %v; want ErrNotFound", key, v, err)
			}
		}
		s = reopen(t, s, open)
	}
	closeStore(t, s)
}

func aSwapReplacesWhatItExpects(t *testing.T, open opener) {
	s := open()
	defer func() { closeStore(t, s) }()
	swap := func(old, new []byte, want error) {
		t.Helper()
		if err := s.Table("t").Swap(t.Context(), "k", old, new); !errors.Is(err, want) {
			t.Fatalf("swap %q for %q: %v, want %v", old, new, err, want)
		}
	}
	one, two := []byte("1"), []byte("2")
	swap(one, two, txlog.ErrChanged) // there is none
	swap([]byte{}, two, txlog.ErrChanged)
	swap(nil, nil, nil)
	swap(nil, one, nil)
	swap(nil, two, txlog.ErrChanged)
	swap(two, one, txlog.ErrChanged)
	swap(one, []byte{}, nil)
	swap(nil, two, txlog.ErrChanged) // empty is not absent
	swap([]byte{}, two, nil)
	s = reopen(t, s, open)
	swap(one, nil, txlog.ErrChanged)
	same(t, "row after a restart", collect(t, s.Table("t").Scan(t.Context(), "")), rowsOf("k", "2"))
	swap(two, nil, nil)
	same(t, "rows after it was removed", collect(t, s.Table("t").Scan(t.Context(), "")), nil)
}

// oneOfManySwapsWins counts up from many goroutines: no count is lost.
func oneOfManySwapsWins(t *testing.T, open opener) {
	s := open()
	defer closeStore(t, s)
	tab := s.Table("t")
	put(t, tab, true, rowsOf("k", "0")...)
	const goroutines, each = 4, 10
	var all sync.WaitGroup
	for range goroutines {
		all.Go(func() {
			for done := 0; done < each; {
				v, err := tab.Get(t.Context(), "k")
				if err != nil {
					t.Error(err)
					return
				}
				n, _ := strconv.Atoi(string(v))
				switch err := tab.Swap(t.Context(), "k", v, []byte(strconv.Itoa(n+1))); {
				case err == nil:
					done++
				case !errors.Is(err, txlog.ErrChanged):
					t.Error(err)
					return
				}
			}
		})
	}
	all.Wait()
	same(t, "row", collect(t, tab.Scan(t.Context(), "")), rowsOf("k", strconv.Itoa(goroutines*each)))
}

func tablesDoNotMix(t *testing.T, open opener) {
	s := open()
	defer closeStore(t, s)
	put(t, s.Table("t"), false, rowsOf("ab", "1", "x", "2")...)
	put(t, s.Table("ta"), false, rowsOf("b", "3")...)
	put(t, s.Table(""), false, rowsOf("tx", "4")...)
	appendAll(t, s, false, begun("tx", 0))
	same(t, "t", collect(t, s.Table("t").Scan(t.Context(), "")), rowsOf("ab", "1", "x", "2"))
	same(t, "ta", collect(t, s.Table("ta").Scan(t.Context(), "")), rowsOf("b", "3"))
	same(t, "unnamed", collect(t, s.Table("").Scan(t.Context(), "")), rowsOf("tx", "4"))
	put(t, s.Table("t"), false, txlog.Row{Key: "ab"})
	same(t, "ta after t", collect(t, s.Table("ta").Scan(t.Context(), "")), rowsOf("b", "3"))
}

func scansAreInOrder(t *testing.T, open opener) {
	s := open()
	defer closeStore(t, s)
	tab := s.Table("t")
	var want []txlog.Row
	for i := range 300 {
		r := txlog.Row{Key: fmt.Sprintf("p/%03d", i), Value: []byte(fmt.Sprint(i))}
		want = append(want, r)
		put(t, tab, false, r, txlog.Row{Key: fmt.Sprintf("q/%03d", i), Value: []byte("q")})
	}
	same(t, "p", collect(t, tab.Scan(t.Context(), "p/")), want)
	same(t, "p/1", collect(t, tab.Scan(t.Context(), "p/1")), want[100:200])
	same(t, "none", collect(t, tab.Scan(t.Context(), "r")), nil)
	n := 0
	for _, err := range tab.Scan(t.Context(), "") {
		same(t, "error of a scan", err, error(nil))
		if n++; n == 70 {
			break // a scan may be left, and the table written meanwhile
		}
		put(t, tab, false, txlog.Row{Key: "a", Value: []byte("x")})
	}
	same(t, "visited", n, 70)
}

// largeValuesSurvive uses values beyond any inline limit, replaces and removes them.
func largeValuesSurvive(t *testing.T, open opener) {
	s := open()
	body := func(i int) []byte { return bytes.Repeat([]byte{byte(i), byte(i >> 8), 7}, 20_000+i) }
	note := func(i int) txlog.Entry {
		id := fmt.Sprintf("tx-%d", i)
		return entry(id, i, txn.Began{Spec: txn.Spec{ID: txn.ID(id), Mode: txn.Saga, Note: body(i)}})
	}
	const n = 100 // several segments' worth
	for i := range n {
		appendAll(t, s, i%4 == 0, note(i))
		put(t, s.Table("t"), i%4 == 1, txlog.Row{Key: fmt.Sprint(i), Value: body(i)})
		if i%2 == 0 { // half of them do not stay
			appendAll(t, s, false, finished(fmt.Sprintf("tx-%d", i), i, txn.Committed))
			put(t, s.Table("t"), false, txlog.Row{Key: fmt.Sprint(i), Value: []byte("small")})
		}
	}
	check := func() {
		t.Helper()
		for i := 1; i < n; i += 2 {
			if h := history(t, s, fmt.Sprintf("tx-%d", i)); len(h) != 1 || !bytes.Equal(h[0].Record.(txn.Began).Spec.Note, body(i)) {
				t.Fatalf("history %d has %d entries or another body", i, len(h))
			}
			if v, err := s.Table("t").Get(t.Context(), fmt.Sprint(i)); err != nil || !bytes.Equal(v, body(i)) {
				t.Fatalf("row %d = %d bytes, %v; want %d", i, len(v), err, len(body(i)))
			}
		}
	}
	check()
	for range 2 {
		if _, err := s.Trim(t.Context(), at(n)); err != nil {
			t.Fatal(err)
		}
		check()
		s = reopen(t, s, open)
		check()
	}
	closeStore(t, s)
}

// manyGoroutines appends, puts, reads, lists and trims at once.
func manyGoroutines(t *testing.T, open opener) {
	s := open()
	const writers, each = 16, 25
	var wg sync.WaitGroup
	fail := make(chan error, writers+2)
	for w := range writers {
		wg.Go(func() { fail <- write(t, s, w, each) })
	}
	for _, read := range []func() error{
		func() error { _, _, err := s.List(t.Context(), txlog.Query{Limit: 7}); return err },
		func() error { _, err := s.Trim(t.Context(), at(10)); return err },
	} {
		wg.Go(func() {
			var err error
			for i := 0; i < 20 && err == nil; i++ {
				err = read()
			}
			fail <- err
		})
	}
	wg.Wait()
	close(fail)
	for err := range fail {
		if err != nil {
			t.Fatal(err)
		}
	}
	s = reopen(t, s, open)
	defer closeStore(t, s)
	same(t, "open transactions", len(openCounts(t, s)), writers)
	same(t, "rows", len(collect(t, s.Table("t").Scan(t.Context(), ""))), writers*each)
}

// write runs transactions of which all but the last end, late enough for no trim to forget them.
func write(t *testing.T, s txlog.Store, w, each int) error {
	for i := range each {
		id := fmt.Sprintf("%d-%d", w, i)
		if err := s.Append(t.Context(), []txlog.Entry{begun(id, i)}, true); err != nil {
			return err
		}
		row := txlog.Row{Key: id, Value: []byte(strings.Repeat("v", 10*w))}
		if err := s.Table("t").Put(t.Context(), []txlog.Row{row}, i%2 == 0); err != nil {
			return err
		}
		if i == each-1 {
			return nil
		}
		if err := s.Append(t.Context(), []txlog.Entry{finished(id, i, txn.Committed)}, false); err != nil {
			return err
		}
	}
	return nil
}
