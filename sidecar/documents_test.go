package sidecar

import (
	"errors"
	"strings"
	"testing"
	"time"

	"txmesh/sidecar/owners"
	"txmesh/sidecar/peer"
)

func TestDocumentsGoWithTheirLastTransaction(t *testing.T) {
	b := newBank(t)
	old := b.at.Current()
	kept := func() (n int) {
		for _, err := range b.at.docs.rows.Scan(t.Context(), "") {
			if err != nil {
				t.Fatal(err)
			}
			n++
		}
		return n
	}
	next, err := compile(strings.Replace(transferPolicy, "name: withdraw\n", "name: debit\n", 1))
	if err != nil {
		t.Fatal(err)
	}
	b.at.policiesChanged(next)
	if kept() != 2 {
		t.Fatalf("documents kept = %d, want the old and the new one", kept())
	}
	now := time.Now()
	for _, tt := range []struct {
		name string
		at   time.Time
		want int
	}{{"soon", now, 2}, {"after a while", now.Add(unusedMin + time.Minute), 1}} {
		if _, err := b.at.docs.trim(t.Context(), tt.at, b.at.Current(), b.at.owners.All); err != nil {
			t.Fatal(err)
		}
		if kept() != tt.want {
			t.Errorf("%s: documents kept = %d, want %d", tt.name, kept(), tt.want)
		}
	}
	if _, err := b.at.docs.Get(t.Context(), hashes(old)[0]); !errors.Is(err, peer.ErrDocument) {
		t.Errorf("Get(trimmed) = %v, want ErrDocument", err)
	}
}

// An engine that has lost its journal, or is closed, knows no transaction. That is no reason to forget what undoes them.
func TestDocumentsStayWhileTheirTransactionsAreNotKnown(t *testing.T) {
	b := newBank(t)
	old := b.at.Current()
	next, err := compile(strings.Replace(transferPolicy, "name: withdraw\n", "name: debit\n", 1))
	if err != nil {
		t.Fatal(err)
	}
	b.at.policiesChanged(next)
	if err := b.at.owners.Close(); err != nil {
		t.Fatal(err)
	}
	if _, err := b.at.docs.trim(t.Context(), time.Now().Add(2*unusedMin), next, b.at.owners.All); !errors.Is(err, owners.ErrNotHeld) {
		t.Errorf("trim = %v, want %v", err, owners.ErrNotHeld)
	}
	if _, err := b.at.docs.Get(t.Context(), hashes(old)[0]); err != nil {
		t.Errorf("the document is gone: %v", err)
	}
}
