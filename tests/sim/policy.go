package sim

import (
	"strings"
	"time"

	"txmesh/policies"
)

// The times of the world. Whoever believes a query's "not there" must wait longer than a slow application takes.
const (
	rootTimeout = 6 * time.Second
	callTimeout = 2 * time.Second
	slowest     = 5 * time.Second  // an application takes at most so long over one request
	absentAfter = 20 * time.Second // > slowest and the longest delay of the network
	replyMax    = 5 * time.Second
	latest      = 8 * time.Second // the longest delay of the network
)

const head = `apiVersion: txmesh.io/v1beta1
kind: TransactionPolicy
metadata: {name: shop, namespace: shop}
spec:
  undoRetry: {delay: 200ms, maxDelay: 2s, stuckAfter: 1h}
  start:
  - name: plain
    match: {service: front, method: POST, path: /plain}
    timeout: 6s
  - name: own
    match: {service: front, method: POST, path: /own}
    timeout: 6s
    confirm: {method: PUT, path: "/own/{request.body.order}"}
    undo: {method: DELETE, path: "/own/{request.body.order}"}
    query: {method: GET, path: "/own/{request.body.order}", absentAfter: 20s}
  - name: waiting
    match: {service: front, method: POST, path: /waiting}
    timeout: 6s
    reply: {onCommit: AfterConfirm, onAbort: AtDecision}
  calls:
`

// kinds are what a participant offers; $ is the service.
const kinds = `
  - name: $-proxy
    match: {service: $, method: POST, path: /proxy}
    timeout: 2s
    undo: {method: DELETE, path: "/proxy/{response.body.id}"}
  - name: $-asked
    match: {service: $, method: POST, path: /asked}
    timeout: 2s
    undo: {method: DELETE, path: "/asked/by-order/{request.body.order}"}
    query: {method: GET, path: "/asked/by-order/{request.body.order}", absentAfter: 20s}
  - name: $-keyed
    match: {service: $, method: POST, path: /keyed}
    timeout: 2s
    barrier: Key
    undo: {method: DELETE, path: "/keyed/{response.body.id}"}
  - name: $-bare
    match: {service: $, method: POST, path: /bare}
    timeout: 2s
    barrier: None
    undo: {method: DELETE, path: "/bare/{response.body.id}"}
    query: {method: GET, path: "/bare/by-order/{request.body.order}", absentAfter: 20s}
  - name: $-db
    match: {service: $, method: POST, path: /db}
    timeout: 2s
    barrier: Database
    undo: {method: DELETE, path: "/db/by-order/{request.body.order}"}
  - name: $-reserve
    match: {service: $, method: POST, path: /reserve}
    timeout: 2s
    reserve:
      confirm: {method: PUT, path: "/reserve/{response.body.id}"}
      cancel: {method: DELETE, path: "/reserve/{response.body.id}"}
    query: {method: GET, path: "/reserve/by-order/{request.body.order}", absentAfter: 20s}
  - name: $-mail
    match: {service: $, method: POST, path: /mail}
    hold: {}
  - name: $-fire
    match: {service: $, method: POST, path: /fire}
    timeout: 2s
    irreversible: {reason: what is fired stays fired}
    query: {method: GET, path: "/fire/by-order/{request.body.order}", absentAfter: 20s}
  - name: $-soft
    match: {service: $, method: POST, path: /soft}
    timeout: 2s
    async: Detach
    required: Never
    undo: {method: DELETE, path: "/soft/by-order/{request.body.order}"}
    query: {method: GET, path: "/soft/by-order/{request.body.order}", absentAfter: 20s}
`

// offers are the paths of a participant, in the order in which chance picks them.
func offers() []string {
	return []string{"proxy", "asked", "keyed", "bare", "db", "reserve", "mail", "fire", "soft"}
}

// participants are the services behind the front.
func participants() []string { return []string{"stock", "bank"} }

// compiled is the one policy set of all worlds: compiling costs more than many a world.
func compiled() (*policies.Set, error) {
	text := head
	for _, s := range participants() {
		text += strings.ReplaceAll(kinds, "$", s)
	}
	return policies.Compile(policies.Source{Name: "shop.yaml", Data: []byte(text)})
}
