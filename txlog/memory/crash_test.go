package memory_test

import (
	"bufio"
	"bytes"
	"errors"
	"math/rand/v2"
	"testing"
	"time"

	"txmesh/txlog/memory"
	"txmesh/txlog/txlogtest"
)

// crash writes until the store fails, crashes it and compares. The ledger sees a loss of what no sync covered, or
// it could not see any.
func TestCrashDropsOnlyWhatNoSyncHasCovered(t *testing.T) {
	enough := errors.New("enough")
	dropped := 0
	for seed := range uint64(30) {
		s := memory.New(memory.Options{})
		stop := txlogtest.Faulty(s, txlogtest.Rule{On: txlogtest.OnAppend, From: 100 + int(seed), To: -1, Err: enough})
		var out bytes.Buffer
		w := txlogtest.Writer{Store: stop, Out: &out, Seed: seed, Clock: func() time.Time { return time.Unix(1e9, 0) }}
		if err := w.Run(t.Context()); !errors.Is(err, enough) {
			t.Fatal(err)
		}
		var l txlogtest.Ledger
		if err := l.Read(bufio.NewReader(&out), nil); err != nil {
			t.Fatal(err)
		}
		s.Crash(rand.New(rand.NewPCG(seed, 0)))
		found, err := l.Check(t.Context(), s, false)
		if err != nil || len(found.Lost) > 0 {
			t.Fatalf("seed %d: lost %v, %v", seed, found.Lost, err)
		}
		all, err := l.Check(t.Context(), s, true)
		if err != nil {
			t.Fatal(err)
		}
		dropped += len(all.Lost)
	}
	if dropped == 0 {
		t.Error("thirty crashes dropped nothing")
	}
}
