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

// ofRepeats breaks the same where a request came as HTTP/2.
func ofRepeats() []mutation {
	const stream, choice, ending, link = "interceptor/proxy/h2/stream.go", "interceptor/proxy/h2/choice.go",
		"interceptor/proxy/h2/ending.go", "interceptor/proxy/h2/link.go"
	const by = "./interceptor/proxy/h2"
	return []mutation{
		{name: "HTTP/2: an answer is passed on, whatever the policy says", law: "AnswersAreRepeated", file: stream, by: by, tests: "TestAnswersAreRepeated",
			old: "	if s.again(s.judgeHead(status, h[1:], end)) {", now: "	if s.judgeHead(status, h[1:], end); false {"},
		{name: "HTTP/2: a repeat costs no budget", law: "AnswersAreRepeated", file: "interceptor/traffic/cluster.go", by: by, tests: "TestAnswersAreRepeated",
			old: "	c.tokens--\n", now: ""},
		{name: "HTTP/2: what may have taken effect is repeated whatever its method", law: "L16", file: "interceptor/traffic/lease.go", by: by, tests: "TestAnswersAreRepeated",
			old: "(why.Harmless() || policies.Idempotent(l.ask.Method))", now: "(why.Harmless() || l.ask.Method != \"\")"},
		{name: "HTTP/2: a request is sent again without its body", law: "AnswersAreRepeated", file: ending, by: by, tests: "TestAnswersAreRepeated",
			old: "append(append([]byte(nil), s.replay...), d.waiting()...)", now: "append([]byte(nil), d.waiting()...)"},
		{name: "HTTP/2: what is not at hand is sent again", law: "AnswersAreRepeated", file: choice, by: by, tests: "TestAnswersAreRepeated",
			old: "!s.noReplay && ", now: ""},
		{name: "HTTP/2: what is yet to come is sent again", law: "UnfinishedRequestsAreNotRepeated", file: choice, by: by, tests: "TestUnfinishedRequestsAreNotRepeated",
			old: " || !s.toUp.ended && s.tunnel == noTunnel || s.srv", now: " || s.srv"},
		{name: "HTTP/2: a request is repeated behind an interim answer", law: "L16", file: stream, by: by, tests: "TestAnswersAreRepeated",
			old: "		s.replay, s.noReplay = nil, true\n		if", now: "		if"},
		{name: "HTTP/2: a try that was too slow counts as broken off", law: "L16", file: stream, by: by, tests: "TestAnswersAreRepeated",
			old: "policies.TimedOut, &b)", now: "policies.Reset, &b)"},
		{name: "HTTP/2: the stream of an answer that nobody wants runs on", law: "RepeatLeavesItsPlace", file: stream, by: by, tests: "TestRepeatLeavesItsPlace",
			old: "		s.leave(end, b)\n", now: ""},
		{name: "HTTP/2: the place of an answer that nobody wants stays taken", law: "AnswersAreRepeated", file: ending, by: by, tests: "TestAnswersAreRepeated/^503$",
			old: "	s.upDone = true\n	s.up.forget(s.upID, b)\n}", now: "	s.upDone = true\n}"},
		{name: "HTTP/2: a request waits for room where it is no more", law: "RepeatLeavesItsPlace", file: link, by: by, tests: "TestRepeatLeavesItsPlace",
			old: "	if d.waits {\n		d.waits = false", now: "	if false {\n		d.waits = false"},
	}
}
