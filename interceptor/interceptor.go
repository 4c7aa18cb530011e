// Package interceptor stands between an application and its network. The Gate looks at every request that a
// forwarder shows it, says which of them belong to a transaction, has their branches journaled before they leave
// and reports what they answered. It forwards nothing itself and never sees a socket; the forwarders are in
// interceptor/proxy. Start at Gate.Before.
package interceptor
