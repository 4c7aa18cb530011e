package main

import "testing"

// TestEveryMutationFits says at once, not in a run of minutes, that a mutation's text has moved or changed.
func TestEveryMutationFits(t *testing.T) {
	root, err := moduleRoot()
	if err != nil {
		t.Fatal(err)
	}
	all, names, quick := mutations(), map[string]bool{}, 0
	for _, m := range all {
		if _, err := m.apply(root); err != nil {
			t.Error(err)
		}
		if names[m.name] {
			t.Errorf("two mutations are named %q", m.name)
		}
		names[m.name] = true
		if m.law == "" {
			t.Errorf("mutation %q names no law", m.name)
		}
		if m.quick {
			quick++
		}
	}
	if len(all) < 20 || quick == 0 || quick == len(all) {
		t.Errorf("%d mutations, %d of them in the short list", len(all), quick)
	}
}

// TestOnlyTheLawItselfCounts: a test that fails for another reason has not caught the mutation.
func TestOnlyTheLawItselfCounts(t *testing.T) {
	for _, tt := range []struct {
		name   string
		m      mutation
		text   string
		failed bool
		want   bool
	}{
		{"the law", mutation{law: "L2"}, "    sim_test.go:1: L2: forward call reached\n", true, true},
		{"another law", mutation{law: "L2"}, "    sim_test.go:1: L1: a call leaves\n", true, false},
		{"a longer number", mutation{law: "L1"}, "    sim_test.go:1: L14: answered\n", true, false},
		{"named, and the test passes", mutation{law: "L2"}, "    sim_test.go:1: 9 worlds, and L2 holds in all\n", false, false},
		{"a panic", mutation{law: "L2"}, "panic: L2\n", true, false},
		{"the name of a test", mutation{law: "L6", tests: "TestL6"}, "--- FAIL: TestL6HungCall (0.00s)\n", true, true},
		{"the name of another test", mutation{law: "L1", tests: "TestL1"}, "--- FAIL: TestL14DoWaits (0.00s)\n", true, false},
	} {
		t.Run(tt.name, func(t *testing.T) {
			if got := tt.m.read(tt.text, tt.failed).caught; got != tt.want {
				t.Errorf("read(%q, failed %v) caught = %v, want %v", tt.text, tt.failed, got, tt.want)
			}
		})
	}
}
