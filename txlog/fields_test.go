package txlog_test

import (
	"reflect"
	"regexp"
	"testing"
	"time"

	"txmesh/txn"
)

var numbered = regexp.MustCompile(`^(\d+),keyasint(,omitempty|,omitzero)?$`)

// A field without a number would be written under its Go name, and renamed away by a refactoring.
func TestEveryFieldOfARecordHasItsOwnNumber(t *testing.T) {
	seen := map[reflect.Type]bool{}
	for _, r := range []txn.Record{
		txn.Began{}, txn.Enlisted{}, txn.Left{}, txn.Extended{}, txn.Decided{}, txn.Settled{}, txn.Deferred{},
		txn.Halted{}, txn.Finished{}, txn.Forced{}, txn.Stopped{},
	} {
		checkFields(t, reflect.TypeOf(r), seen)
	}
}

func checkFields(t *testing.T, typ reflect.Type, seen map[reflect.Type]bool) {
	t.Helper()
	for typ.Kind() == reflect.Slice || typ.Kind() == reflect.Array || typ.Kind() == reflect.Pointer {
		typ = typ.Elem()
	}
	if typ.Kind() != reflect.Struct || typ == reflect.TypeFor[time.Time]() || seen[typ] {
		return
	}
	seen[typ] = true
	numbers := map[string]string{}
	for i := range typ.NumField() {
		f := typ.Field(i)
		m := numbered.FindStringSubmatch(f.Tag.Get("cbor"))
		if m == nil {
			t.Errorf("%s.%s has the tag %q, want a number for ever: cbor:\"N,keyasint,omitempty\"", typ, f.Name, f.Tag)
			continue
		}
		if other := numbers[m[1]]; other != "" {
			t.Errorf("%s.%s and %s have the same number %s", typ, f.Name, other, m[1])
		}
		numbers[m[1]] = f.Name
		checkFields(t, f.Type, seen)
	}
}

// The samples are full where they claim to be, so that their golden bytes cover every field.
func TestSamplesCoverEveryField(t *testing.T) {
	began := samples()["began"].(txn.Began)
	enlisted := samples()["enlisted"].(txn.Enlisted)
	for _, v := range []any{began, began.Spec, enlisted.Branch, enlisted.Branch.Retry, samples()["decided"],
		samples()["settled"], samples()["deferred"], samples()["halted"], samples()["finished"], samples()["forced"], samples()["stopped"]} {
		rv := reflect.ValueOf(v)
		for i := range rv.NumField() {
			if rv.Field(i).IsZero() {
				t.Errorf("sample %T leaves %s empty; fill it and run with -rewrite", v, rv.Type().Field(i).Name)
			}
		}
	}
}
