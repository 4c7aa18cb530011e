package interceptor

import (
	"encoding/json"
	"reflect"
	"strings"
	"testing"
	"time"
)

func TestNoteSurvivesTheJournal(t *testing.T) {
	for name, n := range map[string]BranchNote{
		"full": {Document: "d0c", Rule: "withdraw", Service: "bank/accounts", Host: "h", Values: json.RawMessage(`{"a":1}`), Own: true,
			Deadline: time.Date(2026, 11, 26, 1, 2, 3, 4, time.UTC)},
		"bare": {},
	} {
		t.Run(name, func(t *testing.T) {
			got, err := DecodeNote(n.Encode())
			if err != nil || !reflect.DeepEqual(got, n) {
				t.Errorf("got %+v, %v; want %+v", got, err, n)
			}
			old, err := json.Marshal(n)
			if err != nil {
				t.Fatal(err)
			}
			if got, err := DecodeNote(old); err != nil || !reflect.DeepEqual(got, n) {
				t.Errorf("an earlier journal's note reads as %+v, %v; want %+v", got, err, n)
			}
		})
	}
}

func TestNoValuesTakeNoRoom(t *testing.T) {
	none, err := DecodeNote(BranchNote{Values: json.RawMessage("{}")}.Encode())
	if err != nil || none.Values != nil {
		t.Errorf("got %q, %v; want none", none.Values, err)
	}
}

func TestBrokenNotesAreRefused(t *testing.T) {
	later, _ := noteModes()
	field, err := later.Marshal(map[int]int{99: 1})
	if err != nil {
		t.Fatal(err)
	}
	for name, b := range map[string][]byte{
		"nothing": nil, "half of JSON": []byte("{"), "another form": {2, 0xa0}, "no map": {packedNote}, "cut short": BranchNote{Rule: "withdraw"}.Encode()[:5],
		"a later field": append([]byte{packedNote}, field...),
	} {
		if n, err := DecodeNote(b); err == nil || !strings.HasPrefix(err.Error(), "note of a branch: ") {
			t.Errorf("%s: got %+v, %v; want an error", name, n, err)
		}
	}
}

func FuzzDecodeNote(f *testing.F) {
	f.Add(BranchNote{Document: "d", Rule: "r", Values: json.RawMessage(`{"a":1}`), Deadline: time.Unix(1, 0)}.Encode())
	f.Add([]byte(`{"doc":"d","rule":"r","values":{"a":1},"deadline":"2026-11-26T14:00:55Z"}`))
	f.Fuzz(func(t *testing.T, b []byte) {
		n, err := DecodeNote(b)
		if err != nil {
			return
		}
		again, err := DecodeNote(n.Encode())
		if err != nil || again.Rule != n.Rule || again.Document != n.Document || again.Service != n.Service {
			t.Errorf("got %+v, %v; want %+v", again, err, n)
		}
	})
}
