package badger

import (
	"errors"
	"reflect"
	"strings"
	"testing"
	"time"

	"txmesh/txlog"
	"txmesh/txn"
)

func settled(tx txn.ID, cause string) txlog.Entry {
	return txlog.Entry{Tx: tx, At: time.Unix(7, 0).UTC(), Record: txn.Settled{Branch: "0", Op: txn.Undo, Outcome: txn.OK, Cause: cause}}
}

func TestEntriesOfATransactionShareARow(t *testing.T) {
	s := &Store{opts: Options{InlineBytes: 256}}
	long := strings.Repeat("x", 150)
	for _, tt := range []struct {
		name string
		es   []txlog.Entry
		want []int // entries of each row
	}{
		{"one is as it always was", []txlog.Entry{settled("a", "")}, []int{1}},
		{"those of one transaction", []txlog.Entry{settled("a", "1"), settled("a", "2"), settled("a", "3")}, []int{3}},
		{"not those of another", []txlog.Entry{settled("a", "1"), settled("b", "2"), settled("b", "3"), settled("a", "4")}, []int{2, 2}},
		{"not what would leave the tree", []txlog.Entry{settled("a", long), settled("a", long), settled("a", "3")}, []int{1, 2}},
	} {
		t.Run(tt.name, func(t *testing.T) {
			rows, err := s.pack(tt.es)
			if err != nil {
				t.Fatal(err)
			}
			var sizes []int
			back, want := map[txn.ID][]txlog.Entry{}, map[txn.ID][]txlog.Entry{}
			for _, e := range tt.es {
				want[e.Tx] = append(want[e.Tx], e)
			}
			for _, row := range rows {
				es, err := unpack(row.tx, row.body)
				if err != nil || !reflect.DeepEqual(es, row.entries) {
					t.Errorf("a row reads as %+v, %v; want %+v", es, err, row.entries)
				}
				sizes, back[row.tx] = append(sizes, len(es)), append(back[row.tx], es...)
			}
			if !reflect.DeepEqual(sizes, tt.want) || !reflect.DeepEqual(back, want) {
				t.Errorf("rows of %v entries, all in order: %v; want %v", sizes, reflect.DeepEqual(back, want), tt.want)
			}
		})
	}
}

// FuzzUnpack reads any bytes as a row: an error, or entries, never a panic.
func FuzzUnpack(f *testing.F) {
	s := &Store{opts: Options{InlineBytes: 4 << 10}}
	rows, err := s.pack([]txlog.Entry{settled("a", "1"), settled("a", "2")})
	if err != nil {
		f.Fatal(err)
	}
	f.Add(rows[0].body)
	f.Add([]byte{packedVersion})
	f.Add([]byte{packedVersion, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 1})
	f.Fuzz(func(t *testing.T, row []byte) {
		es, err := unpack("a", row)
		if err != nil && !errors.Is(err, txlog.ErrCorrupt) && !errors.Is(err, txlog.ErrNewer) {
			t.Errorf("error without a kind: %v", err)
		}
		if err == nil && len(es) == 0 {
			t.Error("a row without entries and without an error")
		}
	})
}
