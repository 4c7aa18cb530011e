package main

// ofControlPlane breaks what the control plane keeps instead of making it anew: it must be right when time or one of many
// causes changes it, and made by nothing else.
func ofControlPlane() []mutation {
	const view, members, loops, answers = "controlplane/directory/view.go", "controlplane/directory/directory.go", "controlplane/loops.go", "controlplane/xds/acceptance.go"
	const directory, plane, streams = "./controlplane/directory", "./controlplane", "./controlplane/xds"
	return []mutation{
		{name: "a sidecar stays an endpoint after its grace time", law: "GraceTime", file: view, by: directory, tests: "TestSidecarStaysForItsGraceTime",
			old: "	if !s.until.IsZero() && !now.Before(s.until) {\n		s.all = nil\n	}\n", now: ""},
		{name: "the endpoints of a service do not know who came", law: "ViewsOfBefore", file: members, by: directory, tests: "TestViewsOfBeforeDoNotShow",
			old: "	s.members[n.Owner] = m\n	s.outdate()\n", now: "	s.members[n.Owner] = m\n"},
		{name: "who is frozen is not looked for", law: "Frozen", file: loops, by: plane, tests: "TestFrozenIsToldByTimeAlone",
			old: "		c.xds.Look() // who is frozen is known by time alone\n", now: ""},
		{name: "the gauges do not know of new policies", law: "Gauges", file: loops, by: plane, tests: "TestGaugesFollowWhatHappens",
			old: "	c.problem, c.recount = problem, true\n", now: "	c.problem = problem\n"},
		{name: "each answer to a heartbeat has a sidecar told anew", law: "NothingIsMadeAnew", file: answers, by: plane, tests: "TestNothingIsMadeAnewWhileNothingHappens",
			old: "x.joined && (policies || thawed)", now: "x.joined"},
		{name: "who thawed is not looked at again", law: "SecondAnswer", file: answers, by: streams, tests: "TestSecondAnswerOwed",
			old: "x.frozen, s.look = false, now", now: "x.frozen = false"},
	}
}
