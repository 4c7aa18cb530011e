package fleet

import (
	"fmt"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
)

var small = Roster{Sidecars: []string{"a", "b"}, Stores: []string{"c", "d"}, Controls: []string{"e"}, Apps: []string{"app of a"}}

func TestSeedDecidesTheFaults(t *testing.T) {
	const run = 2 * time.Minute
	if d := cmp.Diff(Draw(1, run, small), Draw(1, run, small)); d != "" {
		t.Errorf("the same seed draws others:\n%s", d)
	}
	if cmp.Equal(Draw(1, run, small), Draw(2, run, small)) {
		t.Error("another seed draws the same")
	}
}

func TestFaultsOfARun(t *testing.T) {
	const run, wanted = 20 * time.Minute, 100
	for seed := range uint64(20) {
		t.Run(fmt.Sprint(seed), func(t *testing.T) {
			all := Draw(seed, run, small)
			if len(all) < wanted {
				t.Errorf("%d faults, want at least %d", len(all), wanted)
			}
			count := map[Kind]int{}
			until := map[string]time.Duration{}
			last := time.Duration(0)
			for _, f := range all {
				count[f.Kind]++
				if f.At < last || f.At+f.Lasts > run {
					t.Errorf("%v at %v for %v, after one at %v", f, f.At, f.Lasts, last)
				}
				last = f.At
				if len(f.To) == 0 && f.At < until[f.From[0]] {
					t.Errorf("%v at %v, but it was struck until %v", f, f.At, until[f.From[0]])
				}
				if len(f.To) == 0 {
					until[f.From[0]] = f.At + f.Lasts
				}
				for _, h := range f.To {
					if h == f.From[0] {
						t.Errorf("%v strikes the wire of a host to itself", f)
					}
				}
			}
			for k := range NumKinds {
				if count[k] < 3 {
					t.Errorf("%d faults of kind %v", count[k], k)
				}
			}
		})
	}
}
