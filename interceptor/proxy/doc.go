// Package proxy moves HTTP/1.1 between an application and its network, and shows each request to a Gate. It
// decides where a message ends, where a request goes and how a failure is told; it never decides what belongs to
// a transaction, never repeats a request of which a byte was sent and changes nothing but hop-by-hop fields. What
// nobody changes leaves with the same bytes as it came. Start at session.exchange; README.md lists the differences
// to a direct connection.
package proxy
