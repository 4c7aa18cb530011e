// Package sim runs the whole protocol in one thread under a simulated clock: the real Gate, shard, relay and outbound
// code of six sidecars, around applications that know nothing of transactions and behave badly, over a network that
// loses, repeats, delays and reorders, on disks that forget what was not synced. In a fleet (fleet.go) a seventh stands
// by, and all share a store that is reached by messages: each node runs as many shards as it holds journals, keeper.go
// does what takeover.Machine says, ways are cut, and sidecars stop for a while and go on. One seed is one history, byte
// for byte. It judges by the laws of the design and asks the applications what happened, never the machine. It makes no
// real call, reads no real clock and starts no goroutine of its own. Start at Run; the laws are in check.go.
package sim
