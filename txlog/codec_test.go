package txlog_test

import (
	"bytes"
	"encoding/hex"
	"errors"
	"flag"
	"fmt"
	"os"
	"path/filepath"
	"reflect"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"txmesh/txlog"
	"txmesh/txn"
)

var rewrite = flag.Bool("rewrite", false, "write the golden files anew")

func at(nanos int) time.Time { return time.Date(2026, 11, 23, 15, 4, 5, nanos, time.UTC) }

// samples returns records of every kind, full and bare.
func samples() map[string]txn.Record {
	branch := txn.Branch{
		ID: "a-1", Key: "k", After: []string{"a-0"}, Home: "h", Print: "p", Timeout: time.Second,
		Ops:        [txn.NumOps][]byte{txn.Forward: []byte("f"), txn.Commit: {}, txn.Undo: []byte("u")},
		Unanswered: txn.ResolveStop, KeepAnswer: true, InOrder: true,
		Retry: txn.Retry{Delay: 1, DelayMax: 2, StuckAfter: 3, TryTimeout: 4}, Join: []string{"j"}, Name: "withdraw", Note: []byte("n"),
	}
	spec := txn.Spec{
		ID: "a", Mode: txn.Intercepted, Plan: txn.Intercepted.Plan(), Branches: []txn.Branch{branch, {ID: "b"}},
		Ask: []byte("ask"), Tell: []byte("tell"), Timeout: time.Minute, Key: "key", Print: "print",
		Note: []byte("note"), Join: []string{"t"}, Name: "transfer", Door: "dtm",
	}
	// As the first release wrote them, before there were these fields.
	branch1, spec1 := branch, spec
	branch1.Retry.TryTimeout = 0
	spec1.Door, spec1.Branches = "", []txn.Branch{branch1, {ID: "b"}}
	decided := txn.Decided{Commit: true, Reason: "r", Stand: []string{"a-1"}, Undo: []string{"b"}, Answer: []byte("x")}
	decided1 := decided
	decided.Due = at(7)
	return map[string]txn.Record{
		"began":          txn.Began{Spec: spec, Expires: at(123456789)},
		"began-1":        txn.Began{Spec: spec1, Expires: at(123456789)},
		"enlisted-1":     txn.Enlisted{Branch: branch1},
		"decided-1":      decided1,
		"began-bare":     txn.Began{Spec: txn.Spec{ID: "a", Mode: txn.Saga}},
		"enlisted":       txn.Enlisted{Branch: branch},
		"enlisted-again": txn.Enlisted{Branch: txn.Branch{ID: "a-2"}, Again: true},
		"enlisted-bare":  txn.Enlisted{Branch: txn.Branch{ID: "a-2"}},
		"left":           txn.Left{Branch: "a-1"},
		"extended":       txn.Extended{Expires: at(1)},
		"extended-bare":  txn.Extended{},
		"decided":        decided,
		"decided-bare":   txn.Decided{},
		"settled":        txn.Settled{Branch: "a-1", Op: txn.Undo, Outcome: txn.OK, Result: []byte("res"), Cause: "c"},
		"settled-bare":   txn.Settled{},
		"deferred": txn.Deferred{Branch: "a-1", Op: txn.Commit, Attempt: 3, Since: at(1), Until: at(2),
			Outcome: txn.Unknown, Cause: "cut \xff\xfe off", Failed: 2},
		"deferred-1": txn.Deferred{Branch: "a-1", Op: txn.Commit, Attempt: 3, Since: at(1), Until: at(2),
			Outcome: txn.Unknown, Cause: "cut \xff\xfe off"},
		"halted":   txn.Halted{Branch: "a-1", Op: txn.Undo, Cause: "404"},
		"finished": txn.Finished{Phase: txn.Aborted},
		"forced":   txn.Forced{Branch: "a-1", Op: txn.Undo, Act: txn.ActSkip, By: "op", Why: "paid by hand"},
		"stopped":  txn.Stopped{By: "op", Why: "sold by hand"},
	}
}

