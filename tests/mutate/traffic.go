package main

// ofTraffic breaks what keeps a proxy from doing things twice, and from shutting the right of way.
func ofTraffic() []mutation {
	const lease, cluster, endpoint, session, choice = "interceptor/traffic/lease.go", "interceptor/traffic/cluster.go",
		"interceptor/traffic/endpoint.go", "interceptor/proxy/session.go", "interceptor/proxy/choice.go"
	const pure, proxy, whole = "./interceptor/traffic", "./interceptor/proxy", "./sidecar"
	return []mutation{
		{name: "the proxy repeats a tagged call", law: "L16", file: session, by: proxy, tests: "TestTaggedCallsStay|TestNothingIsDoneTwice", quick: true,
			old: "		s.lease.Fix() // a tagged call goes to one endpoint, or nowhere\n", now: ""},
		{name: "a fixed lease moves on", law: "Repeats", file: lease, by: pure, tests: "TestRepeats",
			old: "l.c.own || l.fixed {\n		return false", now: "l.c.own {\n		return false"},
		{name: "what may have taken effect is repeated whatever its method", law: "L16", file: lease, by: proxy, tests: "TestNothingIsDoneTwice",
			old: "(why.Harmless() || policies.Idempotent(l.ask.Method))", now: "(why.Harmless() || l.ask.Method != \"\")"},
		{name: "POST counts as idempotent", law: "L16", file: "policies/traffic.go", by: proxy, tests: "TestNothingIsDoneTwice",
			old: "\"TRACE\", \"PUT\", \"DELETE\":", now: "\"TRACE\", \"PUT\", \"DELETE\", \"POST\":"},
		{name: "what is not whole is sent again", law: "RepeatsSendTheSameBytes", file: choice, by: proxy, tests: "TestRepeatsSendTheSameBytes",
			old: "	s.whole = s.req.body.done\n", now: "	s.whole = true\n"},
		{name: "a repeat costs no budget", law: "Budget", file: cluster, by: pure, tests: "TestBudgetHoldsOverAnyWindow",
			old: "	c.tokens--\n", now: ""},
		{name: "more endpoints are ejected than the share", law: "Share", file: endpoint, by: pure, tests: "TestEjectedNeverPassTheShare",
			old: "100*(c.ejected()+1) <= b.MaxEjected", now: "100*c.ejected() <= b.MaxEjected"},
		{name: "no place is kept for ops", law: "RightOfWay", file: cluster, by: proxy, tests: "TestOpsHaveTheRightOfWay",
			old: "		return max(most, ofNew+1)\n", now: "		return ofNew\n"},
		{name: "ops come on top of the limit", law: "Queue", file: cluster, by: pure, tests: "TestQueue",
			old: "	ofNew := max(1, most-max(1, most/10))\n", now: "	ofNew := most\n"},
		{name: "whoever says it is an op has the right of way", law: "RightOfWay", file: session, by: proxy, tests: "TestOpsHaveTheRightOfWay",
			old: "s.choose(&t, v.Ticket != nil && v.Ticket.First)", now: "s.choose(&t, true)"},
		{name: "a changed policy takes no force", law: "AChangedTrafficPolicy", file: cluster, by: whole, tests: "TestAChangedTrafficPolicyTakesForce",
			old: "	if set == c.set {", now: "	if set == c.set || c.set != nil {"},
		{name: "repeats are counted as those that were not granted", law: "TrafficOfADestination", file: "sidecar/trafficmetrics.go", by: whole, tests: "TestTrafficOfADestinationIsCounted",
			old: "retries[index(granted)](1)", now: "retries[index(!granted)](1)"},
		{name: "services with like names share their metrics", law: "TrafficOfADestination", file: "sidecar/metrics.go", by: whole, tests: "TestTrafficOfADestinationIsCounted",
			old: "SanitizeOptions: asWritten(),", now: "SanitizeOptions: &tallyprom.DefaultSanitizerOpts,"},
	}
}
