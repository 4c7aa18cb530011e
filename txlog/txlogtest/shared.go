package txlogtest

import (
	"errors"
	"fmt"
	"strings"
	"sync"
	"sync/atomic"
	"testing"

	"txmesh/txlog"
	"txmesh/txn"
)

// The owners of the tests.
const (
	ownerA = "AAAAAAAAAAAAA"
	ownerB = "BBBBBBBBBBBBB"
)

// RunShared puts a kind of shared engine through Run, as the store of an owner, and through what Run does not look at:
// owners beside each other, their leases and their fences. Empty returns an engine with nothing in it and a limit of
// RetainBytes; the suite closes it.
func RunShared(t *testing.T, empty func(t *testing.T) txlog.Shared) {
	Run(t, func(t *testing.T) func() txlog.Store {
		s := empty(t)
		t.Cleanup(func() { closeShared(t, s) })
		return func() txlog.Store { return reclaimed(t, s) }
	})
	for _, c := range []struct {
		name string
		run  func(*testing.T, txlog.Shared)
	}{
		{"a claim fences who held it", aClaimFencesWhoHeldIt},
		{"a stale claim is refused", aStaleClaimIsRefused},
		{"one of many claims wins", oneOfManyClaimsWins},
		{"leases tell who holds what", leasesTellWhoHoldsWhat},
		{"a retired owner is forgotten", aRetiredOwnerIsForgotten},
		{"owners are apart", ownersAreApart},
		{"ids of another owner are taken", idsOfAnotherOwnerAreTaken},
		{"tables are common", tablesAreCommon},
		{"nothing enters behind a fence", nothingEntersBehindAFence},
		{"a closed store leaves the engine open", aClosedStoreLeavesTheEngineOpen},
	} {
		t.Run(strings.ReplaceAll(c.name, " ", "-"), func(t *testing.T) {
			s := empty(t)
			defer closeShared(t, s)
			c.run(t, s)
		})
	}
}

func closeShared(t *testing.T, s txlog.Shared) {
	t.Helper()
	if err := s.Close(); err != nil {
		t.Error(err)
	}
}

// reclaimed opens the store of an owner as its next life does.
func reclaimed(t *testing.T, s txlog.Shared) txlog.Store {
	t.Helper()
	known, err := s.Lease(t.Context(), ownerA)
	if err != nil && !errors.Is(err, txlog.ErrNotFound) {
		t.Fatal(err)
	}
	return s.As(mustClaim(t, s, ownerA, known.Owner.Epoch, holder(ownerA)).Owner)
}

func holder(sidecar string) txlog.Holder {
	return txlog.Holder{Sidecar: sidecar, Service: "bank/accounts", Peer: sidecar + ":15808"}
}

func mustClaim(t *testing.T, s txlog.Shared, owner string, known uint64, h txlog.Holder) txlog.Lease {
	t.Helper()
	l, err := s.Claim(t.Context(), owner, known, h)
	if err != nil {
		t.Fatal(err)
	}
	if l.Owner.ID != owner || l.Owner.Epoch <= known || l.Holder != h || l.Free {
		t.Fatalf("claim of %s at %d gave %+v", owner, known, l)
	}
	return l
}

func leaseOf(t *testing.T, s txlog.Shared, owner string) txlog.Lease {
	t.Helper()
	l, err := s.Lease(t.Context(), owner)
	if err != nil {
		t.Fatal(err)
	}
	return l
}

func wantError(t *testing.T, what string, got, want error) {
	t.Helper()
	if !errors.Is(got, want) {
		t.Fatalf("%s: %v, want %v", what, got, want)
	}
}

