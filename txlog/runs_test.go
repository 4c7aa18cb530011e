package txlog_test

import (
	"bytes"
	"errors"
	"reflect"
	"slices"
	"strconv"
	"testing"

	"txmesh/txlog"
	"txmesh/txn"
)

func counted(n int) []string {
	var out []string
	for i := range n {
		out = append(out, strconv.Itoa(i))
	}
	return out
}

func TestNamesOfBranchesSurviveTheirRuns(t *testing.T) {
	for name, after := range map[string][]string{
		"none": nil, "few": counted(3), "many": counted(1000), "none of them counts": {"a", "b", "c", "d", "e", "f", "g", "h", "i"},
		"a gap":               slices.Delete(counted(20), 7, 9),
		"from elsewhere":      append([]string{"x", "7-9", "-1", "01", "02", "03"}, counted(12)...),
		"marks":               {"\x00", "\x000-5", "\x00\x00"},
		"marks among runs":    append([]string{"\x000-5"}, counted(9)...),
		"backwards":           {"9", "8", "7", "6", "5", "4", "3", "2", "1"},
		"too many for runs":   counted(1<<16 + 1),
		"as many as runs may": counted(1 << 16),
		"the largest number":  {"a", "b", "c", "d", "e", "9223372036854775806", "9223372036854775807", "9223372036854775808", "f"},
	} {
		t.Run(name, func(t *testing.T) {
			for _, r := range []txn.Record{
				txn.Enlisted{Branch: txn.Branch{ID: "z", After: after}},
				txn.Began{Spec: txn.Spec{ID: "a", Branches: []txn.Branch{{ID: "y"}, {ID: "z", After: after}}}},
			} {
				given := slices.Clone(after)
				in := txlog.Entry{Tx: "a", At: at(1), Record: r}
				b, err := txlog.Encode(in)
				if err != nil {
					t.Fatal(err)
				}
				out, err := txlog.Decode("a", b)
				if err != nil || !reflect.DeepEqual(out, in) || !slices.Equal(after, given) {
					t.Errorf("got %+v, %v; want %+v", out, err, in)
				}
			}
		})
	}
}

func TestALongTransactionIsNotWrittenOutInEachEntry(t *testing.T) {
	b, err := txlog.Encode(txlog.Entry{Tx: "a", At: at(1), Record: txn.Enlisted{Branch: txn.Branch{ID: "1000", After: counted(1000)}}})
	if err != nil || len(b) > 60 {
		t.Errorf("%d bytes, %v; want at most 60", len(b), err)
	}
}

func TestBrokenRunsAreRefused(t *testing.T) {
	good, err := txlog.Encode(txlog.Entry{Tx: "a", At: at(1), Record: txn.Enlisted{Branch: txn.Branch{ID: "9", After: counted(9)}}})
	if err != nil {
		t.Fatal(err)
	}
	for _, run := range []string{"8-0", "0-x", "000", "a-b", "-08", "0- "} {
		b := bytes.Replace(good, []byte("\x000-8"), []byte("\x00"+run), 1)
		if bytes.Equal(b, good) {
			t.Fatalf("%x holds no run", good)
		}
		if e, err := txlog.Decode("a", b); !errors.Is(err, txlog.ErrCorrupt) {
			t.Errorf("run %q: got %+v, %v; want it refused", run, e, err)
		}
	}
	long := bytes.Replace(good, []byte("\x64\x000-8"), []byte("\x69\x000-999999"), 1)
	if e, err := txlog.Decode("a", long); !errors.Is(err, txlog.ErrCorrupt) {
		t.Errorf("a run of millions: got %d names, %v; want it refused", len(e.Record.(txn.Enlisted).Branch.After), err)
	}
}
