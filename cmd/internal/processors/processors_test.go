package processors

import "testing"

func TestThreads(t *testing.T) {
	for name, c := range map[string]struct {
		variable                 string
		chosen, processors, want int
	}{
		"one to spare":        {"", 2, 2, 3},
		"the variable wins":   {"2", 2, 2, 2},
		"a container's limit": {"", 2, 16, 2},
	} {
		if got := threads(c.variable, c.chosen, c.processors); got != c.want {
			t.Errorf("%s: %d threads, want %d", name, got, c.want)
		}
	}
}
