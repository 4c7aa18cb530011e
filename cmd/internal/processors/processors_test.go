package processors

import (
	"slices"
	"testing"
)

func TestMay(t *testing.T) {
	for name, c := range map[string]struct {
		variable           string
		chosen, processors int
		want               bool
	}{
		"all are there for us": {"", 2, 2, true},
		"the variable wins":    {"2", 2, 2, false},
		"a container's limit":  {"", 2, 16, false},
	} {
		if got := may(c.variable, c.chosen, c.processors); got != c.want {
			t.Errorf("%s: %t, want %t", name, got, c.want)
		}
	}
}

func TestThreadsAreSparedWhileAllAreBusy(t *testing.T) {
	var own, all float64
	looks := 0
	w := watch{own: func() float64 { return own }, all: func() float64 { looks++; return all }}
	var got []bool
	look := func(ownShare, allShare float64, times int) {
		own, all = ownShare, allShare
		for range times {
			got = append(got, w.allBusy())
		}
	}
	look(0.1, 0.99, 2) // others are busy
	if looks > 0 {
		t.Error("a process that does little looked at the machine")
	}
	look(1.5, 0.5, 1)
	look(1.5, 0.95, 2)
	look(1.5, 0.9, 2*calmLooks) // neither: it stays
	look(1.5, 0.5, calmLooks-1)
	look(1.5, 0.95, 1) // in time
	look(1.5, 0.5, calmLooks)
	want := slices.Concat(slices.Repeat([]bool{false}, 3), slices.Repeat([]bool{true}, 2+2*calmLooks+calmLooks-1+1+calmLooks-1), []bool{false})
	if !slices.Equal(got, want) {
		t.Errorf("got %v, want %v", got, want)
	}
}
