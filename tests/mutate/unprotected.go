package main

// ofUnprotected breaks what keeps a branch from being called without the barrier that its policy promises.
func ofUnprotected() []mutation {
	const directory, branch = "sidecar/peer/directory.go", "interceptor/branch.go"
	return []mutation{
		{name: "who left the control plane is taken for no sidecar", law: "WhoLeftTheFleet", file: directory, by: "./sidecar/peer", tests: "TestWhoLeftTheFleet", quick: true,
			old: "	if !ok && left && d.opt.Now().Before(g.until) {\n		return d.homeOfGone(endpoint, g)\n	}\n", now: "	_, _ = g, left\n"},
		{name: "a caller speaks for all calls of a home", law: "NotSentIsRefused", file: branch, by: "./interceptor", tests: "TestBranchThatWasNotSentIsRefused",
			old: "	case !x.atHome && notSent(err):", now: "	case notSent(err):"},
	}
}