func aClaimFencesWhoHeldIt(t *testing.T, s txlog.Shared) {
	old := mustClaim(t, s, ownerA, 0, holder(ownerA))
	before := s.As(old.Owner)
	appendAll(t, before, true, begun("a", 0), begun("done", 0), finished("done", 1, txn.Aborted))
	adopted := mustClaim(t, s, ownerA, old.Owner.Epoch, holder(ownerB))
	wantError(t, "append under the old epoch", before.Append(t.Context(), []txlog.Entry{begun("b", 2)}, true), txlog.ErrFenced)
	wantError(t, "renewal under the old epoch", s.Renew(t.Context(), old.Owner), txlog.ErrFenced)
	wantError(t, "release under the old epoch", s.Release(t.Context(), old.Owner), txlog.ErrFenced)
	wantError(t, "retirement under the old epoch", s.Retire(t.Context(), old.Owner), txlog.ErrFenced)
	after := s.As(adopted.Owner)
	same(t, "unfinished", openCounts(t, after), map[txn.ID]int{"a": 1})
	appendAll(t, after, true, entry("a", 3, txn.Left{Branch: "x"}))
	same(t, "history", history(t, after, "a"), []txlog.Entry{begun("a", 0), entry("a", 3, txn.Left{Branch: "x"})})
	same(t, "what the fenced one wanted", history(t, after, "b"), nil)
}

func aStaleClaimIsRefused(t *testing.T, s txlog.Shared) {
	_, err := s.Claim(t.Context(), ownerA, 7, holder(ownerB))
	wantError(t, "claim of an owner that is not there, at 7", err, txlog.ErrFenced)
	l := mustClaim(t, s, ownerA, 0, holder(ownerA))
	for _, known := range []uint64{0, l.Owner.Epoch + 1} {
		_, err := s.Claim(t.Context(), ownerA, known, holder(ownerB))
		wantError(t, fmt.Sprintf("claim at %d", known), err, txlog.ErrFenced)
	}
	same(t, "lease", leaseOf(t, s, ownerA), l)
	appendAll(t, s.As(l.Owner), true, begun("a", 0))
}

func oneOfManyClaimsWins(t *testing.T, s txlog.Shared) {
	for round := range 5 {
		known := uint64(0)
		if round > 0 {
			known = leaseOf(t, s, ownerA).Owner.Epoch
		}
		var won atomic.Int32
		var all sync.WaitGroup
		for i := range 8 {
			all.Go(func() {
				_, err := s.Claim(t.Context(), ownerA, known, holder(fmt.Sprint("s", i)))
				switch {
				case err == nil:
					won.Add(1)
				case !errors.Is(err, txlog.ErrFenced):
					t.Error(err)
				}
			})
		}
		all.Wait()
		if won.Load() != 1 {
			t.Fatalf("%d of 8 claims won, want 1", won.Load())
		}
	}
}

func leasesTellWhoHoldsWhat(t *testing.T, s txlog.Shared) {
	_, err := s.Lease(t.Context(), ownerA)
	wantError(t, "lease of nobody", err, txlog.ErrNotFound)
	wantError(t, "renewal of nobody", s.Renew(t.Context(), txlog.Owner{ID: ownerA, Epoch: 1}), txlog.ErrFenced)
	b := mustClaim(t, s, ownerB, 0, txlog.Holder{Sidecar: ownerB, Service: "bank/audit", Peer: "b:1"})
	a := mustClaim(t, s, ownerA, 0, holder(ownerA))
	for range 3 {
		beat := leaseOf(t, s, ownerA).Beat
		if err := s.Renew(t.Context(), a.Owner); err != nil {
			t.Fatal(err)
		}
		if now := leaseOf(t, s, ownerA).Beat; now <= beat {
			t.Fatalf("beat %d after a renewal of beat %d", now, beat)
		}
	}
	if err := s.Release(t.Context(), a.Owner); err != nil {
		t.Fatal(err)
	}
	a = leaseOf(t, s, ownerA)
	same(t, "released", a.Free, true)
	for service, want := range map[string][]txlog.Lease{"": {a, b}, "bank/audit": {b}, "bank/accounts": {a}, "bank": nil} {
		got, err := s.Leases(t.Context(), service)
		if err != nil {
			t.Fatal(err)
		}
		same(t, "leases of "+service, got, want)
	}
	taken := mustClaim(t, s, ownerA, a.Owner.Epoch, holder(ownerB))
	same(t, "lease after the next claim", leaseOf(t, s, ownerA), taken)
}

