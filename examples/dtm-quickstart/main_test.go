package main

import (
	"bytes"
	"regexp"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"txmesh/sdk/dtm"
)

// The whole program, with a sidecar of its own.
func TestQuickStart(t *testing.T) {
	var out bytes.Buffer
	if err := run(t.Context(), []string{"--listen", "127.0.0.1:0"}, &out); err != nil {
		t.Fatalf("%v\n%s", err, out.String())
	}
	got := regexp.MustCompile(`(?m)^door .*\n|(?:saga) [^:]+`).ReplaceAllString(out.String(), "")
	want := `before: user 1 has 100, user 2 has 100

TransIn succeeds
  TransOut: -30 for user 1
  TransIn: +30 for user 2
: succeed
after: user 1 has 70, user 2 has 130

TransIn answers FAILURE
  TransOut: -30 for user 1
  TransIn: FAILURE
  TransInCompensate: nothing to take back
  TransOutCompensate: +30 for user 1
: failed
after: user 1 has 70, user 2 has 130
`
	if diff := cmp.Diff(want, got); diff != "" {
		t.Errorf("output (-want +got):\n%s", diff)
	}
}

// What is not as it should be is not passed over.
func TestQuickStartFailsIfTheBankIsWrong(t *testing.T) {
	s, err := startSidecar(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	defer func() {
		if err := s.stop(); err != nil {
			t.Error(err)
		}
	}()
	b := newBank()
	url, stop, err := b.serve("127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer stop()
	b.refuse()
	var out bytes.Buffer
	err = quickstart{door: dtm.Client{Server: "http://" + s.address + "/api/dtmsvr"}, bank: b, url: url, out: &out}.run(t.Context())
	if err == nil || !strings.Contains(err.Error(), "it is failed, user 1 has 100, user 2 has 100") {
		t.Errorf("error = %v\n%s", err, out.String())
	}
}

func TestBankMindsTheBarrier(t *testing.T) {
	b := newBank()
	branch := func(id, op string) dtm.Branch { return dtm.Branch{TransType: "saga", GID: "g", ID: id, Op: op} }
	for range 2 {
		b.move("TransOut", branch("01", "action"), 1, -30)
		b.move("TransInCompensate", branch("02", "compensate"), 2, -30)
		b.move("TransIn", branch("02", "action"), 2, +30)
	}
	if got, want := b.balances(), "user 1 has 70, user 2 has 100"; got != want {
		t.Errorf("balances: %s, want %s", got, want)
	}
	for range 2 {
		b.move("TransOutCompensate", branch("01", "compensate"), 1, +30)
	}
	if got, want := b.balances(), "user 1 has 100, user 2 has 100"; got != want {
		t.Errorf("balances: %s, want %s", got, want)
	}
}
