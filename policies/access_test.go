package policies

import (
	"regexp"
	"strings"
	"testing"
)

// FuzzCallers holds that a pattern matches what the same pattern written as a regular expression does.
func FuzzCallers(f *testing.F) {
	for _, p := range []string{"*", "transfers", "a/b", "spiffe://m/ns/*/sa/**", "spiffe://m", "spiffe://m/**", "spiffe://m/a"} {
		for _, c := range []string{"", "spiffe://m", "spiffe://m/", "spiffe://m/a", "spiffe://m/a/", "spiffe://m/ns/x/sa/y/z", "spiffe://n/ns/bank/sa/transfers"} {
			f.Add(p, c)
		}
	}
	f.Fuzz(func(t *testing.T, pattern, caller string) {
		p, err := parseCaller(pattern, "bank")
		if err != nil || strings.Contains(caller, "//") && strings.Contains(strings.TrimPrefix(caller, spiffeScheme), "//") || strings.Contains(caller, "\n") {
			return // no certificate proves an id with an empty segment
		}
		if want := asRegexp(pattern).MatchString(caller); p.matches(caller) != want {
			t.Errorf("pattern %q, caller %q: matches = %v, want %v", pattern, caller, !want, want)
		}
	})
}

func TestServiceOfAnID(t *testing.T) {
	for id, want := range map[string]string{
		"spiffe://mesh.example/ns/bank/sa/accounts": "bank/accounts", "": "", "spiffe://mesh.example": "", "spiffe://mesh.example/controlplane": "",
		"spiffe://mesh.example/ns/bank/sa": "", "spiffe://mesh.example/ns/bank/sa/accounts/1": "", "spiffe://mesh.example/ns/bank/pod/accounts": "",
		"spiffe://mesh.example/cluster/bank/sa/accounts": "", "https://mesh.example/ns/bank/sa/accounts": "",
	} {
		if got := ServiceOf(id); got != want {
			t.Errorf("ServiceOf(%q) = %q, want %q", id, got, want)
		}
	}
}

func asRegexp(pattern string) *regexp.Regexp {
	switch {
	case pattern == "*":
		return regexp.MustCompile("")
	case !strings.HasPrefix(pattern, spiffeScheme) && strings.Contains(pattern, "/"):
		pattern = "spiffe://*/ns/" + strings.Replace(pattern, "/", "/sa/", 1)
	case !strings.HasPrefix(pattern, spiffeScheme):
		pattern = "spiffe://*/ns/bank/sa/" + pattern
	}
	parts := strings.Split(regexp.QuoteMeta(pattern), "/")
	for i, s := range parts {
		switch s {
		case `\*`:
			parts[i] = "[^/]+"
		case `\*\*`:
			parts[i] = ".+"
		}
	}
	return regexp.MustCompile("^" + strings.Join(parts, "/") + "$")
}