func aRetiredOwnerIsForgotten(t *testing.T, s txlog.Shared) {
	l := mustClaim(t, s, ownerA, 0, holder(ownerA))
	store := s.As(l.Owner)
	appendAll(t, store, true, begun("a", 0))
	wantError(t, "retirement with one open", s.Retire(t.Context(), l.Owner), txlog.ErrUnfinished)
	appendAll(t, store, true, finished("a", 1, txn.Aborted))
	if err := s.Retire(t.Context(), l.Owner); err != nil {
		t.Fatal(err)
	}
	_, err := s.Lease(t.Context(), ownerA)
	wantError(t, "lease of a retired owner", err, txlog.ErrNotFound)
	wantError(t, "append of a retired owner", store.Append(t.Context(), []txlog.Entry{begun("b", 2)}, true), txlog.ErrFenced)
	again := mustClaim(t, s, ownerA, 0, holder(ownerA))
	if again.Owner.Epoch <= l.Owner.Epoch {
		t.Fatalf("epoch %d after %d was retired", again.Owner.Epoch, l.Owner.Epoch)
	}
	wantError(t, "append under the retired epoch", store.Append(t.Context(), []txlog.Entry{begun("b", 2)}, true), txlog.ErrFenced)
	same(t, "history", len(history(t, s.As(again.Owner), "a")), 2)
}

func ownersAreApart(t *testing.T, s txlog.Shared) {
	a := s.As(mustClaim(t, s, ownerA, 0, holder(ownerA)).Owner)
	b := s.As(mustClaim(t, s, ownerB, 0, holder(ownerB)).Owner)
	appendAll(t, a, true, entry("ta", 1, txn.Began{Spec: txn.Spec{ID: "ta", Mode: txn.Saga, Key: "ka"}}))
	appendAll(t, b, true, begun("tb", 2))
	same(t, "unfinished of a", openCounts(t, a), map[txn.ID]int{"ta": 1})
	same(t, "unfinished of b", openCounts(t, b), map[txn.ID]int{"tb": 1})
	for _, store := range []txlog.Store{a, b} {
		same(t, "history", len(history(t, store, "ta"))+len(history(t, store, "tb")), 2)
		id, err := store.Find(t.Context(), "ka")
		if err != nil || id != "ta" {
			t.Fatalf("find ka = %q, %v; want ta", id, err)
		}
		page, _, err := store.List(t.Context(), txlog.Query{})
		if err != nil {
			t.Fatal(err)
		}
		same(t, "list", ids(page), []string{"tb", "ta"})
	}
	for id, want := range map[txn.ID]string{"ta": ownerA, "tb": ownerB} {
		if owner, err := s.OwnerOf(t.Context(), id); err != nil || owner != want {
			t.Fatalf("owner of %s = %q, %v; want %s", id, owner, err, want)
		}
	}
	_, err := s.OwnerOf(t.Context(), "t")
	wantError(t, "owner of an unknown one", err, txlog.ErrNotFound)
	appendAll(t, a, true, finished("ta", 3, txn.Aborted))
	if n, err := b.Trim(t.Context(), at(9)); err != nil || n != 1 { // whoever comes by forgets what is old
		t.Fatalf("trim forgot %d, %v; want the one of a", n, err)
	}
}

