package main

// ofProof breaks what holds sidecars to the service of their certificate, and clients of DTM to access policies.
func ofProof() []mutation {
	const server, client, proof = "sidecar/peer/server.go", "sidecar/peer/client.go", "sidecar/peer/proof.go"
	const peers, asks, answers, sent = "./sidecar/peer", "TestWhoAsksIsTheServiceOfItsCertificate", "TestWhoAnswersIsTheServiceOfItsCertificate", "TestNothingIsSentToAnotherServiceThanMeant"
	const door, endpoints, clients = "./interceptor/dtm", "TestEveryEndpointAsksWhoMay", "TestClientsOfDTMAreHeldToAccessPolicies"
	return []mutation{
		{name: "clients of DTM may all", law: "ClientsOfDTM", file: "sidecar/dtm.go", by: "./sidecar", tests: clients,
			old: "May: s.mayAsk, ", now: ""},
		{name: "clients of DTM are nobody over gRPC", law: "ClientsOfDTM", file: "interceptor/dtm/access.go", by: "./sidecar", tests: clients,
			old: "a.Caller = callerOf(c.conn)", now: "_ = c"},
		{name: "whoever may begin may commit by DTM's submit", law: "SubmitAsks", file: "interceptor/dtm/access.go", by: door, tests: "TestSubmitAsksForWhatItDoes",
			old: "	if t.Type == typeSaga {\n", now: "	if t.Type != typeWorkflow {\n"},
		{name: "clients of DTM may stop what is not theirs", law: "EveryEndpoint", file: "interceptor/dtm/service.go", by: door, tests: endpoints, quick: true,
			old: "	if err := s.may(ctx, policies.Operate); err != nil {\n		return err\n	}\n	if stopped,", now: "	if stopped,"},
		{name: "clients of DTM see what is not theirs", law: "EveryEndpoint", file: "interceptor/dtm/http.go", by: door, tests: endpoints,
			old: "	if err := s.mayLook(ctx); err != nil {\n		return nil, err\n	}\n	return s.query(", now: "	return s.query("},
		{name: "who asks may name any service", law: "WhoAsks", file: server, by: peers, tests: asks, quick: true,
			old: "if err := vouched(r.Header.Get(headerService), s.caller(r)); err != nil {", now: "if err := vouched(r.Header.Get(headerService), s.caller(r)); false {"},
		{name: "who asks names no service", law: "WhoAsks", file: client, by: peers, tests: asks,
			old: "req.Header.Set(headerService, c.proof.Service)", now: "req.Header.Set(headerService, \"\")"},
		{name: "who answers may name any service", law: "WhoAnswers", file: client, by: peers, tests: answers, quick: true,
			old: "if err := id.vouched(proven); err != nil {", now: "if err := id.vouched(proven); false {"},
		{name: "who answers may share any home", law: "WhoAnswers", file: proof, by: peers, tests: answers,
			old: "err != nil || !interceptor.IsSharedHome(i.Home) {", now: "true {"},
		{name: "whoever is at an address gets what is sent there", law: "NothingIsSent", file: proof, by: peers, tests: sent,
			old: "err = vouched(c.proof.Serves(address), c.proof.Of(conn)); err != nil {", now: "err = vouched(c.proof.Serves(address), c.proof.Of(conn)); false {"},
		{name: "what was asked who it is carries all", law: "NothingIsSent", file: proof, by: peers, tests: sent,
			old: "	c.asking = clientOf(asking)\n", now: "	c.asking = clientOf(asking)\n	c.http = c.asking\n"},
		{name: "an id that names no service is nobody's", law: "WhatACertificateDoesNotContradict", file: proof, by: peers, tests: "TestWhatACertificateDoesNotContradictIsBelieved",
			old: "service == \"\" || proven == \"\" || proven", now: "service == \"\" || proven"},
		{name: "a node may share the home of another service", law: "NodesThatCannotBeRead", file: "controlplane/directory/node.go", by: "./controlplane/directory", tests: "TestNodesThatCannotBeRead",
			old: "out.Home != \"~\"+out.Service:", now: "out.Home[0] != '~':"},
		{name: "a sidecar with another's certificate is ready", law: "TheServiceOfItsCertificate", file: "sidecar/identify.go", by: "./sidecar", tests: "TestASidecarIsTheServiceOfItsCertificate",
			old: "proven != \"\" && proven != s.cfg.Service {", now: "false {"},
	}
}
