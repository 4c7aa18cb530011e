// Package redirect takes connections that the kernel has turned away from their destination (nftables, iptables) and
// finds out where each wanted to go, and whether it may speak HTTP. It looks at the first bytes without taking them out
// of the socket, so that whoever serves the connection finds them there. It neither speaks HTTP nor passes bytes: the
// wiring gives it functions for both. It never serves a connection that leads back to itself. It needs Linux. Start at
// Server; guard.go finds loops, sniff.go knows first bytes, socket_linux.go asks the kernel.
package redirect
