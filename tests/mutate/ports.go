package main

// ofPorts breaks what is held of our own ports: the engine behind them answers for what is durable, the peer port reads
// what a head has earned, and profiles are for who has the token.
func ofPorts() []mutation {
	const loop, auth, api, pack = "sidecar/engine/loop.go", "sidecar/peer/auth.go", "controlplane/api/api.go", "txlog/badger/pack.go"
	const quick, sockets = "interceptor/socket/conn.go", "./interceptor/socket"
	const engine, peers, plane, store = "./sidecar/engine", "./sidecar/peer", "./controlplane", "./txlog/badger"
	const httpd, served = "sidecar/httpd/", "./sidecar/httpd"
	return []mutation{
		{name: "who looks is answered before the append", law: "DoAndSee", file: loop, by: engine, tests: "TestDoAndSeeShowsWhatDoReturns",
			old: "			err = err2\n		}\n		l.replyLater(r, reply{s, err})", now: "			err = err2\n		}\n		r.answer(s, err)"},
		{name: "an old head earns its body", law: "Strangers", file: auth, by: peers, tests: "TestStrangersAreReadNoFurtherThanTheyHaveProved",
			old: "	if err := a.fresh(h.Get(headerTime)); err != nil {\n		return err\n	}\n	return a.remember", now: "	return a.remember"},
		{name: "a head earns its body twice", law: "Strangers", file: auth, by: peers, tests: "TestStrangersAreReadNoFurtherThanTheyHaveProved",
			old: "		return err\n	}\n	return a.remember(h.Get(headerNonce))\n}\n\n// CheckBody", now: "		return err\n	}\n	return nil\n}\n\n// CheckBody"},
		{name: "profiles of the control plane are for everybody", law: "Profiles", file: api, by: plane, tests: "TestProfilesAreForWhoHasTheToken",
			old: "		if !h.hasToken(r) {\n			refuse(w, http.StatusUnauthorized, \"the token is missing or wrong; it", now: "		if false {\n			refuse(w, http.StatusUnauthorized, \"the token is missing or wrong; it"},
		{name: "an entry goes to a row that is not its transaction's last", law: "EntriesOfATransaction", file: pack, by: store, tests: "TestEntriesOfATransactionShareARow",
			old: "		last[e.Tx] = len(rows)\n", now: "		if _, again := last[e.Tx]; !again {\n			last[e.Tx] = len(rows)\n		}\n"},
		{name: "what a full socket leaves has been written", law: "BytesArriveWhole", file: quick, by: sockets, tests: "TestBytesArriveWhole",
			old: "return w.once || errs != syscall.EAGAIN", now: "return true"},
		{name: "what a write took before its time was over goes once more", law: "WriteGoesOn", file: quick, by: sockets, tests: "TestWriteGoesOnAfterATimeOut",
			old: "	n := len(p) - len(w.p)\n	w.p = nil\n", now: "	n := len(p) - len(w.p)\n	if err != nil {\n		n = 0\n	}\n	w.p = nil\n"},
		{name: "a kept connection that was spoken on is silent", law: "IsSilent", file: quick, by: sockets, tests: "TestIsSilent",
			old: "l.silent = errs == syscall.EAGAIN", now: "l.silent = errs == syscall.EAGAIN || errs == 0"},
		{name: "a kept connection is asked without a look", law: "Ask", file: quick, by: sockets, tests: "TestAsk$",
			old: "if t.peek(fd); !t.silent {", now: "if t.silent = true; !t.silent {"},
		{name: "bodies sent to the API have no time", law: "SlowClients", file: httpd + "server.go", by: served, tests: "TestSlowClients",
			old: "return fasthttp.RequestConfig{ReadTimeout: s.opt.BodyTime}", now: "return fasthttp.RequestConfig{}"},
		{name: "the API reads only the first of a header's values", law: "ThoseOfNetHTTP", file: httpd + "request.go", by: served, tests: "TestRequestsAndAnswersAreThoseOfNetHTTP", quick: true,
			old: "out[name] = append(before, value)", now: "_ = before"},
		{name: "a body that breaks off is whole for the API", law: "BrokenBodies", file: httpd + "request.go", by: served, tests: "TestBrokenBodies",
			old: "if err == io.EOF && b.left > 0 {", now: "if err == io.EOF && b.left < 0 {"},
		{name: "what a handler said before it panicked is sent", law: "PanicEndsOneRequest", file: httpd + "server.go", by: served, tests: "TestPanicEndsOneRequest",
			old: "x.broken, x.response = true, response{}", now: "x.broken = true"},
		{name: "the API cuts off who still sends", law: "AnswerBeforeTheEnd", file: httpd + "server.go", by: served, tests: "TestAnswerBeforeTheEndOfTheBodyArrives",
			old: "if c.unread && c.SetReadDeadline", now: "if !c.heard && c.SetReadDeadline"},
		{name: "threads are spared for ever", law: "ThreadsAreSpared", file: "cmd/internal/processors/processors.go", by: "./cmd/internal/processors", tests: "TestThreadsAreSparedWhileAllAreBusy",
			old: "w.is = w.is && w.calms < calmLooks", now: "w.is = w.is && w.calms >= 0"},
	}
}
