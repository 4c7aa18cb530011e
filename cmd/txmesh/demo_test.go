package main

import (
	"net"
	"net/http"
	"slices"
	"strings"
	"testing"
	"time"

	"txmesh/cmd/txmesh/diagram"
)

func TestVerifyWantsBothOrNeither(t *testing.T) {
	commit := scene{status: http.StatusCreated, phase: "committed"}
	abort := scene{status: http.StatusConflict, phase: "aborted"}
	o := order{"alice", "bob", 30}
	at := func(alice, bob int64) balances {
		return balances{map[string]int64{"alice": alice}, map[string]int64{"bob": bob, "carol": 0}}
	}
	for _, tt := range []struct {
		name  string
		sc    scene
		r     result
		phase string
		after balances
		want  string
	}{
		{"both changed", commit, result{status: 201}, "committed", at(70, 50), ""},
		{"neither changed", abort, result{status: 409}, "aborted", at(100, 20), ""},
		{"only one changed", abort, result{status: 409}, "aborted", at(70, 20), "balance of alice in accounts is 70, promised was 100"},
		{"the other changed", abort, result{status: 409}, "aborted", at(100, 50), "balance of bob in savings is 50, promised was 20"},
		{"changed twice", commit, result{status: 201}, "committed", at(40, 50), "balance of alice in accounts is 40, promised was 70"},
		{"a stranger changed", commit, result{status: 201}, "committed",
			balances{map[string]int64{"alice": 70}, map[string]int64{"bob": 50, "carol": 1}}, "balance of carol in savings is 1, promised was 0"},
		{"an account more", commit, result{status: 201}, "committed",
			balances{map[string]int64{"alice": 70, "dora": 0}, map[string]int64{"bob": 50, "carol": 0}}, "accounts has 2 accounts instead of 1"},
		{"another end", abort, result{status: 409}, "committed", at(100, 20), "transaction x is committed, promised was aborted"},
		{"another answer", commit, result{status: 502, text: "oh"}, "committed", at(70, 50), "the client was told 502, promised was 201: oh"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			got := ""
			if err := verify(tt.sc, o, tt.r, txDetail{ID: "x", Phase: tt.phase}, at(100, 20), tt.after); err != nil {
				got = err.Error()
			}
			if got != tt.want {
				t.Errorf("verify = %q, want %q", got, tt.want)
			}
		})
	}
}

func TestCrashMustHaveBeenOne(t *testing.T) {
	killed := time.Date(2026, 1, 2, 3, 4, 5, 0, time.UTC)
	before := balances{map[string]int64{"alice": 70}, map[string]int64{"slow": 0}}
	moved := balances{map[string]int64{"alice": 40}, map[string]int64{"slow": 30}}
	answered := func(at time.Time) txDetail {
		return txDetail{Branches: []txBranch{{Branch: "1", Name: "deposit"}},
			History: []diagram.Event{{At: at, Event: "answered", Branch: "1", Op: "forward"}}}
	}
	for _, tt := range []struct {
		name   string
		during *balances
		tx     txDetail
		want   string
	}{
		{"no crash", nil, answered(killed.Add(-1)), ""},
		{"answered after it", &moved, answered(killed.Add(1)), ""},
		{"answered before it", &moved, answered(killed.Add(-1)), "the deposit was answered before the sidecar was killed"},
		{"nothing had moved", &before, answered(killed.Add(1)),
			"while the sidecar was dead alice had 70, meant was 40\nwhile the sidecar was dead slow had 0, meant was 30"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			got := ""
			if err := verifyCrash(order{"alice", "slow", 30}, result{during: tt.during, killed: killed}, tt.tx, before); err != nil {
				got = err.Error()
			}
			if got != tt.want {
				t.Errorf("verifyCrash = %q, want %q", got, tt.want)
			}
		})
	}
}

func TestFreePortsAreFreeAndDiffer(t *testing.T) {
	ports, err := freePorts(14)
	if err != nil {
		t.Fatal(err)
	}
	slices.Sort(ports)
	if n := len(slices.Compact(slices.Clone(ports))); n != 14 {
		t.Errorf("%d different ports of 14: %s", n, strings.Join(ports, " "))
	}
	for _, p := range ports {
		l, err := net.Listen("tcp", p)
		if err != nil {
			t.Errorf("port is taken: %v", err)
			continue
		}
		l.Close()
	}
}
