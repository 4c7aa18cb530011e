package e2e

import (
	"encoding/json"
	"strings"
	"testing"
)

// shopPolicy has a start or a call for everything that a policy can ask for.
const shopPolicy = `apiVersion: txmesh.io/v1beta1
kind: TransactionPolicy
metadata: {name: shop, namespace: bank}
spec:
  start:
  - {name: order, match: {service: shop, method: POST, path: /orders}, timeout: 20s}
  - {name: brief, match: {service: shop, method: POST, path: /brief}, timeout: 2s}
  - name: own
    match: {service: shop, method: POST, path: /own}
    timeout: 20s
    undo: {method: DELETE, path: "/own/{response.body.id}"}
    query: {method: GET, path: /own, params: {ref: "{request.body.ref}"}, absentAfter: 100ms}
    undoRetry: {delay: 50ms, maxDelay: 200ms}
  - {name: inner, match: {service: stock, method: POST, path: /inner}, timeout: 20s}
  - {name: confirmed, match: {service: shop, method: POST, path: /confirmed}, timeout: 20s, reply: {onCommit: AfterConfirm}}
  - {name: impatient, match: {service: shop, method: POST, path: /impatient}, timeout: 20s, reply: {onAbort: AfterUndo, max: 300ms}}
  calls:
  - name: proxy
    match: {service: stock, method: POST, path: /proxy}
    undo: {method: DELETE, path: "/proxy/{response.body.id}"}
    undoRetry: {delay: 50ms, maxDelay: 200ms}
  - name: key
    match: {service: stock, method: POST, path: /key}
    barrier: Key
    onUnknown: Query
    undo: {method: DELETE, path: "/key/{response.body.id}"}
    undoRetry: {delay: 50ms, maxDelay: 200ms}
  - name: none
    match: {service: third, method: POST, path: /none}
    barrier: None
    undo: {method: DELETE, path: "/none/{response.body.id}"}
    query: {method: GET, path: /none, params: {ref: "{request.body.ref}"}, absentAfter: 300ms}
    onUnknown: Query
    undoRetry: {delay: 50ms, maxDelay: 200ms}
  - name: database
    match: {service: third, method: POST, path: /database}
    barrier: Database
    undo: {method: DELETE, path: "/database/{request.body.ref}"}
    undoRetry: {delay: 50ms, maxDelay: 200ms}
  - name: stop
    match: {service: third, method: POST, path: /stop}
    barrier: None
    undo: {method: DELETE, path: "/stop/{request.body.ref}"}
    onUnknown: Stop
    undoRetry: {delay: 50ms, maxDelay: 200ms}
  - name: reserve
    match: {service: stock, method: POST, path: /reserve}
    reserve:
      confirm: {method: PUT, path: "/reserve/{response.body.id}"}
      cancel: {method: DELETE, path: "/reserve/{response.body.id}"}
    undoRetry: {delay: 50ms, maxDelay: 200ms}
  - name: mail
    match: {service: third, method: POST, path: /mails}
    hold: {}
    undoRetry: {delay: 50ms, maxDelay: 200ms}
  - {name: irreversible, match: {service: third, method: POST, path: /shipments}, irreversible: {reason: the parcel is gone}}
  - name: detach
    match: {service: stock, method: POST, path: /detach}
    undo: {method: DELETE, path: "/detach/{response.body.id}"}
    async: Detach
  - name: middle
    match: {service: stock, method: POST, path: /middle}
    undo: {method: DELETE, path: "/middle/{response.body.id}"}
    undoRetry: {delay: 50ms, maxDelay: 200ms}
  - name: inner-call
    match: {service: stock, method: POST, path: /inner}
    undo: {method: DELETE, path: "/inner/{response.body.id}"}
    undoRetry: {delay: 50ms, maxDelay: 200ms}
  - name: last
    match: {service: deep, method: POST, path: /last}
    undo: {method: DELETE, path: "/last/{response.body.id}"}
    undoRetry: {delay: 50ms, maxDelay: 200ms}
---
apiVersion: txmesh.io/v1beta1
kind: TransactionPolicy
metadata: {name: looking, namespace: bank}
spec:
  mode: Shadow
  start:
  - {name: shadow-start, match: {service: shop, method: POST, path: /shadow}}
  calls:
  - {name: shadow-call, match: {service: stock, method: POST, path: /shadow}, undo: {method: DELETE, path: "/shadow/{response.body.id}"}}
`

// shop is a mesh of scripted services: shop calls stock and third, stock calls deep. third has no sidecar.
type shop struct {
	*mesh
	t                        *testing.T
	shop, stock, third, deep *node
}

func newShop(t *testing.T, flags ...string) *shop {
	t.Helper()
	m := newMesh(t, shopPolicy,
		member{name: "deep"},
		member{name: "third", bare: true, app: []string{"--keyed"}},
		member{name: "stock", calls: []string{"deep"}, app: []string{"--keyed"}},
		member{name: "shop", calls: []string{"stock", "third"}, flags: flags})
	m.start()
	return &shop{mesh: m, t: t, shop: m.nodes["shop"], stock: m.nodes["stock"], third: m.nodes["third"], deep: m.nodes["deep"]}
}

// order is what a request asks the scripted services to do.
type order struct {
	Ref    string `json:"ref,omitempty"`
	Calls  []step `json:"calls,omitempty"`
	Ignore bool   `json:"ignore,omitempty"`
	Wait   string `json:"wait,omitempty"`
	Hold   string `json:"hold,omitempty"`
	Status int    `json:"status,omitempty"`
}

type step struct {
	Method string            `json:"method"`
	URL    string            `json:"url"`
	Header map[string]string `json:"header,omitempty"`
	Body   order             `json:"body"`
	Drop   []string          `json:"drop,omitempty"`
}

// to is a call of one service to another, through the caller's sidecar.
func (n *node) calling(other, path string, o order, drop ...string) step {
	return step{Method: "POST", URL: "http://" + n.to[other] + path, Body: o, Drop: drop}
}

func (o order) json() string {
	b, err := json.Marshal(o)
	if err != nil {
		panic(err)
	}
	return string(b)
}

// ended waits until the only transaction that the shop has begun is in a phase, and gives it.
func (s *shop) ended(phase string) transaction {
	s.t.Helper()
	var x transaction
	s.eventually("the transaction is "+phase, func() (bool, string) {
		all, err := s.shop.list("")
		if err != nil || len(all) != 1 {
			return false, strings.TrimSpace(errText(err))
		}
		x, err = s.shop.show(all[0].ID)
		return err == nil && x.Phase == phase, x.Phase + ": " + x.events() + errText(err)
	})
	return x
}

func errText(err error) string {
	if err == nil {
		return ""
	}
	return " " + err.Error()
}
