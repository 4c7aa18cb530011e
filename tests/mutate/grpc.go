package main

// ofGRPC breaks what makes calls of gRPC branches: what a unary call is, what its end says, how its ops are written,
// and how it travels.
func ofGRPC() []mutation {
	const messages, outcomes, gate, out = "policies/grpc.go", "policies/outcome.go", "interceptor/grpc.go", "sidecar/outbound/grpc.go"
	const secure = "sidecar/identify.go"
	const rules, doors, calls = "./policies", "./interceptor", "./sidecar/outbound"
	return []mutation{
		{name: "a stream is taken for a branch", law: "Streams", file: messages, by: doors, tests: "TestStreamsAreRefusedBeforeTheyLeave", quick: true,
			old: "	case err == nil && len(rest) > 0:", now: "	case err == nil && len(rest) < 0:"},
		{name: "200 is success whatever the trailers say", law: "StatusOfABranch", file: outcomes, by: doors, tests: "TestStatusOfABranchOverGRPC", quick: true,
			old: "	case res.isGRPC():\n", now: "	case res.isGRPC() && res.Status != 200:\n"},
		{name: "an answer without a status is success", law: "StatusesOfGRPC", file: messages, by: rules, tests: "TestStatusesOfGRPC",
			old: "		return codes.Unknown\n", now: "		return codes.OK\n"},
		{name: "UNAVAILABLE is a refusal", law: "StatusesOfGRPC", file: messages, by: rules, tests: "TestStatusesOfGRPC",
			old: "		codes.Aborted, codes.OutOfRange,", now: "		codes.Unavailable, codes.Aborted, codes.OutOfRange,"},
		{name: "an answer of HTTP to a call of gRPC is success", law: "BodiesOfGRPC", file: outcomes, by: rules, tests: "TestBodiesOfGRPCNeedTheirMethod",
			old: "	case grpc && !res.isGRPC() && res.Status < 400:", now: "	case grpc && !res.isGRPC() && res.Status < 200:"},
		{name: "the time that a client of gRPC waits is not looked at", law: "Timeouts", file: gate, by: doors, tests: "TestTimeoutsOfGRPC",
			old: "ok && d < timeout {", now: "ok && d < 0 {"},
		{name: "a kept answer has lost its status", law: "HomeReplays", file: gate, by: doors, tests: "TestHomeReplaysGRPC",
			old: "		if v := from(name); v != \"\" {", now: "		if v := from(name); v == name {"},
		{name: "an op is written by the type of its answer", law: "Golden/grpc", file: messages, by: rules, tests: "TestGolden/grpc",
			old: "	t := o.grpc.input()\n", now: "	t := o.grpc.output()\n"},
		{name: "a proxy's answer to an op is taken for the service's", law: "NoServerOfGRPC", file: out, by: calls, tests: "TestWhatNoServerOfGRPCSaid",
			old: "(!isStatus || len(header) == 0 && len(trailer) == 0)", now: "!isStatus"},
		{name: "TLS between sidecars is not told of HTTP/2", law: "ProtocolsAreKept", file: secure, by: "./sidecar", tests: "TestProtocolsAreKeptOverCertificates",
			old: "	return s.identity.Client(ctx, conn, \"h2\")\n", now: "	return s.identity.Client(ctx, conn)\n"},
		{name: "the inbound port agrees on no protocol", law: "ProtocolsAreKept", file: secure, by: "./sidecar", tests: "TestProtocolsAreKeptOverCertificates",
			old: "s.secured(identity.StrictOutside, \"h2\", \"http/1.1\")", now: "s.secured(identity.StrictOutside)"},
	}
}