func TestEveryRecordSurvivesTheCodec(t *testing.T) {
	for name, r := range samples() {
		t.Run(name, func(t *testing.T) {
			in := txlog.Entry{Tx: "a", At: at(987654321), Record: r}
			b, err := txlog.Encode(in)
			if err != nil {
				t.Fatal(err)
			}
			out, err := txlog.Decode("a", b)
			if err != nil {
				t.Fatal(err)
			}
			if !reflect.DeepEqual(out, in) {
				t.Errorf("got, want: %s", cmp.Diff(out, in))
			}
		})
	}
}

func TestEntriesOfThisReleaseAreReadForEver(t *testing.T) {
	for name, r := range samples() {
		t.Run(name, func(t *testing.T) {
			in := txlog.Entry{Tx: "a", At: at(987654321), Record: r}
			b, err := txlog.Encode(in)
			if err != nil {
				t.Fatal(err)
			}
			path := filepath.Join("testdata", "v2", name+".hex")
			if *rewrite {
				writeGolden(t, path, b)
			}
			if want := readGolden(t, path); !bytes.Equal(b, want) {
				t.Errorf("bytes changed: got %x, want %x (a change of format needs a new version; -rewrite shows it)", b, want)
			}
			readsAs(t, path, in)
		})
	}
}

// Files of versions that are no longer written.
func TestEntriesOfEarlierVersionsAreRead(t *testing.T) {
	paths, err := filepath.Glob(filepath.Join("testdata", "v1", "*.hex"))
	if err != nil || len(paths) < 20 {
		t.Fatalf("%d files, %v; want those of version 1", len(paths), err)
	}
	for _, path := range paths {
		name := strings.TrimSuffix(filepath.Base(path), ".hex")
		t.Run(name, func(t *testing.T) {
			readsAs(t, path, txlog.Entry{Tx: "a", At: at(987654321), Record: samples()[name]})
		})
	}
}

func readsAs(t *testing.T, path string, in txlog.Entry) {
	t.Helper()
	out, err := txlog.Decode("a", readGolden(t, path))
	if err != nil || !reflect.DeepEqual(out, in) {
		t.Errorf("golden bytes read as %+v, %v; want %+v", out, err, in)
	}
}

func readGolden(t testing.TB, path string) []byte {
	t.Helper()
	text, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	b, err := hex.DecodeString(strings.Join(strings.Fields(string(text)), ""))
	if err != nil {
		t.Fatal(err)
	}
	return b
}

func writeGolden(t *testing.T, path string, b []byte) {
	t.Helper()
	var s strings.Builder
	for len(b) > 0 {
		n := min(len(b), 40)
		fmt.Fprintf(&s, "%x\n", b[:n])
		b = b[n:]
	}
	if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(path, []byte(s.String()), 0o644); err != nil {
		t.Fatal(err)
	}
}

func TestLocalTimesComeBackInUTC(t *testing.T) {
	local := at(5).In(time.FixedZone("x", 3600))
	b, err := txlog.Encode(txlog.Entry{At: local, Record: txn.Extended{Expires: local}})
	if err != nil {
		t.Fatal(err)
	}
	got, err := txlog.Decode("", b)
	if err != nil {
		t.Fatal(err)
	}
	want := txlog.Entry{At: at(5), Record: txn.Extended{Expires: at(5)}}
	if !reflect.DeepEqual(got, want) {
		t.Errorf("got %v, want %v", got, want)
	}
}

func TestAbsentTargetsStayAbsent(t *testing.T) {
	b, err := txlog.Encode(txlog.Entry{Record: samples()["enlisted"]})
	if err != nil {
		t.Fatal(err)
	}
	e, err := txlog.Decode("", b)
	if err != nil {
		t.Fatal(err)
	}
	ops := e.Record.(txn.Enlisted).Branch.Ops
	if ops[txn.Commit] == nil || ops[txn.Ask] != nil || ops[txn.Tell] != nil {
		t.Errorf("ops = %#v, want commit empty, ask and tell nil", ops)
	}
}

