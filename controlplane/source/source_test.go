package source

import (
	"context"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"txmesh/policies"
)

const policy = "apiVersion: txmesh.io/v1beta1\nkind: TransactionPolicy\nmetadata: {name: p, namespace: bank}\nspec:\n  calls:\n" +
	"  - {name: a, match: {service: accounts}, undo: {path: /u}}\n"

const grant = "---\napiVersion: txmesh.io/v1beta1\nkind: TransactionGrant\nmetadata: {name: p, namespace: bank}\nspec: {to: [shop]}\n"

func write(t *testing.T, dir, name, text string) {
	t.Helper()
	path := filepath.Join(dir, name)
	if err := os.WriteFile(path+".new", []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	if err := os.Rename(path+".new", path); err != nil {
		t.Fatal(err)
	}
}

// follow runs the source and returns how to get its next update.
func follow(t *testing.T, d Directory) func() Update {
	t.Helper()
	updates := make(chan Update, 16)
	ctx, stop := context.WithCancel(t.Context())
	done := make(chan error, 1)
	go func() { done <- d.Run(ctx, func(u Update) { updates <- u }) }()
	t.Cleanup(func() {
		stop()
		if err := <-done; err != nil {
			t.Error(err)
		}
	})
	return func() Update {
		t.Helper()
		select {
		case u := <-updates:
			return u
		case <-time.After(10 * time.Second):
			t.Fatal("no update within 10 s")
			return Update{}
		}
	}
}

func TestBrokenFilesKeepTheLastGoodSet(t *testing.T) {
	dir := t.TempDir()
	write(t, dir, "a.yaml", policy+grant)
	next := follow(t, Directory{Paths: []string{dir}})
	first := next().Set
	if d := cmp.Diff(map[string]string{"bank/p": policy, "bank/p.grant": strings.TrimPrefix(grant, "---\n")}, first.Documents); d != "" {
		t.Fatalf("documents (-want +got):\n%s", d)
	}
	write(t, dir, "a.yaml", policy+"  - {nam: b}\n")
	if u := next(); u.Set != nil || u.Problem == nil || !strings.Contains(u.Problem.Error(), "a.yaml:7:") {
		t.Errorf("update after a fault = %+v, want the finding and no set", u)
	}
	write(t, dir, "a.yaml", policy+grant)
	if u := next(); u.Problem != nil || u.Set.Version != first.Version {
		t.Errorf("update after the repair = %+v, want version %s", u, first.Version)
	}
	write(t, dir, "a.yaml", policy)
	if u := next(); u.Set == nil || u.Set.Version == first.Version || len(u.Set.Documents) != 1 {
		t.Errorf("update after a change = %+v", u)
	}
}

func TestSourceWaitsForItsFirstGoodSet(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "later")
	next := follow(t, Directory{Paths: []string{dir}, Again: time.Millisecond})
	if u := next(); u.Set != nil || u.Problem == nil {
		t.Fatalf("update without a directory = %+v, want a problem", u)
	}
	if err := os.Mkdir(dir, 0o700); err != nil {
		t.Fatal(err)
	}
	write(t, dir, "a.yaml", policy)
	u := next()
	for u.Set == nil || len(u.Set.Documents) == 0 { // the empty directory may be seen first
		u = next()
	}
	if len(u.Set.Documents) != 1 {
		t.Errorf("documents = %v", u.Set.Documents)
	}
}

func TestKindsOfOneNameTravelBesideEachOther(t *testing.T) {
	text := policy + grant
	for _, spec := range []string{"kind: AccessPolicy\nspec: {rules: []}", "kind: TrafficPolicy\nspec: {to: accounts}"} {
		text += "---\napiVersion: txmesh.io/v1beta1\nmetadata: {name: p, namespace: bank}\n" + spec + "\n"
	}
	s, err := policies.Compile(policies.Source{Name: "all", Data: []byte(text)})
	if err != nil {
		t.Fatal(err)
	}
	all := NewSet(s).Documents
	var sources []policies.Source
	for name, text := range all {
		sources = append(sources, policies.Source{Name: name, Data: []byte(text)})
	}
	if s, err = policies.Compile(sources...); err != nil {
		t.Fatal(err)
	}
	if len(all) != 4 || s.AccessRules() != 0 || s.Access("bank/x") == nil || s.Traffic("bank/accounts", "") == nil || len(s.Calls()) == 0 {
		t.Errorf("of four documents of two names there arrived %v", slices.Sorted(maps.Keys(all)))
	}
}

func TestVersionDependsOnContentAlone(t *testing.T) {
	set := func(sources ...policies.Source) string {
		t.Helper()
		s, err := policies.Compile(sources...)
		if err != nil {
			t.Fatal(err)
		}
		return NewSet(s).Version
	}
	g := strings.TrimPrefix(grant, "---\n")
	one := set(policies.Source{Name: "a", Data: []byte(policy + grant)})
	two := set(policies.Source{Name: "b", Data: []byte(g)}, policies.Source{Name: "c", Data: []byte(policy)})
	other := set(policies.Source{Name: "a", Data: []byte(policy + grant + "# more\n")})
	if one != two || one == other {
		t.Errorf("versions: one file %s, two files %s, another text %s", one, two, other)
	}
}