func idsOfAnotherOwnerAreTaken(t *testing.T, s txlog.Shared) {
	a := s.As(mustClaim(t, s, ownerA, 0, holder(ownerA)).Owner)
	b := s.As(mustClaim(t, s, ownerB, 0, holder(ownerB)).Owner)
	appendAll(t, a, true, begun("gid", 0))
	wantError(t, "begin at another owner", b.Append(t.Context(), []txlog.Entry{begun("gid", 1), begun("other", 1)}, true), txlog.ErrTaken)
	wantError(t, "record of another owner", b.Append(t.Context(), []txlog.Entry{entry("gid", 1, txn.Left{Branch: "x"})}, true), txlog.ErrTaken)
	same(t, "history", history(t, b, "gid"), []txlog.Entry{begun("gid", 0)})
	same(t, "history of what came with it", history(t, b, "other"), nil)
	appendAll(t, b, true, begun("other", 2))

	// Those that are under way together are not refused with it.
	var all sync.WaitGroup
	for i := range 20 {
		all.Go(func() {
			id := fmt.Sprint("n", i)
			if i%5 == 0 {
				id = "gid"
			}
			err := b.Append(t.Context(), []txlog.Entry{begun(id, 3)}, true)
			if i%5 == 0 && !errors.Is(err, txlog.ErrTaken) || i%5 != 0 && err != nil {
				t.Errorf("begin of %s: %v", id, err)
			}
		})
	}
	all.Wait()
	same(t, "unfinished of b", len(openCounts(t, b)), 17)
}

func tablesAreCommon(t *testing.T, s txlog.Shared) {
	a := s.As(mustClaim(t, s, ownerA, 0, holder(ownerA)).Owner).Table("t")
	b := s.As(mustClaim(t, s, ownerB, 0, holder(ownerB)).Owner).Table("t")
	if err := a.Swap(t.Context(), "k", nil, []byte("a")); err != nil {
		t.Fatal(err)
	}
	wantError(t, "swap of what another has written", b.Swap(t.Context(), "k", nil, []byte("b")), txlog.ErrChanged)
	if err := b.Swap(t.Context(), "k", []byte("a"), []byte("b")); err != nil {
		t.Fatal(err)
	}
	same(t, "row", collect(t, a.Scan(t.Context(), "")), rowsOf("k", "b"))
}

// nothingEntersBehindAFence appends while another claims: what was acknowledged is there, and once the claim has
// returned nothing more comes.
func nothingEntersBehindAFence(t *testing.T, s txlog.Shared) {
	l := mustClaim(t, s, ownerA, 0, holder(ownerA))
	for round := range 5 {
		old := s.As(l.Owner)
		var acknowledged sync.Map
		var all sync.WaitGroup
		started := make(chan struct{}, 64)
		for w := range 4 {
			all.Go(func() {
				for i := 0; ; i++ {
					id := fmt.Sprintf("r%d-w%d-%d", round, w, i)
					err := old.Append(t.Context(), []txlog.Entry{begun(id, i)}, true)
					if errors.Is(err, txlog.ErrFenced) {
						return
					}
					if err != nil {
						t.Error(err)
						return
					}
					acknowledged.Store(txn.ID(id), true)
					select {
					case started <- struct{}{}:
					default:
					}
				}
			})
		}
		for range 8 {
			<-started
		}
		l = mustClaim(t, s, ownerA, l.Owner.Epoch, holder(ownerB))
		then := openCounts(t, s.As(l.Owner))
		all.Wait()
		same(t, "unfinished after the claim and later", openCounts(t, s.As(l.Owner)), then)
		acknowledged.Range(func(id, _ any) bool {
			if then[id.(txn.ID)] != 1 {
				t.Errorf("%s was acknowledged, and is not there", id)
			}
			return true
		})
	}
}

func aClosedStoreLeavesTheEngineOpen(t *testing.T, s txlog.Shared) {
	l := mustClaim(t, s, ownerA, 0, holder(ownerA))
	store := s.As(l.Owner)
	appendAll(t, store, true, begun("a", 0))
	closeStore(t, store)
	wantError(t, "append to a closed store", store.Append(t.Context(), []txlog.Entry{begun("b", 0)}, true), txlog.ErrClosed)
	same(t, "history", len(history(t, s.As(l.Owner), "a")), 1)
}