func TestBrokenEntriesAreNamed(t *testing.T) {
	good, err := txlog.Encode(txlog.Entry{At: at(0), Record: txn.Left{Branch: "a-1"}})
	if err != nil {
		t.Fatal(err)
	}
	head := func(version, kind byte, rest ...byte) []byte { return append([]byte{version, kind}, rest...) }
	timed := func(kind byte, rest ...byte) []byte { return head(2, kind, append([]byte{0, 0, 0, 0, 1}, rest...)...) }
	for _, tt := range []struct {
		name  string
		bytes []byte
		is    error
		want  string
	}{
		{"nothing", nil, txlog.ErrCorrupt, `decode entry of "tx": 0 bytes, want at least 2`},
		{"version zero", append([]byte{0}, good[1:]...), txlog.ErrCorrupt,
			`decode entry of "tx" (17 bytes): version 0 at byte 0: txlog: corrupt`},
		{"later version", append([]byte{3}, good[1:]...), txlog.ErrNewer,
			`decode entry of "tx" (17 bytes): version 3 at byte 0, this release reads up to 2: txlog: written by a later release; run the release that wrote this store, or a later one`},
		{"later kind", head(2, 99, 0xa0), txlog.ErrNewer,
			`decode entry of "tx" (3 bytes): record kind 99 at byte 1, this release knows 1 to 11: txlog: written by a later release; run the release that wrote this store, or a later one`},
		{"later field", timed(3, 0xa1, 9, 1), txlog.ErrNewer, "not known to this release"},
		{"later field of version 1", head(1, 3, 0xa1, 1, 0xa1, 9, 1), txlog.ErrNewer, "not known to this release"},
		{"no time", head(2, 3), txlog.ErrCorrupt, "txn.Left: body after byte 2: the time is cut short"},
		{"half a time", head(2, 3, 0, 0, 0), txlog.ErrCorrupt, "txn.Left: body after byte 2: the time is cut short"},
		{"no such time", head(2, 3, 0, 0xff, 0xff, 0xff, 0xff, 0xa0), txlog.ErrCorrupt, "the time has 4294967295 nanoseconds"},
		{"cut off", good[:len(good)-3], txlog.ErrCorrupt, "txn.Left: body after byte 11: unexpected EOF: txlog: corrupt"},
		{"trailing", append(bytes.Clone(good), 0), txlog.ErrCorrupt, "1 bytes of extraneous data"},
		{"other type", timed(3, 0xa1, 1, 0x80), txlog.ErrCorrupt, "array"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			_, err := txlog.Decode("tx", tt.bytes)
			if !errors.Is(err, tt.is) || !strings.Contains(err.Error(), tt.want) {
				t.Errorf("error %v, want %v and %q in it", err, tt.is, tt.want)
			}
		})
	}
}

func FuzzDecode(f *testing.F) {
	for _, r := range samples() {
		b, err := txlog.Encode(txlog.Entry{At: at(1), Record: r})
		if err != nil {
			f.Fatal(err)
		}
		f.Add(b)
	}
	old, err := filepath.Glob(filepath.Join("testdata", "v1", "*.hex"))
	if err != nil {
		f.Fatal(err)
	}
	for _, path := range old {
		f.Add(readGolden(f, path))
	}
	f.Fuzz(func(t *testing.T, b []byte) {
		e, err := txlog.Decode("tx", b)
		if err != nil {
			if !errors.Is(err, txlog.ErrCorrupt) && !errors.Is(err, txlog.ErrNewer) {
				t.Errorf("error %v is neither corrupt nor newer", err)
			}
			return
		}
		// What the fuzzer wrote need not be in our form, so the first trip may tidy it; the second may not.
		first := trip(t, e)
		if second := trip(t, first); !reflect.DeepEqual(first, second) {
			t.Errorf("got %+v, want %+v", second, first)
		}
	})
}

func trip(t *testing.T, e txlog.Entry) txlog.Entry {
	t.Helper()
	b, err := txlog.Encode(e)
	if err != nil {
		t.Fatalf("encode %+v: %v", e, err)
	}
	e, err = txlog.Decode(e.Tx, b)
	if err != nil {
		t.Fatalf("decode again: %v", err)
	}
	return e
}
