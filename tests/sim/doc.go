// Package sim runs the whole protocol in one thread under a simulated clock: the real Gate, shard, relay and outbound
// code of six sidecars, around applications that know nothing of transactions and behave badly, over a network that
// loses, repeats, delays and reorders, on disks that forget what was not synced. One seed is one history, byte for
// byte. It judges by the laws of the design and asks the applications what happened, never the machine. It makes no
// real call, reads no real clock and starts no goroutine of its own. Start at Run; the laws are in check.go.
package sim
