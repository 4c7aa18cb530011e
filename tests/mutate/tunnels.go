package main

// ofTunnels breaks what is held of WebSockets and CONNECT over HTTP/2.
func ofTunnels() []mutation {
	const plain, stream, flush, tunnel = "interceptor/proxy/h2/plain.go", "interceptor/proxy/h2/stream.go",
		"interceptor/proxy/h2/flush.go", "interceptor/proxy/h2/tunnel.go"
	const by = "./interceptor/proxy/h2"
	return []mutation{
		{name: "HTTP/2: any 101 opens a WebSocket", law: "UpgradesThatDoNotSucceed", file: plain, by: by, tests: "TestUpgradesThatDoNotSucceed",
			old: "	case h.Get(\"Sec-Websocket-Accept\") != base64.StdEncoding.EncodeToString(sum[:]):\n", now: "	case len(sum) == 0:\n"},
		{name: "HTTP/2: any success opens a WebSocket", law: "UpgradesThatDoNotSucceed", file: plain, by: by, tests: "TestUpgradesThatDoNotSucceed",
			old: "		case status >= 300:\n", now: "		case status >= 200:\n			return res, nil, nil\n		case status >= 300:\n"},
		{name: "HTTP/2: what comes before an upgrade is accepted is another request", law: "UpgradesThatDoNotSucceed", file: stream, by: by, tests: "TestUpgradesThatDoNotSucceed",
			old: "	up.held = l.plain != nil", now: "	up.held = false"},
		{name: "HTTP/2: the end of half a tunnel is kept", law: "UpgradeIsTranslated", file: flush, by: by, tests: "TestUpgradeIsTranslated",
			old: "	case half:\n		l.endHalf()\n		return\n", now: "	case half:\n		return\n"},
		{name: "HTTP/2: more of a tunnel is read than the client takes", law: "WebSocketsPass", file: plain, by: by, tests: "TestWebSocketsPass",
			old: "	for p.room <= 0 && p.dead == nil {\n		p.drained.Wait()\n	}\n	if p.dead != nil {\n		return 0\n	}\n	return p.room\n", now: "	if p.dead != nil {\n		return 0\n	}\n	return frameMax\n"},
		{name: "HTTP/2: a tunnel waits for ever for a side that takes nothing", law: "ATunnelWhoseEndTakesNothingIsEnded", file: tunnel, by: by, tests: "TestATunnelWhoseEndTakesNothingIsEnded",
			old: "	still := waits > 0 && d.seen == sent\n", now: "	still := waits < 0 && d.seen == sent\n"},
		{name: "HTTP/2: the Gate takes a WebSocket for something that it is not", law: "GateSeesAnUpgrade", file: tunnel, by: by, tests: "TestGateSeesAnUpgrade",
			old: "		s.head = append(s.head, hpack.HeaderField{Name: \"upgrade\", Value: \"websocket\"})\n", now: "		s.head = append(s.head, hpack.HeaderField{Name: \"websocket\", Value: \"upgrade\"})\n"},
		{name: "HTTP/2: a WebSocket is sent as HTTP/2 to who has not announced it", law: "WebSocketsPass", file: tunnel, by: by, tests: "TestWebSocketsPass",
			old: "		if !extends {\n			return false\n		}\n", now: "		_ = extends\n"},
	}
}
