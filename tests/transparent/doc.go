// Package transparent makes hosts on which every TCP connection passes a sidecar that nobody knows of: rules of the firewall
// in a network namespace of its own, a sidecar under a user id of its own. Its tests show that such connections arrive
// where they wanted to, byte for byte, and that those of transactions pass the Gate. It needs Linux and root, and skips the
// test that asks for it, with the reason, where it has not got them. Start at Run.
package transparent
