package compat

import (
	"encoding/json"
	"fmt"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
)

// node makes the requests of dtmcli 0.0.10 for Node, as written down from its axios 0.21 and typedjson 1.8: the package
// itself is not to be had from its registry.
type node struct {
	t       *testing.T
	door    sidecar
	gid     string
	service string // URL before the paths of the branches
}

// The bodies of its requests. GID and SVC stand for a gid and the URL of the service.
const (
	nodeSaga = `{"gid":"GID","trans_type":"saga","steps":[{"action":"SVC/out","compensate":"SVC/out-compensate"},` +
		`{"action":"SVC/in","compensate":"SVC/in-compensate"}],"payloads":["{\"amount\":30}","{\"amount\":30}"]}`
	nodeSagaOrdered = `{"gid":"GID","trans_type":"saga","steps":[{"action":"SVC/out","compensate":"SVC/out-compensate"},` +
		`{"action":"SVC/in","compensate":"SVC/in-compensate"}],"payloads":["{\"amount\":30}","{\"amount\":30}"],` +
		`"custom_data":"{\"concurrent\":true,\"orders\":{\"1\":[0]}}"}`
	nodeTCC    = `{"gid":"GID","trans_type":"tcc"}`
	nodeBranch = `{"gid":"GID","branch_id":"BRANCH","trans_type":"tcc","status":"prepared","data":"{\"amount\":30}",` +
		`"try":"SVC/try","confirm":"SVC/confirm","cancel":"SVC/cancel"}`
	nodeMsg = `{"gid":"GID","trans_type":"msg","steps":[{"action":"SVC/in"}],"payloads":["{\"amount\":30}"],` +
		`"query_prepared":"SVC/query-prepared"}`
	nodeMsgPlain   = `{"gid":"GID","trans_type":"msg","steps":[{"action":"SVC/in"}],"payloads":["{\"amount\":30}"]}`
	nodeMsgTimeout = `{"timeout_to_fail":1,"gid":"GID","trans_type":"msg","steps":[{"action":"SVC/in"}],"payloads":["{\"amount\":30}"],` +
		`"query_prepared":"SVC/query-prepared"}`
)

// send makes one request and returns the body of the answer; that of the status is for the caller to say.
func (n node) send(method, url, body string, status int) []byte {
	n.t.Helper()
	r, err := http.NewRequestWithContext(n.t.Context(), method, url, strings.NewReader(strings.NewReplacer("GID", n.gid, "SVC", n.service).Replace(body)))
	if err != nil {
		n.t.Fatal(err)
	}
	r.Header.Set("Accept", "application/json, text/plain, */*")
	r.Header.Set("User-Agent", "axios/0.21.4")
	if body != "" {
		r.Header.Set("Content-Type", "application/json")
	}
	got, answer, err := deliver(r)
	if err != nil || got != status {
		n.t.Fatalf("%s %s: status %d, body %s, error %v; want %d", method, url, got, answer, err, status)
	}
	return answer
}

func (n node) call(op, body string) {
	n.t.Helper()
	n.send(http.MethodPost, n.door.url()+"/"+op, body, http.StatusOK)
}

// branch registers one of a TCC and tries it.
func (n node) branch(id string, status int) {
	n.t.Helper()
	n.call("registerTccBranch", strings.ReplaceAll(nodeBranch, "BRANCH", id))
	n.send(http.MethodPost, fmt.Sprintf("%s/try?gid=%s&trans_type=tcc&branch_id=%s&branch_type=try", n.service, n.gid, id), `{"amount":30}`, status)
}

func testNode(t *testing.T, door sidecar) {
	for _, tt := range []struct {
		name   string
		refuse string // branch and op that the service refuses
		send   func(node)
		status string
		calls  []string
	}{
		{name: "saga", send: func(n node) { n.call("submit", nodeSaga) },
			status: succeed, calls: []string{"01 action", "02 action"}},
		{name: "saga rollback", refuse: "02 action", send: func(n node) { n.call("submit", nodeSaga) },
			status: failed, calls: []string{"01 action", "02 action", "02 compensate", "01 compensate"}},
		{name: "saga ordered", send: func(n node) { n.call("submit", nodeSagaOrdered) },
			status: succeed, calls: []string{"01 action", "02 action"}},
		{name: "tcc", send: func(n node) {
			n.call("prepare", nodeTCC)
			n.branch("01", http.StatusOK)
			n.branch("02", http.StatusOK)
			n.call("submit", nodeTCC)
		}, status: succeed, calls: []string{"01 try", "02 try", "02 confirm", "01 confirm"}},
		{name: "tcc rollback", refuse: "02 try", send: func(n node) {
			n.call("prepare", nodeTCC)
			n.branch("01", http.StatusOK)
			n.branch("02", http.StatusConflict)
			n.call("abort", nodeTCC)
		}, status: failed, calls: []string{"01 try", "02 try", "02 cancel", "01 cancel"}},
		{name: "tcc nested", send: func(n node) {
			n.call("prepare", nodeTCC)
			n.branch("01", http.StatusOK)
			n.branch("0101", http.StatusOK)
			n.call("submit", nodeTCC)
		}, status: succeed, calls: []string{"01 try", "0101 try", "0101 confirm", "01 confirm"}},
		{name: "msg", send: func(n node) {
			n.call("prepare", nodeMsg)
			n.call("submit", nodeMsg)
		}, status: succeed, calls: []string{"01 action"}},
		{name: "msg without prepare", send: func(n node) { n.call("submit", nodeMsgPlain) },
			status: succeed, calls: []string{"01 action"}},
		{name: "msg refused", send: func(n node) {
			n.call("prepare", nodeMsg)
			n.call("abort", nodeMsg)
		}, status: failed},
		{name: "msg client dies after its commit", send: func(n node) { n.call("prepare", nodeMsgTimeout) },
			status: succeed, calls: []string{"00 msg", "01 action"}},
		{name: "msg client dies before its commit", refuse: "00 msg", send: func(n node) { n.call("prepare", nodeMsgTimeout) },
			status: failed, calls: []string{"00 msg"}},
	} {
		t.Run(tt.name, func(t *testing.T) {
			accepts := httptest.NewServer(http.HandlerFunc(func(http.ResponseWriter, *http.Request) {}))
			defer accepts.Close()
			way := newNetwork(t, accepts.Listener.Addr().String())
			way.lose = tt.refuse
			n := node{t: t, door: door, service: way.URL}
			var reply struct{ GID string }
			if err := json.Unmarshal(n.send(http.MethodGet, door.url()+"/newGid", "", http.StatusOK), &reply); err != nil || reply.GID == "" {
				t.Fatalf("new gid: %+v, %v", reply, err)
			}
			n.gid = reply.GID
			tt.send(n)
			if got := door.end(t, n.gid); got != tt.status {
				t.Errorf("transaction %s: got %s, want %s", n.gid, got, tt.status)
			}
			if diff := cmp.Diff(tt.calls, way.seen()); diff != "" {
				t.Errorf("calls of branches (-want +got):\n%s", diff)
			}
		})
	}
}
